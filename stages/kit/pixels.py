"""Whether two images are copies of each other: laid over each other, brought to the same colours, compared bit by bit.

A copy may be encoded anew, resized, cropped (to 60 % of the area and a little more) and recoloured as a whole:
brightness, contrast, saturation, a tint, greyscale. A picture in which one thing is different is no copy, however small
the thing: what counts is the worst place, not the mean. Mirror images are no copies: their captions would be wrong.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.rows import FORMATS, MAX_PIXELS

SIDE = 256
"""Longest side in px at which images are compared: the smallest object of a scene spans 10 of them."""
FIND_SIDE, ALIGN_SIDE = 64, 128
"""Longest sides in px at which a crop is looked for, and at which it is aligned to a fraction of a pixel."""
SMALLEST_CROP = 0.5
"""Of the area: the least that counts, a little below the 60 % that are to be found."""
SCALE_STEP = 1.03
ALIGN_STEPS = 30
SOFT = 0.8
"""Pixels by which both are blurred before they are compared: resizing makes one a little softer than the other."""
FOUND = 0.6
"""The least correlation of a crop with the place where it was found."""
SAME_ASPECT = 0.06
WORST = 64.0
"""Levels of 255 by which the worst place differs where nothing agrees any more."""
COPY = 0.75
"""The least agreement of copies: nowhere do 5 x 5 px stand out by more than 16 levels, if one was cropped."""
STRICT = 0.6
"""Of that is allowed where the whole images lie on each other: nothing blurs what differs then."""
USUAL = 0.75
"""The share of all places that says what difference is usual. A thing that moved changes up to a fifth of them."""
MOST_USUAL = 24.0
"""Levels by which so many places may differ; beyond, it is another picture."""
MOST_WORST = 36.0
"""Levels by which no place of a copy differs, whatever is usual."""
FORGIVING = 4.0
"""Levels of usual difference by which twice as much may stand out."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Pixels = npt.NDArray[np.float32]
Grid = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sight:
    """An image as it is compared: float32 (height, width, 3), RGB in 0 to 255, at most `SIDE` px long."""

    rgb_hwc: Pixels


@dataclass(frozen=True)
class Verdict:
    """`agreement` is 1 where every place agrees, and 0 where one differs by `WORST` levels; copies reach `COPY`."""

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
        rgb_hwc = np.asarray(image.convert("RGB"))
    return Sight(_within(rgb_hwc, SIDE))


def agreement(a: Sight, b: Sight) -> Verdict:
    """The best agreement over the ways in which one may lie on the other."""
    best = 0.0
    for whole, piece, warp in _ways(a.rgb_hwc, b.rgb_hwc):
        best = max(best, _agreement(whole, piece, warp))
        if best >= COPY:
            break
    return Verdict(best)


# -- where one lies on the other ---------------------------------------------------------------------------------------


def _ways(a: Pixels, b: Pixels) -> Iterator[tuple[Pixels, Pixels, Grid]]:
    """(whole, piece, affine map 2 x 3 from the whole's pixels to the piece's), the likeliest first."""
    aspect = (a.shape[1] * b.shape[0]) / (a.shape[0] * b.shape[1])
    if abs(np.log(aspect)) < SAME_ASPECT and _alike(a, b):
        yield from _aligned(a, b, _stretch(a, b))
    crops = [*_crops(a, b), *_crops(b, a)]
    for _, whole, piece, warp in sorted(crops, key=lambda crop: -crop[0])[:2]:
        yield from _aligned(whole, piece, warp)


def _alike(a: Pixels, b: Pixels) -> bool:
    """Whether two whole images correlate, or have nothing that could."""
    small = [_sized(_luma(image), 32, 32) for image in (a, b)]
    small = [image - image.mean() for image in small]
    size = [float(np.linalg.norm(image)) for image in small]
    return min(size) < 32 or float((small[0] * small[1]).sum()) >= FOUND * size[0] * size[1]


def _stretch(whole: Pixels, piece: Pixels) -> Grid:
    """The piece's four corners on those of the whole; pixels are squares whose centres are at halves."""
    x, y = piece.shape[1] / whole.shape[1], piece.shape[0] / whole.shape[0]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]], np.float32)


