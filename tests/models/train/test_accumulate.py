"""A step's gradient does not depend on how its batch is cut."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial

import pytest
import torch

from models.objectives.contrastive import InfoNCE
from models.train import state
from models.train.accumulate import System, gradients
from models.train.parallel import Place, compile_blocks, lighten
from models.trainable import Batch, Features, Loss, Objective, Scalars
from tests.models.train.processes import MICROS, OBJECTIVES, step
from tests.models.train.toy import NextToken, Toy, rows

Tensors = dict[str, torch.Tensor]


def dropping(micro: int | None, kinds: Sequence[type[Objective]] = (InfoNCE,), light: bool = False) -> Tensors:
    """With dropout, whose masks differ between pieces and not between passes."""
    torch.manual_seed(3)
    system = System(Toy(dropout=0.5), [kind() for kind in kinds], [1.0] * len(kinds), Place.here(), seed=11)
    if light:
        lighten(system.model)
    losses = gradients(system, rows(0, 12), 0, micro)
    return {name: p.grad for name, p in state.parameters(system).items() if p.grad is not None} | {"losses": losses}


def far(found: Tensors, expected: Tensors) -> dict[str, float]:
    assert found.keys() == expected.keys()
    return {
        name: float((found[name] - value).abs().max() / value.abs().max().clamp(1)) for name, value in expected.items()
    }


@pytest.mark.parametrize("objectives", OBJECTIVES)
@pytest.mark.parametrize("micro", [1, 5, *(size for size in MICROS if size)])
def test_pieces_give_the_losses_and_gradients_of_the_whole_batch(objectives: str, micro: int) -> None:
    expected = step(objectives, None)
    assert all(value.abs().max() > 1e-4 for value in expected.values())
    assert ("logit_scale" in expected) is (objectives != "separable")
    assert max(far(step(objectives, micro), expected).values()) < 2e-6


def test_the_loss_is_the_mean_over_tokens_and_not_over_rows_or_pieces() -> None:
    torch.manual_seed(3)
    model, objective = Toy(), NextToken()
    with torch.no_grad():
        loss = objective(model(rows(0, 12)), {})
    assert loss.count == rows(0, 12)["attention_mask"].sum() != 12
    assert float(step("separable", 5)["losses"]) == pytest.approx(float(loss.total / loss.count))


def test_features_are_encoded_again_with_the_dropout_that_they_were_cached_with() -> None:
    """Piece by piece with a graph kept for all: the gradient that caching must give."""
    torch.manual_seed(3)
    system = System(Toy(dropout=0.5), [InfoNCE()], [1.0], Place.here(), seed=11)
    pieces = [system.encode(rows(at, 4), at) for at in (0, 4, 8)]
    loss = InfoNCE()({name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}, system.model.scalars())
    (loss.total / loss.count).backward()
    expected = {name: p.grad for name, p in state.parameters(system).items() if p.grad is not None}
    found = dropping(4)
    assert float(found.pop("losses")) == pytest.approx(float(loss.total.detach() / loss.count))
    assert max(far(found, expected).values()) < 1e-6
    assert max(far(found, {name: dropping(3)[name] for name in found}).values()) > 1e-3


def test_dropout_follows_the_seed_and_the_place_alone() -> None:
    model, batch = Toy(dropout=0.5), rows(0, 4)
    one, two = (System(model, [InfoNCE()], [1.0], Place.here(), seed=seed) for seed in (1, 2))
    first, again, elsewhere, other = (
        system.encode(batch, place)["text"] for system, place in ((one, 0), (one, 0), (one, 4), (two, 0))
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, elsewhere)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("objective", [NextToken, InfoNCE])
def test_of_a_batch_only_the_piece_that_is_worked_on_is_made_ready(objective: type[Objective]) -> None:
    """So that it is the piece that decides how much memory of a device its images take, as float32 as well."""
    held: list[weakref.ref[torch.Tensor]] = []
    rows_ready: list[int] = []

    def ready(piece: Batch) -> Batch:
        made = piece["x"].clone()
        rows_ready.append(sum(len(one) for ref in held if (one := ref()) is not None) + len(made))
        held.append(weakref.ref(made))
        return {**piece, "x": made}

    found: list[Tensors] = []
    for of_pieces in ({}, {"ready": ready}):
        torch.manual_seed(3)
        system = System(Toy(dropout=0.5), [objective()], [1.0], Place.here(), seed=11)
        losses = gradients(system, rows(0, 12), 0, 3, **of_pieces)
        grads = {name: p.grad for name, p in state.parameters(system).items() if p.grad is not None}
        found.append(grads | {"losses": losses})
    assert len(rows_ready) == (4 if objective is NextToken else 8), "every pass anew, or features would be all there is"
    assert max(rows_ready) <= 2 * 3, "the one that was worked on last may not be gone yet"
    assert far(found[1], found[0]) == dict.fromkeys(found[0], 0.0)


@pytest.mark.parametrize("micro", [None, 4])
def test_computing_activations_again_changes_nothing(micro: int | None) -> None:
    assert max(far(dropping(micro, light=True), dropping(micro)).values()) == 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which the compiler looks at itself
def test_compiled_layers_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiler at the end, which takes half a minute: captured and differentiated ahead of time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled = Toy(), Toy()
    compiled.load_state_dict(plain.state_dict())
    compile_blocks(compiled)
    found = []
    for model in (plain, compiled):
        system = System(model, [InfoNCE()], [1.0], Place.here())
        gradients(system, rows(0, 8), 0, None)
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert max(far(found[1], found[0]).values()) < 1e-6


class Nothing(Objective):
    def forward(self, features: Features, scalars: Scalars) -> Loss:
        return Loss(features["image"].sum() * 0, torch.tensor(0))


@pytest.mark.parametrize("micro", [None, 2])
def test_a_step_with_nothing_to_learn_from_is_no_nan(micro: int | None) -> None:
    system = System(Toy(), [Nothing()], [1.0], Place.here())
    assert gradients(system, rows(0, 4), 0, micro).tolist() == [0]
    assert system.place.norm(system.parameters()) == 0
