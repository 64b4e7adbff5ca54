"""Matching: the cross-entropy of pairs, but for those that nothing is known of."""

import math

import pytest
import torch

from models.objectives.matching import Matching

LOGITS = torch.tensor([[[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [3.0, 0.0], [9.0, 0.0]]])


def test_it_is_the_mean_over_all_pairs() -> None:
    labels = torch.tensor([[1, 0, 0], [1, 0, 1]])
    total, count = Matching()({"match": LOGITS, "match_labels": labels}, {})
    likely = LOGITS.softmax(-1)
    expected = -sum(math.log(likely[n, k, labels[n, k]]) for n in range(2) for k in range(3))
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert count == 6


def test_pairs_without_a_label_do_not_count() -> None:
    total, count = Matching()({"match": LOGITS, "match_labels": torch.tensor([[1, -100, -100], [1, 0, -100]])}, {})
    likely = LOGITS.softmax(-1)
    expected = -(likely[0, 0, 1].log() + likely[1, 0, 1].log() + likely[1, 1, 0].log())
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    assert count == 3


def test_who_cannot_tell_pays_the_logarithm_of_two() -> None:
    total, count = Matching()({"match": torch.zeros(5, 3, 2), "match_labels": torch.ones(5, 3).long()}, {})
    assert float(total / count) == pytest.approx(math.log(2))


def test_a_model_that_matches_nothing_is_told() -> None:
    with pytest.raises(ValueError, match="no features 'match'; this model gives image, text"):
        Matching()({"image": LOGITS, "text": LOGITS}, {})
