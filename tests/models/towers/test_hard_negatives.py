"""Wrong partners: never a forbidden one, as likely as their similarity says, the same however they are asked for."""

from __future__ import annotations

import pytest
import torch

from models.towers.hard_negatives import fingerprints, hard_negatives
from models.towers.slow_copy import SlowCopy

MANY = 40_000


def drawn(logits_n: torch.Tensor, forbidden: int, draw: int = 0) -> torch.Tensor:
    """Counts of n over many samples that all see the same."""
    count = len(logits_n)
    barred = torch.zeros(MANY, count, dtype=torch.bool)
    barred[:, forbidden] = True
    chosen, there = hard_negatives(
        logits_n.expand(MANY, -1), barred, 1000 + torch.arange(MANY), torch.arange(count), draw
    )
    assert there.all()
    return torch.bincount(chosen, minlength=count)


def test_they_are_drawn_in_proportion_to_the_softmax_of_those_allowed() -> None:
    logits = torch.tensor([2.0, 0.0, 5.0, 1.0, -1.0])
    expected = logits.index_fill(0, torch.tensor([2]), -torch.inf).softmax(0)
    found = drawn(logits, forbidden=2) / MANY
    assert found[2] == 0
    assert found == pytest.approx(expected, abs=4 * (0.25 / MANY) ** 0.5)


def test_a_place_in_the_order_and_nothing_else_decides() -> None:
    """Another order of the candidates, or a part of the rows, draws the same samples."""
    dice = torch.Generator().manual_seed(0)
    logits, places = torch.randn(12, 12, generator=dice), 100 + torch.arange(12)
    barred = torch.eye(12, dtype=torch.bool)
    chosen, _ = hard_negatives(logits, barred, places, places, 0)
    part, _ = hard_negatives(logits[4:8], barred[4:8], places[4:8], places, 0)
    assert part.tolist() == chosen[4:8].tolist()
    order = torch.randperm(12, generator=dice)
    mixed_up, _ = hard_negatives(logits[:, order], barred[:, order], places, places[order], 0)
    assert order[mixed_up].tolist() == chosen.tolist()


def test_two_draws_of_the_same_samples_and_later_samples_differ() -> None:
    logits, barred, places = torch.zeros(50, 50), torch.eye(50, dtype=torch.bool), torch.arange(50)
    found = [
        hard_negatives(logits, barred, places + start, places + start, draw)[0]
        for start, draw in ((0, 0), (0, 1), (50, 0))
    ]
    for left, right in ((0, 1), (0, 2), (1, 2)):
        assert (found[left] == found[right]).float().mean() < 0.2


def test_where_all_are_forbidden_there_is_none() -> None:
    barred = torch.tensor([[True, True], [True, False]])
    chosen, there = hard_negatives(torch.zeros(2, 2), barred, torch.arange(2), torch.arange(2), 0)
    assert there.tolist() == [False, True]
    assert chosen[1] == 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_equal_rows_and_no_others_have_equal_fingerprints(dtype: torch.dtype) -> None:
    rows = torch.randint(0, 3, (200, 4), generator=torch.Generator().manual_seed(0)).to(dtype)  # of 81 kinds
    found = fingerprints(rows)
    same = (rows[:, None] == rows).all(-1)
    assert ((found[:, None] == found) == same).all()
    assert same.sum() > 200


def test_equal_values_in_other_places_are_another_row() -> None:
    left, right = fingerprints(torch.tensor([[1, 2, 3], [3, 2, 1]]))
    assert left != right


# -- the slow copy -----------------------------------------------------------------------------------------------------


def test_a_slow_copy_follows_by_its_share_and_has_no_parameters() -> None:
    torch.manual_seed(0)
    first = torch.nn.Linear(3, 3)
    tower = torch.nn.Sequential(first, torch.nn.BatchNorm1d(3))
    model = torch.nn.ModuleDict({"tower": tower})
    slow = SlowCopy({"tower": tower}, 0.9)
    before = first.weight.detach().clone()
    assert not list(slow.parameters())
    with torch.no_grad():
        first.weight.add_(1)
    assert torch.equal(slow.get_buffer("tower.0.weight"), before)  # a copy, no view
    slow.follow(model)
    torch.testing.assert_close(slow.get_buffer("tower.0.weight"), before + 0.1)
    slow.follow(model)
    torch.testing.assert_close(slow.get_buffer("tower.0.weight"), before + 0.19)


def test_a_momentum_that_is_no_share_is_told() -> None:
    with pytest.raises(ValueError, match=r"momentum = -0\.1: expected a share, 0 to 1"):
        SlowCopy({}, -0.1)