def _crops(whole: Pixels, piece: Pixels) -> list[tuple[float, Pixels, Pixels, Grid]]:
    """Where the piece correlates with the whole best, over all scales at which it is at least `SMALLEST_CROP` of it."""
    small = _within(_luma(whole), FIND_SIDE)
    luma = _luma(piece)
    height, width = small.shape
    largest = min(height / piece.shape[0], width / piece.shape[1])
    smallest = (SMALLEST_CROP * height * width / (piece.shape[0] * piece.shape[1])) ** 0.5
    if smallest > largest * 1.01 or small.std() < 1 or luma.std() < 1:
        return []
    best: list[tuple[float, Pixels, Pixels, Grid]] = []
    scale = largest
    while scale >= smallest / 1.01:
        shape = (min(height, round(piece.shape[0] * scale)), min(width, round(piece.shape[1] * scale)))
        if min(shape) < 8:
            break
        template = _sized(luma, *shape)
        found = cv2.matchTemplate(small, template, cv2.TM_CCOEFF_NORMED)
        _, score, _, (left, top) = cv2.minMaxLoc(found)
        if score >= FOUND:
            x, y = piece.shape[1] / shape[1], piece.shape[0] / shape[0]  # small px -> piece px
            u, v = width / whole.shape[1], height / whole.shape[0]  # whole px -> small px
            warp = [[u * x, 0, ((u - 1) / 2 + 0.5 - left) * x - 0.5], [0, v * y, ((v - 1) / 2 + 0.5 - top) * y - 0.5]]
            best.append((float(score), whole, piece, np.array(warp, np.float32)))
        scale /= SCALE_STEP
    return sorted(best, key=lambda crop: -crop[0])[:2]


def _aligned(whole: Pixels, piece: Pixels, warp: Grid) -> Iterator[tuple[Pixels, Pixels, Grid]]:
    """The guess, then the guess after Evangelidis & Psarakis 2008 (ECC) have aligned it."""
    yield whole, piece, warp
    small, other = _within(_luma(whole), ALIGN_SIDE), _within(_luma(piece), ALIGN_SIDE)
    down, up = _stretch(small, whole), _stretch(piece, other)
    guess = _after(_after(down, warp), up)
    try:
        _, found = cv2.findTransformECC(
            small, other, guess, cv2.MOTION_AFFINE,
            (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ALIGN_STEPS, 1e-4), np.ones(other.shape, np.uint8), 3,
        )  # fmt: skip
    except cv2.error:  # nothing to hold on to, or it ran away
        return
    yield whole, piece, _after(_after(_stretch(whole, small), np.asarray(found, np.float32)), _stretch(other, piece))


def _after(first: Grid, second: Grid) -> Grid:
    """One affine map after the other."""
    last = np.array([[0, 0, 1]], np.float32)
    return np.asarray((np.vstack([second, last]) @ np.vstack([first, last]))[:2], np.float32)


# -- how they differ ---------------------------------------------------------------------------------------------------


