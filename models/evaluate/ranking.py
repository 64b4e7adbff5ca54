"""Whether something right is among the first k, where scores may tie.

Items of equal score count as often as they would come first if they were shuffled, so that a model which gives
everything the same score gets what chance gives: neither nothing nor everything. Libraries that sort break ties by
position instead (scikit-learn's `top_k_accuracy_score` takes the later item, torch's `topk` any), which rewards or
punishes the order of a file; without ties they give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.evaluate.metric import Values

Scores = npt.NDArray[np.float32]
Right = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


def hits(scores_qi: Scores, right_qi: Right, ks: Sequence[int]) -> Values:
    """float64 (k, queries) in [0, 1]: whether one of a query's right items is among its k best.

    Raises `ValueError` where a query has no right item, or a score is no number.
    """
    if not right_qi.any(1).all():
        raise ValueError(f"query {int(np.argmin(right_qi.any(1)))} has no right item; expected one or more")
    if not np.isfinite(scores_qi).all():
        raise ValueError("a score is no number; expected finite embeddings")
    best_q1 = np.where(right_qi, scores_qi, -np.inf).max(1, keepdims=True)
    above = (scores_qi > best_q1).sum(1)  # none of them is right: the best right one is the best of them
    tied_qi = scores_qi == best_q1
    tied_wrong, tied_right = (tied_qi & ~right_qi).sum(1), (tied_qi & right_qi).sum(1)
    return np.stack([_within(k - above, tied_wrong, tied_right) for k in ks])


def chance(items: int, right: Counts, k: int) -> Values:
    """The same where all items tie: 1 - C(items - right, k) / C(items, k)."""
    return _within(np.full(right.shape, k), items - right, right)


def _within(places: Counts, wrong: Counts, right: Counts) -> Values:
    """The chance that a shuffle of so many wrong and right items has a right one in the first places."""
    none = np.ones(places.shape)
    for place in range(int(places.max(initial=0))):
        left = np.maximum(wrong + right - place, 1)
        none = np.where(place < places, none * np.maximum(wrong - place, 0) / left, none)
    return 1 - none
