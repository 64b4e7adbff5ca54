"""One number of an evaluation, with what it takes to judge it: how far it may be off, and what guessing gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Groups = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Metric:
    """A row of the table that an evaluation gives."""

    set: str
    """The evaluation set, by the name of its folder."""
    task: str
    """As CLIP_benchmark names it: `zeroshot_classification`, `zeroshot_retrieval`, `linear_probe`, …"""
    metric: str
    """As CLIP_benchmark names it: `acc1`, `image_retrieval_recall@5`, …"""
    value: float
    standard_error: float | None
    """Of the value over other samples of the same kind; None where there is no closed form, or too few samples."""
    chance: float | None
    """What a model scores that cannot tell anything apart."""
    samples: int
    """What the value is a mean over: images, texts or classes."""


PLAIN = frozenset({"perplexity", "bits_per_byte"})
"""Metrics that are no share of anything."""


def shown(metric: Metric) -> tuple[str, str, str]:
    """Value, standard error and chance as people read them; nothing for what is not known."""
    form = "{:.4g}" if metric.metric in PLAIN else "{:.1%}"
    about = (metric.value, metric.standard_error, metric.chance)
    return tuple("" if value is None else form.format(value) for value in about)  # type: ignore[return-value]


def mean(values: Values, groups: Groups | None = None) -> tuple[float, float | None]:
    """The mean and its standard error; of values that belong to one group, each tells less than one alone.

    Residuals are summed up within groups before they are squared (Liang & Zeger 1986, with G / (G - 1) for G groups):
    without groups this is the deviation of the sample over the root of its size.
    """
    value = float(values.mean())
    residuals: Values = values - value
    if groups is not None:
        residuals = np.bincount(groups, residuals)[np.unique(groups)].astype(np.float64)
    count = len(residuals)
    if count < 2:
        return value, None
    return value, float(np.sqrt(count / (count - 1) * (residuals**2).sum()) / len(values))


def mean_of_classes(values: Values, classes: Groups) -> tuple[float, float | None]:
    """The mean of the classes' means, and its standard error; None where a class has one sample."""
    _, of, counts = np.unique(classes, return_inverse=True, return_counts=True)
    means = np.bincount(of, values) / counts
    if (counts < 2).any():
        return float(means.mean()), None
    variances = np.bincount(of, (values - means[of]) ** 2) / (counts - 1) / counts
    return float(means.mean()), float(np.sqrt(variances.sum()) / len(counts))
