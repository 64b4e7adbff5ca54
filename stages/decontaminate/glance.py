"""What a picture looks like at a glance, so that a copy is found among many although it was cropped and recoloured.

The lowest 8 x 8 coefficients of the discrete cosine transform of a gray square of 32 x 32 px, as the perceptual hash of
Zauner 2010 has them, but as numbers: the mean left out, each weighted by its frequency (which whitens pictures, whose
amplitudes fall with it; Field 1987), brought to length 1. Brightness and contrast so have no say. A hash keeps only the
signs, and those of flat pictures are noise: of 150 rendered scenes a crop differs from its source by 2 to 28 bits.

A crop moves every frequency, so that one picture has many glances: with nothing, 3 % and 6 % off each of its edges.
"""

import io
from itertools import product

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.rows import FORMATS, MAX_PIXELS

SIDE, LOWEST, LOOKED = 32, 8, 128
"""Pixels of the square, lowest frequencies, and the longest side in px that it is made of."""
WIDTH = LOWEST * LOWEST
FLAT = 0.2
"""Levels of standard deviation below which a picture shows nothing that could be known again."""
NEAR = 0.78
"""The least cosine that is worth a look: of 160 altered leaks of rendered scenes all lie above, and of pairs of
different scenes one in 200."""

Gray = npt.NDArray[np.uint8]
Glances = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]
"""What is cut off at the left, the top, the right and the bottom, as a share of the width or height."""

CROPS: tuple[Box, ...] = tuple(product((0.0, 0.03, 0.06), repeat=4))  # type: ignore[arg-type]
"""Of an item of an evaluation set: leaks show parts of it."""
FEW_CROPS: tuple[Box, ...] = tuple(product((0.0, 0.045), repeat=4))  # type: ignore[arg-type]
"""Of an image of a pool, which may show a little more than an item; fewer, for there are many images."""

_frequencies = np.arange(LOWEST)[:, None]
_BASIS = np.cos(np.pi / (2 * SIDE) * _frequencies * (2 * np.arange(SIDE) + 1)).astype(np.float32)
_BASIS[0] /= np.sqrt(2)
_WEIGHTS = np.hypot(_frequencies, _frequencies.T).astype(np.float32)
"""0 for the mean."""


def gray_of(data: bytes) -> Gray:
    """uint8 (height, width), as small as JPEG's own scaling makes it. Raises what Pillow raises."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS} are decoded")
        image.draft("L", (LOOKED, LOOKED))
        gray = np.asarray(image.convert("L"))
    scale = LOOKED / max(gray.shape)
    if scale >= 0.5:  # each crop is made small from here: not from much more than it needs
        return gray
    size = max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale))
    return np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), np.uint8)


def glances(gray: Gray, boxes: tuple[Box, ...]) -> Glances:
    """float32 (boxes, 64): of length 1, or zeros where there is nothing to see."""
    height, width = gray.shape
    exact = gray.astype(np.float32)  # a small thing on a plain ground is less than a level of a square
    squares = np.empty((len(boxes), SIDE, SIDE), np.float32)
    for place, (left, top, right, bottom) in enumerate(boxes):
        cut = exact[
            min(round(top * height), height - 1) : max(height - round(bottom * height), 1),
            min(round(left * width), width - 1) : max(width - round(right * width), 1),
        ]
        squares[place] = cv2.resize(cut, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    seen = (_BASIS @ squares @ _BASIS.T) * _WEIGHTS
    flat = squares.std(axis=(1, 2)) < FLAT
    rows = seen.reshape(len(boxes), WIDTH)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    found: Glances = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    found[flat] = 0
    return found
