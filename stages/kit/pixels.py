"""Whether two images are copies of each other: laid over each other, brought to the same colours, compared bit by bit.

A copy may be encoded anew, resized, cropped (to 60 % of the area) and recoloured as a whole. A picture in which one
thing is different is no copy, however small the thing: what counts is the worst place, not the mean. Mirror images are
no copies: their captions would be wrong.

Most candidates have little in common, and end after a search at 48 px (`alignment`); the others are compared at 256.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.rows import FORMATS, MAX_PIXELS
from stages.kit.alignment import SAME_ASPECT, SMALLEST_CROP, Detail, Grid, after, detail, places, sized, stretch, within
from stages.kit.recolouring import CUT, Colours, recolourings

SIDE = 256
"""Longest side in px at which images are compared: the smallest object of a scene spans 10 of them."""
COLOUR_SIDE = 64
"""Longest side in px at which colours are compared."""
KEPT = 2.0
"""Levels below which a place has kept its colour."""
MOST_OFF = 12.0
"""Levels by which half of the places may be off their colour; beyond, it is another picture."""
FLAT = 6.0
"""Levels of standard deviation of the colours below which any colour would be a recolouring."""
TRIES = 2
"""Recolourings that are tried in full."""
SOFT = 0.8
"""Pixels by which both are blurred before they are compared: resizing makes one a little softer than the other."""
PLACE = 3
"""Sides in px of a place that is compared: one thing has several."""
USUAL = 0.75
"""The share of all places that says what difference is usual. A thing that moved changes up to a fifth of them."""
MOST_USUAL = 12
"""Levels by which so many places may differ; beyond, it is another picture."""
WORST = 25.0
"""Levels by which the worst place of a copy differs beyond what is usual, at most."""
COPY = 0.75

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
AROUND = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class Sight:
    """An image as it is compared."""

    rgb_hwc: Pixels
    """At most `SIDE` px long."""
    detail_hwc: Detail
    """What it is aligned by."""

    @property
    def nbytes(self) -> int:
        return self.rgb_hwc.nbytes + self.detail_hwc.nbytes


@dataclass(frozen=True)
class Verdict:
    """`agreement` is 1 where every place agrees, and falls with the worst place; copies reach `COPY`."""

    agreement: float

    @property
    def copy(self) -> bool:
        return self.agreement >= COPY


def sight(data: bytes) -> Sight:
    """An encoded image, decoded as small as it is needed. Raises `ValueError` for more than 50 megapixels."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS} are decoded")
        image.draft("RGB", (2 * SIDE, 2 * SIDE))
        rgb_hwc = within(np.asarray(image.convert("RGB")), SIDE)
    return Sight(rgb_hwc, detail(rgb_hwc))


def agreement(a: Sight, b: Sight) -> Verdict:
    """The best agreement over the ways in which one may lie on the other."""
    best = 0.0
    for place in places(a.detail_hwc, b.detail_hwc, (a.rgb_hwc.shape[:2], b.rgb_hwc.shape[:2])):
        whole, piece = (b, a) if place.swapped else (a, b)
        laid = _laid(whole.rgb_hwc, piece.rgb_hwc, place.warp)
        if laid is not None:
            for pair in _coloured(*laid):
                best = max(best, _agreement(*pair, laid[2]))
                if best >= COPY:
                    return Verdict(best)
    return Verdict(best)


