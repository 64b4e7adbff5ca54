"""Which parameters move, how fast, and which decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.recipe import Phase
from models.train import optimizer, state
from models.train.accumulate import System
from models.train.ema import Average
from models.train.parallel import Place
from tests.models.train.toy import NextToken, Toy, recipe


def toy() -> dict[str, nn.Parameter]:
    return state.parameters(System(Toy(), [NextToken()], [1.0], Place.here()))


def test_matrices_decay_and_gains_biases_and_scalars_do_not() -> None:
    named = toy()
    groups = optimizer.build(named, recipe()).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {name for name, p in named.items() if decays[id(p)] == 0.2} == {
        "embeddings.weight",
        "objectives.0.head",
        *(f"{tower}.{layer}.linear.weight" for tower in ("image", "text") for layer in (0, 1)),
    }
    assert set(decays.values()) == {0.0, 0.2}
    assert len(decays) == len(named)


def test_weight_decay_goes_by_a_cosine_where_it_is_told_to_and_nothing_else_begins_to_decay() -> None:
    made = recipe(optimizer={"learning_rate": 1e-2, "weight_decay": 0.04, "weight_decay_end": 0.4})
    adamw = optimizer.build(toy(), made)
    for done, decay in ((0.0, 0.04), (0.5, 0.22), (0.75, 0.04 + 0.36 * (1 + 0.5**0.5) / 2), (1.0, 0.4)):
        optimizer.set_decay(adamw, made, done)
        assert sorted({group["weight_decay"] for group in adamw.param_groups}) == pytest.approx([0, decay])
    still = recipe()
    adamw = optimizer.build(toy(), still)
    optimizer.set_decay(adamw, still, 0.5)
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.0, 0.2}


def test_the_first_pattern_found_in_a_name_counts_and_none_freezes() -> None:
    phase = Phase(rates={"image.0": 0.1, "image": 0, "text|logit": 2})
    named = toy()
    factors = {name: optimizer.factor(phase, name) for name in named}
    assert factors["image.0.linear.weight"] == 0.1
    assert factors["image.1.linear.weight"] == 0
    assert factors["text.0.norm.bias"] == factors["logit_scale"] == 2
    assert factors["embeddings.weight"] == factors["objectives.0.head"] == 0


def test_every_group_moves_at_its_own_rate_of_the_phase() -> None:
    phases = [{"share": 0.5, "rates": {"image": 0, ".*": 1}}, {"share": 0.5, "rates": {"image": 0.25, ".*": 1}}]
    made, named = recipe(phases=phases), toy()
    adamw = optimizer.build(named, made)
    assert optimizer.set_rates(adamw, made, 1, 0.5) == 0.005
    rates = {id(p): group["lr"] for group in adamw.param_groups for p in group["params"]}
    assert rates[id(named["image.0.linear.weight"])] == 0.00125
    assert rates[id(named["embeddings.weight"])] == 0.005
    optimizer.set_rates(adamw, made, 0, 1)
    assert {group["lr"] for group in adamw.param_groups} == {0.0, 0.01}


def test_what_is_frozen_has_no_gradient_no_dropout_and_keeps_its_batch_statistics() -> None:
    norm = nn.BatchNorm2d(4)
    image = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Dropout())
    model = nn.ModuleDict({"image": image, "text": nn.Sequential(nn.Linear(2, 2), nn.Dropout())})
    optimizer.enter(model, dict(model.named_parameters()), Phase(rates={"text": 1}))
    assert not any(parameter.requires_grad for parameter in model["image"].parameters())
    assert not any(module.training for module in model["image"].modules())
    assert all(module.training for module in model["text"].modules())
    assert norm.running_mean is not None
    statistics = norm.running_mean.clone()
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(image(images), image(images))
    assert torch.equal(norm.running_mean, statistics)
    optimizer.enter(model, dict(model.named_parameters()), Phase())
    assert all(module.training for module in model.modules())
    image(images)
    assert not torch.equal(norm.running_mean, statistics)


def test_the_average_is_the_weighted_sum_of_all_weights_so_far() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 10.0]))
    average = Average({"w": parameter}, 0.75)
    for value in (2.0, 3.0):
        with torch.no_grad():
            parameter.fill_(value)
        average.step({"w": parameter})
    assert average.values["w"].tolist() == pytest.approx([0.5625 + 0.375 + 0.75, 5.625 + 0.375 + 0.75])
