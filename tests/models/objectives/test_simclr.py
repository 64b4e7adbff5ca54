"""NT-Xent is what its paper says, on one process; `test_contrastive.py` has it on several."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.objectives.simclr import Normed, SimCLR


def views(rows: int = 6, width: int = 8) -> torch.Tensor:
    return torch.randn(rows, 2, width, generator=torch.Generator().manual_seed(0))


def test_views_that_are_all_alike_cost_the_logarithm_of_how_many_others_there_are() -> None:
    total, count = SimCLR(8, 16, 4)({"views": views()[:1, :1].expand(20, 2, 8)}, {})
    assert float(total.detach() / count) == pytest.approx(math.log(2 * 20 - 1), rel=1e-6)


def test_the_loss_is_a_mean_over_all_views_of_what_the_paper_writes() -> None:
    torch.manual_seed(0)
    objective, seen = SimCLR(8, 16, 4, temperature=0.5), views()
    total, count = objective({"views": seen}, {})
    heads = [objective.head(seen[:, one]) for one in (0, 1)]  # each normalised by its own view's batch
    rows = functional.normalize(torch.cat(heads), dim=-1).tolist()
    alike = [[math.exp(sum(a * b for a, b in zip(one, other, strict=True)) / 0.5) for other in rows] for one in rows]
    lost = [-math.log(alike[i][(i + 6) % 12] / sum(alike[i][k] for k in range(12) if k != i)) for i in range(12)]
    assert float(total.detach() / count) == pytest.approx(sum(lost) / 12, rel=1e-5)


def test_views_are_normalised_apart() -> None:
    """So that one which is brighter than the other, in all of its rows, is none the less like it."""
    objective, seen = SimCLR(8, 16, 4), views()
    shifted = torch.stack([seen[:, 0], seen[:, 1] + 3], dim=1)
    torch.testing.assert_close(objective({"views": shifted}, {}), objective({"views": seen}, {}), atol=1e-4, rtol=1e-4)


def test_the_order_of_the_views_says_nothing() -> None:
    objective, seen = SimCLR(8, 16, 4), views()
    torch.testing.assert_close(objective({"views": seen}, {}), objective({"views": seen.flip(1)}, {}))


def test_normalisation_is_torchs() -> None:
    rows, own, theirs = views().flatten(0, 1), Normed(8), nn.BatchNorm1d(8)
    with torch.no_grad():
        for one in (own, theirs):
            one.weight.copy_(torch.arange(8.0))
            one.bias.fill_(0.5)
    torch.testing.assert_close(own(rows), theirs(rows))


@pytest.mark.parametrize(
    ("features", "told"),
    [
        ({}, r"views of an image: none; expected 2: data.kind = pairs_and_views"),
        ({"views": torch.zeros(3, 4, 8)}, r"views of an image: 4; expected 2: .*data.crops.count = 2"),
        ({"views": torch.zeros(3, 2, 9)}, r"width = 8: the model gives 'views' of 9 numbers; set width to 9"),
    ],
)
def test_features_that_cannot_be(features: dict[str, torch.Tensor], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SimCLR(8)(features, {})
