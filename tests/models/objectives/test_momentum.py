"""Momentum contrast: its value by an independent sum, what its queue holds, and when it is plain InfoNCE."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from models.objectives.contrastive import InfoNCE
from models.objectives.momentum import MomentumContrast
from models.trainable import Features

WIDTH = 8
SCALARS = {"logit_scale": torch.tensor(math.log(14.0), dtype=torch.float64)}


def features(seed: int, count: int = 6) -> Features:
    dice = torch.Generator().manual_seed(seed)
    names = ("image", "text", "image_m", "text_m")
    rows = {name: torch.randn(count, WIDTH, generator=dice, dtype=torch.float64) for name in names}
    return {name: functional.normalize(each, dim=-1) for name, each in rows.items()}


def objective(queue: int = 0, alpha: float = 0, ramp: int = 0) -> MomentumContrast:
    return MomentumContrast(WIDTH, queue, alpha, ramp).double()


def mean(loss: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float(loss[0].detach() / loss[1])


def by_hand(given: Features, queue: Features, alpha: float) -> float:
    """The paper's sum, with loops over rows."""
    total = 0.0
    for name, other in (("image", "text"), ("text", "image")):
        keys = torch.cat([given[f"{other}_m"], queue[other]])
        for row in range(len(given[name])):
            likely = (14 * keys @ given[name][row]).softmax(0)
            judged = (14 * keys @ given[f"{name}_m"][row]).softmax(0)
            for key in range(len(keys)):
                target = alpha * judged[key] + (1 - alpha) * (key == row)
                total -= float(target * likely[key].log())
    return total / 2 / len(given["image"])


def test_without_alpha_and_queue_it_is_infonce_where_the_copy_is_its_original() -> None:
    given = features(0)
    given |= {f"{name}_m": given[name] for name in ("image", "text")}
    assert mean(objective()(given, SCALARS)) == pytest.approx(mean(InfoNCE()(given, SCALARS)), rel=1e-12)
    assert mean(objective(queue=50)(given, SCALARS)) == pytest.approx(mean(InfoNCE()(given, SCALARS)), rel=1e-12)


@pytest.mark.parametrize("alpha", [0, 0.4, 1])
def test_it_is_the_sum_of_the_paper(alpha: float) -> None:
    found = objective(queue=10, alpha=alpha)
    nothing = {name: torch.zeros(0, WIDTH, dtype=torch.float64) for name in ("image", "text")}
    first, second = features(0), features(1)
    assert mean(found(first, SCALARS)) == pytest.approx(by_hand(first, nothing, alpha), rel=1e-9)
    found.after_step()
    queue = {name: first[f"{name}_m"] for name in nothing}  # 6 of 10 places
    assert mean(found(second, SCALARS)) == pytest.approx(by_hand(second, queue, alpha), rel=1e-9)


def test_the_queue_holds_the_newest_rows_and_only_those() -> None:
    found = objective(queue=10)
    seen: list[Features] = []
    for step in range(5):
        seen.append(features(step))
        found(seen[-1], SCALARS)
        found.after_step()
        for name in ("image", "text"):
            newest = torch.cat([each[f"{name}_m"] for each in seen])[-10:]
            held = found.get_buffer(f"{name}_queue")[: len(newest)]
            assert {tuple(row.tolist()) for row in held} == {tuple(row.tolist()) for row in newest}
    assert found.seen == 30


def test_of_a_batch_longer_than_the_queue_the_last_rows_stay() -> None:
    found, given = objective(queue=4), features(0, count=11)
    found(given, SCALARS)
    found.after_step()
    held = {tuple(row.tolist()) for row in found.image_queue}
    assert held == {tuple(row.tolist()) for row in given["image_m"][-4:]}


def test_a_step_that_looked_at_nothing_leaves_the_queue() -> None:
    found = objective(queue=4)
    found.after_step()
    assert found.seen == 0
    assert not found.image_queue.any()


def test_alpha_grows_over_its_ramp() -> None:
    given, still = features(0), features(0)
    ramped = objective(alpha=0.4, ramp=12)
    for alpha in (0.0, 0.2, 0.4, 0.4):
        assert mean(ramped(given, SCALARS)) == pytest.approx(mean(objective(alpha=alpha)(still, SCALARS)), rel=1e-9)
        ramped.after_step()


def test_nothing_learns_through_the_slow_copy() -> None:
    given = {name: rows.requires_grad_() for name, rows in features(0).items()}
    objective(alpha=0.4)(given, SCALARS).total.backward()
    assert given["image"].grad is not None
    assert given["image_m"].grad is None


def test_gradients_are_finite_while_the_queue_fills() -> None:
    given = {name: rows.requires_grad_() for name, rows in features(0).items()}
    objective(queue=50, alpha=0.4)(given, SCALARS).total.backward()
    assert given["text"].grad is not None
    assert given["text"].grad.isfinite().all()
    assert given["text"].grad.abs().max() > 0


def test_what_is_missing_or_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match=r"no features 'image_m'; this model gives image, text$"):
        objective()({name: features(0)[name] for name in ("image", "text")}, SCALARS)
    with pytest.raises(ValueError, match="width = 4: the model gives 'image' of 8 numbers; set width to 8"):
        MomentumContrast(4)(features(0), SCALARS)
    with pytest.raises(ValueError, match=r"alpha = 1.4: expected a share"):
        MomentumContrast(alpha=1.4)
    with pytest.raises(ValueError, match=r"ramp = -3: expected samples, 0 or more"):
        MomentumContrast(ramp=-3)
