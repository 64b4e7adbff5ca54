"""Images as squares: the centre, the whole padded or stretched, or once whole and once in tiles; how many tokens they
take.

AnyRes (LLaVA-NeXT, Liu et al. 2024): of some grids the one in which most of the image's pixels stay, and least of the
grid is padding. The image is resized into it, padded with black, and cut into squares; before them comes the whole
image, squeezed into one square. All is as transformers' image processors have it; the tests compare them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers.image_processing_utils import select_best_resolution

from models.data.images import Box, Pixels, decoded, opened, resized
from models.data.shards import Damaged
from models.recipe import Images

Size = tuple[int, int]
"""Height and width."""
LONGEST = 2048
"""Pixels of an edge that are padded as they are; what is longer is made smaller before."""


class Seen(NamedTuple):
    """What a model gets of an image."""

    tiles_t3ss: Pixels
    """uint8 (tiles, 3, side, side)."""
    size: Size
    """Of the image itself, in px."""


def seen(data: bytes, images: Images, key: str) -> Seen:
    """An encoded image, fitted as the recipe says. `key`: of its sample. Raises `Damaged`."""
    try:
        with opened(data) as image:
            width, height = image.size
            if images.fit in ("centre", "stretch"):
                box = _centre_of(width, height) if images.fit == "centre" else (0, 0, width, height)
                return Seen(resized(decoded(image, box, images.side), images.side, False)[None], (height, width))
            largest = max([images.side, *(edge for grid in images.grids for edge in grid)])
            whole_hwc = decoded(image, (0, 0, width, height), largest)
        if images.fit == "pad":
            padded_hwc = _padded(whole_hwc, images)
            return Seen(resized(padded_hwc, images.side, False)[None], (height, width))
        return Seen(_tiles(whole_hwc, (height, width), images), (height, width))
    except MemoryError:
        raise
    except Exception as error:  # readers of bytes that anyone may have written raise anything
        raise Damaged("undecodable image", key, " ".join(str(error).split()) or type(error).__name__) from None


def _centre_of(width: int, height: int) -> Box:
    """The largest square."""
    least = min(width, height)
    return (width - least) // 2, (height - least) // 2, least, least


def _padded(image_hwc: np.ndarray, images: Images) -> np.ndarray:
    """uint8 (edge, edge, 3): in the middle of a square of the mean colour."""
    height, width = image_hwc.shape[:2]
    if max(height, width) > LONGEST:  # the square of a long and thin one would take all memory
        scale = LONGEST / max(height, width)
        smaller = max(1, round(height * scale)), max(1, round(width * scale))
        pixels = _scaled(torch.from_numpy(image_hwc.copy()).permute(2, 0, 1)[None], smaller)
        image_hwc, (height, width) = pixels[0].permute(1, 2, 0).numpy(), smaller
    edge = max(height, width)
    square = np.empty((edge, edge, 3), np.uint8)
    square[:] = [int(value * 255) for value in images.mean]
    top, left = (edge - height) // 2, (edge - width) // 2
    square[top : top + height, left : left + width] = image_hwc[..., :3]
    return square


def _tiles(image_hwc: np.ndarray, size: Size, images: Images) -> Pixels:
    side, grid = images.side, grid_of(size, images)
    high, wide = _within(size, grid)
    pixels = torch.from_numpy(image_hwc.copy()).permute(2, 0, 1)[None, :3]
    inner = _scaled(pixels, (high, wide))
    top, left = (grid[0] - high) // 2, (grid[1] - wide) // 2
    canvas = torch.zeros(3, *grid, dtype=torch.uint8)
    canvas[:, top : top + high, left : left + wide] = inner[0]
    cells = canvas.view(3, grid[0] // side, side, grid[1] // side, side).permute(1, 3, 0, 2, 4)
    return torch.cat([_scaled(pixels, (side, side)), cells.reshape(-1, 3, side, side)])


def _scaled(pixels: Pixels, size: Size) -> Pixels:
    return pixels if pixels.shape[2:] == size else interpolate(pixels, size=size, mode="bicubic", antialias=True)


def grid_of(size: Size, images: Images) -> Size:
    """Height and width in px of the grid that suits an image best."""
    best: Size = select_best_resolution(size, [list(grid) for grid in images.grids])
    return best


def _within(size: Size, grid: Size) -> Size:
    """The largest size of the image's shape that fits the grid."""
    height, width = size
    down, across = grid[0] / height, grid[1] / width
    if across < down:
        return min(math.ceil(height * across), grid[0]), grid[1]
    return grid[0], min(math.ceil(width * down), grid[1])


def tokens_of(size: Size, images: Images) -> int:
    """Places that an image takes among the tokens of a text.

    With AnyRes: those of the whole image, then those of the tiles without what is padding, and one more at the end of
    each of their lines.
    """
    assert images.tokens is not None  # by the recipe
    if images.fit != "anyres":
        return images.tokens
    edge = math.isqrt(images.tokens)
    (height, width), grid = size, grid_of(size, images)
    high, wide = grid[0] // images.side * edge, grid[1] // images.side * edge
    if width / height > wide / high:
        high -= (high - int(round(height * (wide / width), 7))) // 2 * 2
    else:
        wide -= (wide - int(round(width * (high / height), 7))) // 2 * 2
    return images.tokens + high * (wide + 1)
