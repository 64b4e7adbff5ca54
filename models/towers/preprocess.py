"""What a model wants its images to look like, read from the files that lie beside its weights.

transformers' own image processors give the same (the tests compare them), but need torchvision or work on one thread.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

FILES = ("preprocessor_config.json", "processor_config.json")
"""Where it stands: on its own, or, as transformers 5 saves it, under `image_processor` in the second."""
FILTER = 3
"""Pixels, of the larger of two sizes, that the widest of Pillow's filters looks away from its place."""
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Preprocessing:
    """Resize, cut out the centre, scale, normalise; in this order, each where the model wants it."""

    size: tuple[int, int] | int | None
    """Height and width, the shorter side in px, or None where images keep theirs."""
    crop: tuple[int, int] | None
    """Height and width of the centre that is cut out; black is added where the image is smaller."""
    resample: Image.Resampling
    scale: float
    offset: float
    """Values become value · scale − offset before mean and deviation are taken off."""
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    again: tuple[float, ...]
    """Deviations to divide by once more, as EfficientNet's processor may."""
    patch: int = 0
    patches: int = 0
    """For images of any shape (NaFlex): the side of a patch in px, and how many of them there are at most."""

    @classmethod
    def load(cls, folder: Path) -> Preprocessing:
        """From the folder of a model. Raises `ValueError` where it says nothing, or what is not known here."""
        path = next((folder / name for name in FILES if (folder / name).is_file()), None)
        if path is None:
            raise ValueError(f"{folder} has no {FILES[0]}; save the model's image processor beside its weights")
        said = json.loads(path.read_text())
        return cls.of(said.get("image_processor", said), str(path))

    @classmethod
    def of(cls, said: dict[str, Any], where: str) -> Preprocessing:
        """From the parameters of transformers' image processors, old ones (`"size": 224`) included."""
        kind = str(said.get("image_processor_type") or said.get("feature_extractor_type") or "")
        flexible = kind.startswith("Siglip2")
        normalise = said.get("do_normalize", True)
        means, deviations = said.get("image_mean") or (), said.get("image_std") or ()
        if normalise and not (means and deviations):
            raise ValueError(f"{where} has no image_mean and image_std; save the model's image processor again")
        crop = said.get("do_center_crop", kind.startswith("CLIP"))
        return cls(
            size=_size(said.get("size"), crop, where) if said.get("do_resize", True) and not flexible else None,
            crop=_crop(said.get("crop_size"), where) if crop else None,
            resample=Image.Resampling(said.get("resample", 2 if flexible else 3)),
            scale=said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1,
            offset=1 if said.get("rescale_offset") else 0,
            means=tuple(means) if normalise else (0.0, 0.0, 0.0),
            deviations=tuple(deviations) if normalise else (1.0, 1.0, 1.0),
            again=tuple(deviations) if kind.startswith("EfficientNet") and said.get("include_top", True) else (),
            patch=said.get("patch_size", 16) if flexible else 0,
            patches=said.get("max_num_patches", 256) if flexible else 0,
        )

    def __call__(self, image_hwc: Pixels) -> Pixels:
        """uint8 (height, width, 3), resized and cut; of one shape for all images, unless `patches` is set."""
        height, width = image_hwc.shape[:2]
        target = self._target(height, width)
        if target == (height, width) and self.crop is None:
            return image_hwc
        image = Image.fromarray(image_hwc)
        if self.crop is None:
            return np.asarray(image.resize((target[1], target[0]), self.resample))
        (top, bottom), (left, right) = (
            _needed(side, wanted, cut) for side, wanted, cut in zip((height, width), target, self.crop, strict=True)
        )
        if target != (height, width):
            down, across = height / target[0], width / target[1]
            box = (left * across, top * down, right * across, bottom * down)
            image = image.resize((right - left, bottom - top), self.resample, box=box)
        else:
            image = image.crop((left, top, right, bottom))
        up, aside = (target[0] - self.crop[0]) // 2 - top, (target[1] - self.crop[1]) // 2 - left
        return np.asarray(image.crop((aside, up, aside + self.crop[1], up + self.crop[0])))

    def normalise(self, images_hwc: torch.Tensor) -> torch.Tensor:
        """float32 (…, height, width, 3) of uint8, on the same device."""
        values, again = images_hwc.to(torch.float32), self.again or (1.0, 1.0, 1.0)
        factors = [1 / (wide * more) for wide, more in zip(self.deviations, again, strict=True)]
        added = [-(self.offset + mean) * factor for mean, factor in zip(self.means, factors, strict=True)]
        # In place, and in two steps instead of four: on a CPU this takes as long as resizing did.
        return values.mul_(values.new_tensor(factors) * self.scale).add_(values.new_tensor(added))

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if self.patches:
            return flexible_size(height, width, self.patch, self.patches)
        if isinstance(self.size, int):
            longer = int(self.size * max(height, width) / min(height, width))
            return (longer, self.size) if width <= height else (self.size, longer)
        return self.size or (height, width)


def _needed(side: int, resized: int, cut: int) -> tuple[int, int]:
    """First and last place, along one side of the resized image, that what is cut out of its centre depends on.

    All of it, unless the image is so slim that most would be thrown away: of 1 x 5000 px, resized whole, 750 MB.
    """
    if resized <= 8 * cut:
        return 0, resized
    reach = math.ceil(FILTER * max(1.0, resized / side)) + 1
    first = (resized - cut) // 2
    return max(0, first - reach), min(resized, first + cut + reach)


def flexible_size(height: int, width: int, patch: int, patches: int) -> tuple[int, int]:
    """The largest size in whole patches, at most `patches` of them, about as long and as high as the image.

    SigLIP 2 (Tschannen et al. 2025, section 2.4.2), with the bisection of its transformers port, to the same bits.
    """

    def fitted(scale: float) -> tuple[int, int]:
        high, wide = (max(patch, math.ceil(side * scale / patch) * patch) for side in (height, width))
        return high, wide

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        rows, columns = (side / patch for side in fitted(middle))
        low, high = (middle, high) if rows * columns <= patches else (low, middle)
    return fitted(low)


def _size(size: Any, crops: bool, where: str) -> tuple[int, int] | int:
    if isinstance(size, dict) and "shortest_edge" in size and not size.get("longest_edge"):
        return int(size["shortest_edge"])
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    if isinstance(size, int):  # of before 2022: CLIP's, which is cut afterwards, means the shorter side
        return size if crops else (size, size)
    raise ValueError(f"{where}: size = {size!r}; expected shortest_edge, or height and width")


def _crop(size: Any, where: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    raise ValueError(f"{where}: crop_size = {size!r}; expected height and width")
