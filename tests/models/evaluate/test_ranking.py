"""Right items among the first k, against counting every order by hand."""

from itertools import pairwise, permutations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from models.evaluate.ranking import chance, hits


def counted(scores: list[int], right: list[bool], k: int) -> float:
    """The share of all orders of the items, best first, that have a right one among the first k."""
    orders = [order for order in permutations(range(len(scores))) if _falls([scores[item] for item in order])]
    return float(np.mean([any(right[item] for item in order[:k]) for order in orders]))


def _falls(scores: list[int]) -> bool:
    return all(one >= other for one, other in pairwise(scores))


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=5), st.integers(1, 6))
def test_ties_count_as_often_as_a_shuffle_would_have_them(items: list[tuple[int, bool]], k: int) -> None:
    scores, right = [score for score, _ in items], [True, *(is_right for _, is_right in items[1:])]
    found = hits(np.array([scores], np.float32), np.array([right]), (k,))
    assert found[0, 0] == pytest.approx(counted(scores, right, k))


def scores_of(queries: int, items: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((queries, items)).astype(np.float32)


def test_without_ties_it_is_what_scikit_learn_gives() -> None:
    scores, labels = scores_of(200, 12), np.random.default_rng(1).integers(0, 12, 200)
    for k, found in zip((1, 3, 5), hits(scores, labels[:, None] == np.arange(12), (1, 3, 5)), strict=True):
        assert found.mean() == pytest.approx(top_k_accuracy_score(labels, scores, k=k, labels=np.arange(12)))
        assert set(np.unique(found)) == {0.0, 1.0}


def test_random_scores_come_to_chance() -> None:
    right = np.random.default_rng(2).random((20_000, 10)) < 0.2
    right[:, 0] |= ~right.any(1)
    for k, found in zip((1, 3, 10), hits(scores_of(20_000, 10), right, (1, 3, 10)), strict=True):
        assert found.mean() == pytest.approx(chance(10, right.sum(1), k).mean(), abs=0.01)


def test_equal_scores_are_chance_and_no_more() -> None:
    right = np.eye(8, dtype=bool)[:, :6] | np.eye(6, dtype=bool)[np.arange(8) % 6]
    found = hits(np.ones((8, 6), np.float32), right, (1, 5))
    np.testing.assert_allclose(found, np.stack([chance(6, right.sum(1), k) for k in (1, 5)]))


@pytest.mark.parametrize(("items", "right", "k", "expected"), [
    (200, 1, 1, 1 / 200), (200, 1, 10, 10 / 200), (10, 3, 1, 0.3), (10, 3, 2, 1 - 7 / 10 * 6 / 9), (4, 2, 3, 1),
])  # fmt: skip
def test_chance_has_a_closed_form(items: int, right: int, k: int, expected: float) -> None:
    assert chance(items, np.array([right]), k)[0] == pytest.approx(expected)


def test_a_query_without_a_right_item_is_an_error() -> None:
    with pytest.raises(ValueError, match="query 1 has no right item"):
        hits(scores_of(2, 3), np.array([[True, False, False], [False, False, False]]), (1,))


def test_a_score_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="no number"):
        hits(np.array([[1.0, np.nan]], np.float32), np.array([[True, False]]), (1,))