def _agreement(whole: Pixels, piece: Pixels, warp: Grid) -> float:
    """1 less the worst place's difference, over where they overlap; 0 where the crop would be too small or skewed."""
    height, width = whole.shape[:2]
    area = abs(float(np.linalg.det(warp[:, :2])))  # px of the piece per px of the whole
    covered = piece.shape[0] * piece.shape[1] / max(area, 1e-6) / (height * width)
    shear = abs(warp[0, 1]) + abs(warp[1, 0])
    stretch = abs(np.log(max(abs(warp[0, 0] / max(warp[1, 1], 1e-6)), 1e-6)))
    if not SMALLEST_CROP * 0.97 <= covered <= 1.1 or shear > 0.05 * area**0.5 or stretch > 2 * SAME_ASPECT:
        return 0.0
    if area > 1:  # the piece has more pixels than it is compared at
        smaller = _sized(piece, *(max(1, round(side * area**-0.5)) for side in piece.shape[:2]))
        warp, piece = _after(warp, _stretch(piece, smaller)), smaller
    elif area < 0.8:  # the whole has more than the piece can answer for
        smaller = _sized(whole, *(max(1, round(side * area**0.5)) for side in whole.shape[:2]))
        warp, whole = _after(_stretch(smaller, whole), warp), smaller
    size = whole.shape[1], whole.shape[0]
    linear, nearest = (way | cv2.WARP_INVERSE_MAP for way in (cv2.INTER_LINEAR, cv2.INTER_NEAREST))
    laid = np.asarray(cv2.warpAffine(piece, warp, size, flags=linear, borderMode=cv2.BORDER_REPLICATE), np.float32)
    covers = cv2.warpAffine(np.ones(piece.shape[:2], np.uint8), warp, size, flags=nearest)
    inside = np.asarray(cv2.erode(covers, np.ones((3, 3), np.uint8))) > 0
    if inside.mean() < SMALLEST_CROP * 0.9:
        return 0.0
    whole, laid = (np.asarray(cv2.GaussianBlur(image, (0, 0), SOFT), np.float32) for image in (whole, laid))
    allowed = 1.0 if covered < 1 - SAME_ASPECT / 2 else STRICT
    worst = min(_worst(whole, laid, inside, allowed), _worst(laid, whole, inside, allowed))
    return max(0.0, 1 - worst / (WORST * allowed))


def _worst(plain: Pixels, changed: Pixels, inside: Mask, allowed: float) -> float:
    """The least difference at the worst place, over the recolourings of `plain` that explain `changed`."""
    worst = _difference(plain, changed, inside)
    if plain[inside].std(axis=0).max() < FLAT:  # any colour is a recolouring of an empty image
        return worst
    alike = (np.abs(plain - changed).max(axis=2) < STEADY)[inside].mean()
    for model in RECOLOURINGS:
        if worst <= (1 - COPY) * WORST * allowed:
            break
        if alike <= model.most_alike:
            recoloured = model.fitted(plain, changed, inside)
            if recoloured is not None:
                worst = min(worst, _difference(recoloured, changed, inside))
    return worst


def _difference(a: Pixels, b: Pixels, inside: Mask) -> float:
    """How much the worst 5 x 5 px stand out, in levels: what they differ beyond what is usual.

    A pixel differs by how far it is from everything that the other image has within a pixel around it. What differs
    everywhere is the work of an encoder or of a recolouring that was not quite explained; where that is strong, more
    is forgiven. What differs at one place only is another thing.
    """
    around = np.ones((3, 3), np.uint8)
    over = np.maximum(a - cv2.dilate(b, around), cv2.erode(b, around) - a)
    under = np.maximum(b - cv2.dilate(a, around), cv2.erode(a, around) - b)
    levels = np.maximum(np.maximum(over, under), 0).max(axis=2)
    levels[~inside] = 0
    places = cv2.blur(levels, (5, 5), borderType=cv2.BORDER_REFLECT_101)
    usual = float(np.quantile(places[inside], USUAL))
    worst = float(places.max())
    if usual > MOST_USUAL or worst > MOST_WORST:
        return WORST
    return (worst - usual) / (1 + usual / FORGIVING)


# -- colours -----------------------------------------------------------------------------------------------------------

FLAT = 6.0
"""Levels of standard deviation below which an image has no colours that could be changed together."""
STEADY = 8.0
"""Levels below which a pixel has kept its colour."""
FIT_PIXELS = 4096
ROUNDS = 6