def _laid(whole: Pixels, piece: Pixels, warp: Grid) -> tuple[Pixels, Pixels, Mask] | None:
    """Both at the resolution of the coarser one, and where they overlap; None where the crop is too small or skewed."""
    height, width = whole.shape[:2]
    area = abs(float(np.linalg.det(warp[:, :2])))  # px of the piece per px of the whole
    covered = piece.shape[0] * piece.shape[1] / max(area, 1e-6) / (height * width)
    shear = abs(warp[0, 1]) + abs(warp[1, 0])
    uneven = abs(np.log(max(abs(warp[0, 0] / max(warp[1, 1], 1e-6)), 1e-6)))
    if not SMALLEST_CROP * 0.98 <= covered <= 1.1 or shear > 0.05 * area**0.5 or uneven > 2 * SAME_ASPECT:
        return None
    if area > 1:
        smaller = sized(piece, *(max(1, round(side * area**-0.5)) for side in piece.shape[:2]))
        warp, piece = after(warp, stretch(piece.shape, smaller.shape)), smaller
    elif area < 0.8:
        smaller = sized(whole, *(max(1, round(side * area**0.5)) for side in whole.shape[:2]))
        warp, whole = after(stretch(smaller.shape, whole.shape), warp), smaller
    size = whole.shape[1], whole.shape[0]
    if whole.shape == piece.shape and np.abs(warp - np.eye(2, 3)).max() < 1e-3:
        return whole, piece, np.ones(whole.shape[:2], bool)
    linear, nearest = (way | cv2.WARP_INVERSE_MAP for way in (cv2.INTER_LINEAR, cv2.INTER_NEAREST))
    laid = np.asarray(cv2.warpAffine(piece, warp, size, flags=linear, borderMode=cv2.BORDER_REPLICATE), np.uint8)
    covers = cv2.warpAffine(np.ones(piece.shape[:2], np.uint8), warp, size, flags=nearest)
    inside = np.asarray(cv2.erode(covers, AROUND)) > 0
    return (whole, laid, inside) if inside.mean() >= SMALLEST_CROP * 0.9 else None


def _coloured(whole: Pixels, laid: Pixels, inside: Mask) -> Iterator[tuple[Pixels, Pixels]]:
    """Both as they are, if their colours are near; then one in the colours of the other, the likelier way first."""
    seen, cuts = zip(*(_colours(image, inside) for image in (whole, laid)), strict=True)
    if len(seen[0]) == 0:
        return
    off = np.abs(seen[0] - seen[1]).max(axis=1)
    kept = bool(np.mean(off < KEPT) > 0.5)
    if np.median(off) <= MOST_OFF:
        yield whole, laid
    if max(float(colours.std(axis=0).max()) for colours in seen) < FLAT:
        return
    found = []
    for number, (plain, changed, cut) in enumerate(((*seen, cuts[1]), (*seen[::-1], cuts[0]))):
        for change in recolourings(plain, changed, cut, tints=not kept):
            error = np.minimum(np.abs(change.on(plain) - changed).max(axis=1), 3 * MOST_OFF)
            if np.median(error) <= MOST_OFF and change.likely(kept):
                found.append((float(error.mean()), number, change))
    for _, number, change in sorted(found, key=lambda one: one[0])[:TRIES]:
        yield (change.of(whole), laid) if number == 0 else (whole, change.of(laid))


def _colours(image: Pixels, inside: Mask) -> tuple[Colours, Mask]:
    """The colours of all places that are wholly inside, and which of their channels were cut."""
    scale = min(1.0, COLOUR_SIDE / max(image.shape[:2]))
    shape = [max(1, round(side * scale)) for side in image.shape[:2]]
    within = sized(inside.astype(np.float32), *shape) > 0.999
    cut = sized(((image <= 4) | (image >= 251)).astype(np.float32), *shape) > CUT
    return sized(image, *shape)[within].astype(np.float64), cut[within]


def _agreement(a: Pixels, b: Pixels, inside: Mask) -> float:
    """1 less what the worst place stands out by: what it differs beyond what is usual.

    What differs everywhere is the work of an encoder or of a recolouring that was not quite explained.
    What differs at one place only is another thing.
    """
    a, b = (np.asarray(cv2.GaussianBlur(image, (0, 0), SOFT), np.uint8) for image in (a, b))
    levels = cv2.absdiff(a, b)
    levels = cv2.max(cv2.max(levels[..., 0], levels[..., 1]), levels[..., 2])
    levels[~inside] = 0
    found = np.asarray(cv2.blur(levels, (PLACE, PLACE), borderType=cv2.BORDER_REFLECT_101))
    counts = np.bincount(found[inside], minlength=256).cumsum()
    usual, worst = int(np.searchsorted(counts, USUAL * counts[-1])), int(np.searchsorted(counts, counts[-1]))
    if usual > MOST_USUAL:
        return 0.0
    return float(max(0.0, 1 - (1 - COPY) * (worst - usual) / WORST))
