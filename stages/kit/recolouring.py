"""Whether one change of all colours makes one image of another: brightness, contrast, saturation, a tint, greyscale.

    changed = luma gain * luma + colour gain * (rgb - luma) + offset, cut to 0..255

A thing of another colour on an unchanged ground would be explained by a strong enough change of the whole. So every
colour counts the same, however large its area; no gain is far from one; and where most of the image has kept its
colours, gains are bound closer and all channels have one offset.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

LUMA = np.array([0.299, 0.587, 0.114])
STEP = 16
"""Levels of a channel that are taken for one colour."""
MOST_OF_ONE = 8
"""Places of one colour that count at most."""
ROUNDS = 6
OUTLIER = 6.0
"""Levels by which a colour may be off before it counts less."""
RIDGE = 0.2
GAIN_SPREAD, OFFSET_SPREAD = 0.5, 40.0
"""Gains and offsets are drawn to no change, as if it had been seen with this much doubt."""
CUT = 0.1
"""The share of a place that was cut at 0 or 255, from which on its mean says only that it would have been beyond."""
CUT_COUNTS = 0.01

Colours = npt.NDArray[np.float64]
"""(places, 3), in levels of 255."""
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Recolouring:
    """Offsets are for red, green and blue."""

    luma: float
    colour: float
    offsets: tuple[float, float, float]

    def likely(self, kept: bool) -> bool:
        """Whether people do that to pictures; `kept`: most of the image has kept its colours."""
        lowest, highest = (0.7, 1.4) if kept else (0.5, 1.9)
        faintest, strongest = (0.55, 1.7) if kept else (-0.05, 2.2)
        span = max(self.offsets) - min(self.offsets)
        return (
            lowest <= self.luma <= highest
            and faintest <= self.colour <= strongest
            and max(map(abs, self.offsets)) <= 110
            and span <= 90
        )

    def on(self, colours: Colours) -> Colours:
        """Colours (places, 3) in their new colours."""
        luma = (colours @ LUMA)[:, None]
        changed = self.luma * luma + self.colour * (colours - luma) + self.offsets
        return np.asarray(np.clip(changed, 0, 255), np.float64)

    def of(self, image: Image) -> Image:
        """The image in its new colours."""
        matrix = np.outer(np.ones(3), LUMA) * (self.luma - self.colour) + np.eye(3) * self.colour
        return np.asarray(cv2.transform(image, np.hstack([matrix, np.array(self.offsets)[:, None]])))


def recolourings(plain: Colours, changed: Colours, cut: npt.NDArray[np.bool_], tints: bool) -> Iterator[Recolouring]:
    """What makes `plain` most like `changed`: without a tint, and with one. `cut`: where `changed` hit 0 or 255."""
    before, after, beyond, weights = _palette(plain, changed, cut)
    luma = np.repeat((before @ LUMA)[:, None], 3, axis=1)
    one = np.ones_like(luma)
    known = _fitted(np.stack([luma, before - luma, one], axis=2), after, beyond, weights)
    yield Recolouring(known[0], known[1], (known[2],) * 3)
    if tints:
        channels = np.eye(3)[None] * one[:, :, None]
        known = _fitted(np.concatenate([before[:, :, None], channels], axis=2), after, beyond, weights)
        yield Recolouring(known[0], known[0], (known[1], known[2], known[3]))


def _palette(
    plain: Colours, changed: Colours, cut: npt.NDArray[np.bool_]
) -> tuple[Colours, Colours, npt.NDArray[np.bool_], Colours]:
    """The colours of `plain`, what became of each, which channels of that were cut, and how much each counts."""
    steps = plain.astype(np.int64) // STEP
    _, of, counts = np.unique(steps @ [1 << 16, 1 << 8, 1], return_inverse=True, return_counts=True)
    means = [
        np.stack([np.bincount(of, values[:, channel]) for channel in range(3)], axis=1) / counts[:, None]
        for values in (plain, changed, cut.astype(np.float64))
    ]
    return means[0], means[1], means[2] > 0.5, np.minimum(counts, MOST_OF_ONE).astype(np.float64)


def _fitted(
    terms: npt.NDArray[np.float64], target: Colours, beyond: npt.NDArray[np.bool_], weights: Colours
) -> list[float]:
    """Factors of the terms (places, 3, terms): the gains first, which are 1 without a change, then the offsets."""
    gains = terms.shape[2] - (1 if terms.shape[2] == 3 else 3)
    doubt = np.array([GAIN_SPREAD] * gains + [OFFSET_SPREAD] * (terms.shape[2] - gains))
    ridge = np.diag(RIDGE * weights.sum() / doubt**2)
    usual = np.array([1.0] * gains + [0.0] * (terms.shape[2] - gains))
    design = terms.reshape(-1, terms.shape[2])
    trust = weights[:, None] * np.where(beyond, CUT_COUNTS, 1.0)
    factors = usual
    for _ in range(ROUNDS):
        scaled = design * trust.reshape(-1, 1)
        factors = np.linalg.solve(design.T @ scaled + ridge, scaled.T @ target.ravel() + ridge @ usual)
        error = np.abs(np.clip((design @ factors).reshape(-1, 3), 0, 255) - target)
        counted = np.where(beyond, 0, error).max(axis=1)
        trust = (weights / (1 + (counted / OUTLIER) ** 2))[:, None] * np.where(beyond, CUT_COUNTS, 1.0)
    return [float(factor) for factor in factors]