@dataclass(frozen=True)
class Recolouring:
    """A change of all colours: changed = luma gain * luma + colour gain * (rgb - luma) + offset, cut to 0..255.

    Where most pixels kept their colours, only what keeps them may have happened: a thing of another colour on an
    unchanged ground would otherwise be explained by a change of the whole.
    """

    columns: tuple[tuple[str, ...], ...]
    """The terms that share one factor: `luma`, `colour`, `offset`, or one channel of them, such as `luma.r`."""
    most_alike: float
    """The share of pixels that may have kept their colours."""

    def fitted(self, plain: Pixels, changed: Pixels, inside: Mask) -> Pixels | None:
        """`plain` recoloured to be like most of `changed`; None where that would take an unlikely change."""
        terms = self._terms(plain)
        rows = np.flatnonzero(inside)
        rows = rows[:: max(1, len(rows) // FIT_PIXELS)]
        design = np.stack([term.reshape(-1, 3)[rows].ravel() for term in terms], axis=1).astype(np.float64)
        target = changed.reshape(-1, 3)[rows].ravel().astype(np.float64)
        prior = np.array([0.0 if name[0].startswith("offset") else 1.0 for name in self.columns])
        spread = np.array([40.0 if name[0].startswith("offset") else 0.5 for name in self.columns])
        fixed = self._fixed(plain).reshape(-1, 3)[rows].ravel()
        weights = ((target > 2) & (target < 253)).astype(np.float64) + 0.05
        factors = prior
        for _ in range(ROUNDS):
            scaled = design * weights[:, None]
            # A ridge towards no change, as strong as a thousandth of the pixels being off by ten levels.
            ridge = np.diag(len(target) * 1e-3 * 100.0 / spread**2)
            factors = np.linalg.solve(design.T @ scaled + ridge, scaled.T @ (target - fixed) + ridge @ prior)
            error = np.abs(np.clip(design @ factors + fixed, 0, 255) - target)
            weights = (1.0 / (1.0 + (error / 6.0) ** 2)) * (((target > 2) & (target < 253)) + 0.05)
        if not self._likely(factors):
            return None
        recoloured = sum(factor * term for factor, term in zip(factors, terms, strict=True)) + self._fixed(plain)
        return np.asarray(np.clip(recoloured, 0, 255), np.float32)

    def _terms(self, plain: Pixels) -> list[Pixels]:
        luma = (plain @ LUMA)[..., None] * np.ones(3, np.float32)
        known = {"luma": luma, "colour": plain - luma, "offset": np.ones_like(plain)}
        found = []
        for names in self.columns:
            term = np.zeros_like(plain)
            for name in names:
                kind, _, channel = name.partition(".")
                where = slice(None) if not channel else slice("rgb".index(channel), "rgb".index(channel) + 1)
                term[..., where] += known[kind][..., where]
            found.append(term)
        return found

    def _fixed(self, plain: Pixels) -> Pixels:
        """What no factor moves."""
        named = {name.partition(".")[0] for names in self.columns for name in names}
        luma = (plain @ LUMA)[..., None] * np.ones(3, np.float32)
        fixed = np.zeros_like(plain)
        if "luma" not in named:
            fixed += luma
        if "colour" not in named:
            fixed += plain - luma
        return fixed

    def _likely(self, factors: npt.NDArray[np.float64]) -> bool:
        by_kind: dict[str, list[float]] = {}
        for names, factor in zip(self.columns, factors, strict=True):
            for name in names:
                by_kind.setdefault(name.partition(".")[0], []).append(float(factor))
        for kind, (low, high, apart) in LIKELY.items():
            found = by_kind.get(kind, [])
            if found and not (low <= min(found) and max(found) <= high and max(found) - min(found) <= apart):
                return False
        return True


LIKELY = {"luma": (0.4, 2.2, 0.5), "colour": (-0.05, 2.5, 0.0), "offset": (-110.0, 110.0, 90.0)}
"""Least and largest factor, and how far those of the channels may be apart."""
RECOLOURINGS = (
    Recolouring((("colour",),), 1.0),
    Recolouring((("luma", "colour"), ("offset",)), 0.6),
    Recolouring((("luma",), ("colour",), ("offset",)), 0.6),
    Recolouring((("luma.r",), ("luma.g",), ("luma.b",), ("colour",), ("offset.r",), ("offset.g",), ("offset.b",)), 0.4),
)
"""From the simplest on: saturation; brightness and contrast; all of these; with a tint."""


def _luma(rgb_hwc: Pixels) -> Pixels:
    return np.asarray(rgb_hwc @ LUMA, np.float32)


def _within(image: npt.NDArray[Any], side: int) -> Pixels:
    """Not larger than `side`."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return np.asarray(image, np.float32)
    return _sized(image, max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))


def _sized(image: npt.NDArray[Any], height: int, width: int) -> Pixels:
    """Made smaller, every pixel the mean of those that it covers."""
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.float32)
