"""Where one image lies on another, if one is the other, or a crop of it: the places that are worth comparing.

What is laid on top of each other is detail: colours less their surroundings, along the one direction of colour in which
the two differ most from grey. So a gradient across the whole image, which fits anything at any scale, has no say, and
red on a blue that is as bright is seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]
Detail = npt.NDArray[np.float32]
Grid = npt.NDArray[np.float32]
"""An affine map, 2 x 3."""

ALIGN_SIDE, FIND_SIDE = 128, 48
"""Longest sides in px at which a crop is aligned to a fraction of a pixel, and at which it is looked for."""
SMALLEST_CROP = 0.57
"""Of the area: the least that counts, a little below the 60 % that are to be found."""
SAME_ASPECT = 0.06
"""The logarithm of how much wider one may be than the other: a crop may be as much."""
WHOLE_FOUND, CROP_FOUND = 0.55, 0.75
"""The least correlation of two whole images, and of a crop with the place where it was found: of a hundred places, one
fits by chance better than the only place of a whole image."""
BEHIND = 0.15
"""Places whose correlation is further behind the best one are not tried."""
TRIES = 3
"""Places of a crop that are tried: stripes fit at every period."""
SURROUNDINGS = 8.0
"""Standard deviation in px, at `ALIGN_SIDE`, of what is taken for the surroundings of a pixel."""
PLAIN = 1.5
"""Levels of standard deviation below which there is no detail."""
ALIGN_STEPS = 15


@dataclass(frozen=True)
class Place:
    """`warp` maps the pixels of the whole to those of the piece; `likeness` is their correlation there, at most 1."""

    likeness: float
    swapped: bool
    """Whether the second image is the whole."""
    warp: Grid


def detail(rgb_hwc: Pixels) -> Detail:
    """Colours less their surroundings, float32 (height, width, 3), at most `ALIGN_SIDE` px long."""
    small = within(rgb_hwc, ALIGN_SIDE).astype(np.float32)
    return np.asarray(small - cv2.GaussianBlur(small, (0, 0), SURROUNDINGS), np.float32)


def places(a: Detail, b: Detail, sides: tuple[tuple[int, int], tuple[int, int]]) -> Iterator[Place]:
    """Where a lies on b or b on a, the likeliest first; `sides` are the heights and widths that the maps are for."""
    axis = _axis(a, b)
    lines = np.asarray(cv2.transform(a, axis), np.float32), np.asarray(cv2.transform(b, axis), np.float32)
    plain = min(float(line.std()) for line in lines) < PLAIN
    aspect = (sides[0][1] * sides[1][0]) / (sides[0][0] * sides[1][1])
    whole_likeness = 0.0
    if abs(np.log(aspect)) < SAME_ASPECT:
        whole_likeness = 1.0 if plain else _likeness(*lines)
        if whole_likeness >= WHOLE_FOUND:
            yield Place(whole_likeness, False, stretch(sides[0], sides[1]))
    if plain:
        return
    found = _crops(*lines, False) + _crops(*lines[::-1], True)
    found.sort(key=lambda crop: -crop[0])
    for likeness, swapped, warp in found[:TRIES]:
        if likeness < max(CROP_FOUND, found[0][0] - BEHIND) or likeness <= whole_likeness:
            return
        whole, piece = lines[::-1] if swapped else lines
        aligned = _aligned(whole, piece, warp)
        if aligned is not None:
            of_whole, of_piece = sides[::-1] if swapped else sides
            outer, inner = stretch(of_whole, whole.shape), stretch(piece.shape, of_piece)
            yield Place(likeness, swapped, after(after(outer, aligned), inner))


def _axis(a: Detail, b: Detail) -> Grid:
    """The direction of colour with the most detail, float32 (1, 3)."""
    both = [image[::2, ::2].reshape(-1, 3) for image in (a, b)]
    return np.asarray(np.linalg.eigh(sum(colours.T @ colours for colours in both))[1][:, 2:].T, np.float32)


def _likeness(a: Detail, b: Detail) -> float:
    """The correlation of two whole images."""
    small = within(a, FIND_SIDE)
    other = sized(b, *small.shape[:2])
    return float(cv2.matchTemplate(small, other, cv2.TM_CCOEFF_NORMED)[0, 0])


def _crops(whole: Detail, piece: Detail, swapped: bool) -> list[tuple[float, bool, Grid]]:
    """Where the piece correlates with the whole best, for every scale at which it is at least `SMALLEST_CROP` of it."""
    small = within(whole, FIND_SIDE)
    height, width = small.shape
    longest = max(piece.shape)
    largest = round(longest * min(height / piece.shape[0], width / piece.shape[1]))
    least = longest * (SMALLEST_CROP * height * width / (piece.shape[0] * piece.shape[1])) ** 0.5
    found = []
    for side in range(largest, max(8, round(least)) - 1, -1):
        shape = (min(height, max(1, round(n * side / longest))) for n in piece.shape)
        rows, columns = next(shape), min(width, max(1, round(piece.shape[1] * side / longest)))
        template = sized(piece, rows, columns)
        _, likeness, _, (left, top) = cv2.minMaxLoc(cv2.matchTemplate(small, template, cv2.TM_CCOEFF_NORMED))
        down = stretch(whole.shape, small.shape)
        moved = np.array([[1, 0, -left], [0, 1, -top]], np.float32)
        found.append((float(likeness), swapped, after(after(down, moved), stretch((rows, columns), piece.shape))))
    return found


def _aligned(whole: Detail, piece: Detail, warp: Grid) -> Grid | None:
    """A guess aligned as Evangelidis & Psarakis 2008 (ECC); None where it runs away.

    At the border of a crop the surroundings are not what they are in the whole, so that it has no say.
    """
    inner = np.zeros(piece.shape, np.uint8)
    rim = [min(round(SURROUNDINGS), side // 6) for side in piece.shape]
    inner[rim[0] : piece.shape[0] - rim[0], rim[1] : piece.shape[1] - rim[1]] = 1
    try:
        _, found = cv2.findTransformECC(
            whole, piece, warp.copy(), cv2.MOTION_AFFINE,
            (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ALIGN_STEPS, 1e-4), inner, 3,
        )  # fmt: skip
    except cv2.error:
        return None
    return np.asarray(found, np.float32)


def stretch(a: tuple[int, ...], b: tuple[int, ...]) -> Grid:
    """The four corners of an image of shape `a` on those of `b`; pixels are squares whose centres are at halves."""
    x, y = b[1] / a[1], b[0] / a[0]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]], np.float32)


def after(first: Grid, second: Grid) -> Grid:
    """One affine map after the other."""
    last = np.array([[0, 0, 1]], np.float32)
    return np.asarray((np.vstack([second, last]) @ np.vstack([first, last]))[:2], np.float32)


def within(image: Pixels, side: int) -> Pixels:
    """Not larger than `side`."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    return sized(image, max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))


def sized(image: Pixels, height: int, width: int) -> Pixels:
    """Made smaller, every pixel the mean of those that it covers."""
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
