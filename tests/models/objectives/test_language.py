"""The next token: smoothed targets and the softmax's denominator, written out."""

import pytest
import torch

from models.objectives.language import NOT_LEARNT, NextToken

LOGITS = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([[1, NOT_LEARNT, 4], [0, 0, NOT_LEARNT]])
LEARNT = [(0, 0, 1), (0, 2, 4), (1, 0, 0), (1, 1, 0)]


@pytest.mark.parametrize(("smoothing", "z"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01), (0.2, 0.01)])
def test_a_share_of_the_target_lies_on_all_tokens_and_the_denominator_is_kept_small(smoothing: float, z: float) -> None:
    loss = NextToken(smoothing=smoothing, z=z)({"logits": LOGITS, "labels": LABELS}, {})
    expected = 0.0
    for row, place, label in LEARNT:
        logits = LOGITS[row, place]
        likely = logits.log_softmax(0)
        expected -= float((1 - smoothing) * likely[label] + smoothing * likely.mean())
        expected += z * float(logits.exp().sum().log() ** 2)
    assert int(loss.count) == len(LEARNT)
    assert float(loss.total) == pytest.approx(expected, rel=1e-12)
