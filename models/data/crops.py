"""Two large views of an image and some small ones, each changed by chance: what DINO learns from.

Sizes, chances and strengths are those of the authors' code (Caron et al. 2021; main_dino.py, DataAugmentationDINO);
its augmentations are BYOL's (Grill et al. 2020, appendix B). Pillow changes the pixels there and here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from models.data.collate import Collate, Room
from models.data.images import RATIOS, Pixels, decoded, image_of, opened, random_box, resized
from models.data.shards import Damaged, Sample
from models.recipe import Crops, Data, Images
from models.trainable import Batch

JITTERED, GREY = 0.8, 0.2
"""Chances that the colours are changed, and that there are none."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
"""How far each may be from 1, and the hue from 0, of a full circle."""
RADIUS = (0.1, 2.0)
"""Of the blur, px."""
THRESHOLD = 128
"""Levels from which a solarised image is inverted."""


class Change(NamedTuple):
    """How likely it is that a view is blurred, and that it is solarised."""

    blur: float
    solar: float


FIRST, SECOND, SMALL = Change(1.0, 0.0), Change(0.1, 0.2), Change(0.5, 0.0)


class ManyCrops(Collate[None]):
    """uint8 `pixel_values` (n, 2, 3, side, side) and, where there are any, `small_pixel_values` (n, count, 3, …)."""

    def __init__(self, data: Data) -> None:
        self._images, self._crops, self._flip = data.images, data.crops, data.flip_of_crops
        self._side = side_of_whole(data)

    def room(self) -> dict[str, tuple[int, ...]]:
        views = {"pixel_values": (2, self._images.side), "small_pixel_values": (self._crops.count, self._crops.side)}
        return {name: (count, 3, side, side) for name, (count, side) in views.items() if count}

    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> None:
        whole_hwc = whole(sample, self._side)
        for number, change in enumerate((FIRST, SECOND)):
            room["pixel_values"][at, number] = view(whole_hwc, self._images, self._images.flip, change, dice)
        for number in range(self._crops.count):
            room["small_pixel_values"][at, number] = view(whole_hwc, self._crops, self._flip, SMALL, dice)

    def batch(self, rows: Sequence[None]) -> Batch:
        return {}


def side_of_whole(data: Data) -> int:
    """px, of the whole image: so large that its smallest and slimmest crop is not enlarged for want of pixels."""
    shares = ((views.side, views.crop[0]) for views in (data.images, data.crops))
    return max(math.ceil(side * math.sqrt(RATIOS[1] / share)) for side, share in shares)


def whole(sample: Sample, side: int) -> np.ndarray:
    """uint8 (height, width, 3), decoded once for all views of it. Raises `Damaged`."""
    try:
        with opened(image_of(sample)) as image:
            return decoded(image, (0, 0, *image.size), side)[..., :3]
    except (MemoryError, Damaged):
        raise
    except Exception as error:  # readers of bytes that anyone may have written raise anything
        told = " ".join(str(error).split()) or type(error).__name__
        raise Damaged("undecodable image", sample.key, told) from None


def cut(image_hwc: np.ndarray, views: Images | Crops, flip: float, dice: Random) -> Pixels:
    """uint8 (3, side, side): a random crop, mirrored by the chance `flip`."""
    left, top, width, height = random_box(image_hwc.shape[1], image_hwc.shape[0], views.crop, dice)
    mirrored = dice.random() < flip
    return resized(image_hwc[top : top + height, left : left + width], views.side, mirrored)


def view(image_hwc: np.ndarray, views: Images | Crops, flip: float, change: Change, dice: Random) -> Pixels:
    """The same with other colours."""
    cut_hwc = cut(image_hwc, views, flip, dice).permute(1, 2, 0)
    return torch.from_numpy(np.array(changed_by(Image.fromarray(cut_hwc.numpy()), change, dice))).permute(2, 0, 1)


def changed_by(image: Image.Image, change: Change, dice: Random) -> Image.Image:
    """Colours, then blur, then solarisation, each by its chance; RGB in and out."""
    if dice.random() < JITTERED:
        image = jittered(image, dice)
    if dice.random() < GREY:
        image = image.convert("L").convert("RGB")
    if dice.random() < change.blur:
        image = image.filter(ImageFilter.GaussianBlur(dice.uniform(*RADIUS)))
    if dice.random() < change.solar:
        image = ImageOps.solarize(image, THRESHOLD)
    return image


def jittered(image: Image.Image, dice: Random) -> Image.Image:
    """Brightness, contrast, saturation and hue, in an order that is drawn, too."""
    ways = [(ImageEnhance.Brightness, BRIGHTNESS), (ImageEnhance.Contrast, CONTRAST), (ImageEnhance.Color, SATURATION)]
    for number in dice.sample(range(len(ways) + 1), len(ways) + 1):
        if number == len(ways):
            image = _turned(image, dice.uniform(-HUE, HUE))
        else:
            kind, strength = ways[number]
            image = kind(image).enhance(dice.uniform(1 - strength, 1 + strength))
    return image


def _turned(image: Image.Image, share: float) -> Image.Image:
    """The hue, by a share of the circle of colours."""
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + round(share * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
