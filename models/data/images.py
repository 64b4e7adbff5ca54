"""Encoded images to uint8 of the side that a model wants, quickly, and with bounds on what a hostile one may cost.

Pillow decodes, without the interpreter's lock; large JPEGs only to the eighth, quarter or half that suffices. torch
resizes as Pillow would, bicubic with antialiasing, to within 2 levels of 255 and in a third of its time. Mean and
deviation are left to `normalise`, on the device: uint8 is a quarter of the bytes to copy there.
"""

from __future__ import annotations

import io
import json
import math
import re
import threading
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch.nn.functional import interpolate

from models.data.collate import Decoded, Room
from models.data.shards import Damaged, Sample
from models.recipe import Images
from models.trainable import Batch

ENDINGS = ("jpg", "png", "jpeg", "webp", "gif")
"""Members that are an image: those of open_clip in its order, and the first frame of a GIF."""
READERS: tuple[tuple[re.Pattern[bytes], type[ImageFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), JpegImageFile),  # the classes: `Image.open` would try 43 readers, and warn of size
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    (re.compile(rb"GIF8[79]a"), GifImageFile),
)
MAX_PIXELS = 50_000_000
"""That an image may have; more are not decoded."""
LARGE = 4_000_000
"""Pixels from which only one image is decoded at a time: 50 megapixels take 350 MB."""
RATIOS = (3 / 4, 4 / 3)
"""Width to height of a random crop."""
TRIES = 10
"""Random crops that may turn out not to fit."""
Pixels = torch.Tensor
Box = tuple[int, int, int, int]
"""Left, top, width and height in px."""

_one_at_a_time = threading.Lock()


def image_of(sample: Sample) -> bytes:
    """Raises `Damaged` where no member is an image."""
    for ending in ENDINGS:
        if ending in sample.members:
            return sample.members[ending]
    raise Damaged("no image", sample.key, f"it has {', '.join(sample.members) or 'nothing'}; expected jpg, png or webp")


def images_of(sample: Sample) -> list[bytes]:
    """All images of a sample in their order: `key.0.jpg`, `key.1.jpg` and so on, else `key.jpg`, else none."""
    numbered = {
        int(number): data
        for name, data in sample.members.items()
        for number, dot, ending in (name.partition("."),)
        if dot and number.isascii() and number.isdigit() and len(number) < 4 and ending in ENDINGS
    }
    if numbered:
        return [numbered[number] for number in sorted(numbered)]
    return [sample.members[ending] for ending in ENDINGS if ending in sample.members][:1]


class Crop(NamedTuple):
    """What was decoded of an image, before it is resized, which fails for want of memory alone."""

    pixels_hwc: np.ndarray
    """uint8 (height, width, 3 or 4), which no other image shares."""
    side: int
    mirrored: bool

    def resized(self) -> Pixels:
        """uint8 (3, side, side)."""
        return resized(self.pixels_hwc, self.side, self.mirrored)


def crop_later(sample: Sample, images: Images, dice: Random, room: Room, at: int) -> None:
    """A random crop for row `at` of `pixel_values`, which is found and decoded when others are."""
    row = room["pixel_values"][at]

    def decode() -> Decoded:
        crop = training_crop(sample, images, dice)
        return Decoded(crop.pixels_hwc.nbytes, lambda: row.copy_(crop.resized()))

    room.later(at, sum(map(len, sample.members.values())), decode)


def training_crop(sample: Sample, images: Images, dice: Random) -> Crop:
    """A random crop, mirrored by chance. Raises `Damaged`."""
    data = image_of(sample)
    try:
        with opened(data) as image:
            box = random_box(*image.size, images.crop, dice)
            mirrored = dice.random() < images.flip
            return Crop(decoded(image, box, images.side).copy(), images.side, mirrored)
    except MemoryError:
        raise
    except Exception as error:  # readers of bytes that anyone may have written raise anything
        raise Damaged("undecodable image", sample.key, " ".join(str(error).split()) or type(error).__name__) from None


def random_box(width: int, height: int, shares: tuple[float, float], dice: Random) -> Box:
    """A share of the area within two bounds, of a ratio within `RATIOS`.

    That of Inception (Szegedy et al. 2015, section 6) as torchvision has it: where ten tries do not fit, the largest
    centre within the ratios.
    """
    low, high = math.log(RATIOS[0]), math.log(RATIOS[1])
    for _ in range(TRIES):
        area = width * height * dice.uniform(*shares)
        ratio = math.exp(dice.uniform(low, high))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            return dice.randint(0, width - wide), dice.randint(0, height - tall), wide, tall
    wide = min(width, max(1, round(height * RATIOS[1])))
    tall = min(height, max(1, round(width / RATIOS[0])))
    return (width - wide) // 2, (height - tall) // 2, wide, tall


