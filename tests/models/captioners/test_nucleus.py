"""The draw from a nucleus, against one that is written out in plain Python."""

from itertools import accumulate

import pytest
import torch

from models.captioners.drawing import LIKELY, nucleus


def plain(probs: list[float], top_p: float, uniform: float) -> int:
    """Of the fewest tokens, likeliest first and of equal ones the first, the one that the number falls on."""
    order = sorted(range(len(probs)), key=lambda token: -probs[token])
    sums = [0.0, *accumulate(probs[token] for token in order)]
    kept = sorted(token for token, before in zip(order, sums, strict=False) if before < top_p)
    wanted = uniform * sum(probs[token] for token in kept)
    ends = list(accumulate(probs[token] for token in kept))
    return next((token for token, end in zip(kept, ends, strict=True) if end > wanted), kept[-1])


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("spread", [0.1, 2.0, 8.0])
def test_it_is_the_plain_one_however_wide_the_nucleus_is(spread: float, equal: bool) -> None:
    dice = torch.Generator().manual_seed(0)
    logits_rv = torch.randn(40, 4 * LIKELY, generator=dice) * spread
    if equal:
        logits_rv = logits_rv.sign() * spread / 2  # half of the tokens are as likely as each other
    uniform_r = torch.rand(40, generator=dice, dtype=torch.float64)
    uniform_r[0], uniform_r[1] = 0.0, 1 - 2.0**-53
    found = nucleus(logits_rv, 0.9, uniform_r).tolist()
    probs_rv = logits_rv.softmax(1).tolist()
    assert found == [plain(row, 0.9, number) for row, number in zip(probs_rv, uniform_r.tolist(), strict=True)]