def opened(data: bytes) -> ImageFile:
    """The image, of which only the header was read. Raises `ValueError` and what Pillow raises."""
    reader = next((reader for magic, reader in READERS if magic.match(data)), None)
    if reader is None:
        raise ValueError(f"{data[:8]!r}… is no JPEG, PNG, WebP or GIF")
    image = reader(io.BytesIO(data))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS} are decoded")
    return image


def decoded(image: ImageFile, box: Box, side: int) -> np.ndarray:
    """uint8 (height, width, 3 or 4): what the box holds, perhaps at reduced scale, but no smaller than `side` for that.

    A fourth channel means nothing.
    """
    width, height = image.size
    factor = max(side / box[2], side / box[3])
    image.draft("RGB", (math.ceil(width * factor), math.ceil(height * factor)))
    if image.width * image.height > LARGE:
        with _one_at_a_time:
            whole = rgb(image)
    else:
        whole = rgb(image)
    across, down = image.width / width, image.height / height
    left, right = (round(place * across) for place in (box[0], box[0] + box[2]))
    top, bottom = (round(place * down) for place in (box[1], box[1] + box[3]))
    return whole[top : max(bottom, top + 1), left : max(right, left + 1)]


def rgb(image: ImageFile) -> np.ndarray:
    """uint8 (height, width, 3 or 4): transparency over white, 16 bits scaled to 8."""
    picture: Image.Image = image
    if picture.mode.startswith("I"):  # convert("RGB") would clip at 255
        picture = picture.convert("I").point(lambda value: value * (255 / 65535) + 0.5).convert("L")
    elif picture.has_transparency_data:
        above = picture.convert("RGBA")
        picture = Image.new("RGBA", above.size, "white")
        picture.alpha_composite(above)
    picture.load()
    if picture.mode != "RGB":  # to itself, it would be a copy
        picture = picture.convert("RGB")
    try:  # Pillow's own memory, which has 4 bytes a pixel: `asarray` copies it three times, with the interpreter's lock
        pixels = pa.array(picture).values.to_numpy(zero_copy_only=True)
    except ValueError:  # of more than 4 megapixels, it is in pieces
        return np.asarray(picture)
    return np.asarray(pixels).reshape(picture.height, picture.width, 4)


def resized(image_hwc: np.ndarray, side: int, mirrored: bool) -> Pixels:
    """uint8 (3, side, side)."""
    pixels = torch.from_numpy(np.require(image_hwc, requirements=("C", "W"))).permute(2, 0, 1)
    if mirrored:  # not by numpy, which moves single bytes and takes longer than the resizing
        pixels = pixels.flip(-1)
    if pixels.shape[1:] != (side, side):
        pixels = interpolate(pixels[None], size=(side, side), mode="bicubic", antialias=True)[0]
    return pixels[:3]


def normalise(batch: Batch, images: Images) -> Batch:
    """The batch with `pixel_values`, and what ends so, as float32 less `mean`, by `deviation`: on whatever device."""
    found = dict(batch)
    for name in (name for name in batch if name.endswith("pixel_values")):
        pixels_nchw = batch[name].float()
        deviation = pixels_nchw.new_tensor(images.deviation).view(1, 3, 1, 1) * 255
        mean = pixels_nchw.new_tensor(images.mean).view(1, 3, 1, 1) * 255
        found[name] = pixels_nchw.sub_(mean).div_(deviation)
    return found


def preprocessor_config(images: Images) -> dict[str, Any]:
    """What a model that was trained so expects of images, as transformers' image processors write it down: the shorter
    side resized and the centre cut out, or the whole padded to a square before, or stretched into one, or in tiles as
    well."""
    square = {"height": images.side, "width": images.side}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "pad": ("LlavaImageProcessor", {"do_pad": True}),
        "stretch": ("SiglipImageProcessor", {"size": square, "do_center_crop": False}),
        "anyres": ("LlavaNextImageProcessor", {"image_grid_pinpoints": [list(grid) for grid in images.grids]}),
    }
    kind, more = kinds.get(images.fit, ("CLIPImageProcessor", {}))
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": images.side},
        "resample": int(Image.Resampling.BICUBIC),
        "do_center_crop": True,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.deviation),
        **more,
    }


def save_preprocessor(images: Images, folder: Path) -> None:
    """Beside a model's weights, where `models.towers.preprocess` and transformers find it."""
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(images), indent=2) + "\n")
