"""AdamW over groups of parameters, and what trains in which phase.

optimizer = build(parameters, recipe)
enter(model, parameters, phase); set_rates(optimizer, recipe, number, share)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from models.recipe import Phase, Recipe, RecipeError

Parameters = Mapping[str, nn.Parameter]
"""By name, in the order of the model; an objective's own are called `objectives.<number>.<name>`."""


def factor(phase: Phase, name: str) -> float:
    """What a parameter's learning rate is multiplied with: the first pattern found in its name counts, none is 0."""
    return next((rate for pattern, rate in phase.rates.items() if re.search(pattern, name)), 0.0)


def build(parameters: Parameters, recipe: Recipe) -> torch.optim.AdamW:
    """Groups of equal rates over all phases. Gains, biases and scalars (fewer than two dimensions) do not decay.

    `parameters`: those that some phase trains. A parameter without a gradient is left alone by AdamW, decay included.
    """
    settings = recipe.optimizer
    groups: dict[tuple[object, ...], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        rates = tuple(factor(phase, name) for phase in recipe.phases)
        sharded = isinstance(parameter, DTensor)  # the fused kernel takes no mixture of both
        groups.setdefault((rates, parameter.ndim >= 2, sharded), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": found,
                "rates": rates,
                "decays": decays,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (rates, decays, _), found in groups.items()
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=True,
    )


def set_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, phase: int, share: float) -> float:
    """Every group's learning rate for the next step; returns the one with factor 1."""
    learning_rate = recipe.optimizer.learning_rate * share
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rates"][phase]
    return learning_rate


def set_decay(optimizer: torch.optim.Optimizer, recipe: Recipe, done: float) -> None:
    """Every group's weight decay for the next step, when a share `done` of the training lies behind."""
    first, last = recipe.optimizer.weight_decay, recipe.optimizer.weight_decay_end
    if last is None:
        return
    for group in optimizer.param_groups:
        group["weight_decay"] = (last + (first - last) * (1 + math.cos(math.pi * done)) / 2) * group["decays"]


def enter(model: nn.Module, trained: Parameters, phase: Phase) -> None:
    """Freeze and thaw: what a phase does not train has no gradient, no dropout, and keeps its batch statistics.

    `trained`: parameters that some phase trains; all others stay as they are.
    """
    for name, parameter in trained.items():
        parameter.requires_grad_(factor(phase, name) > 0)
        parameter.grad = None
    _set_mode(model, True)


def drop_patches(model: nn.Module, phase: Phase) -> None:
    """As a phase says. Raises `RecipeError` for a model that cannot."""
    if hasattr(model, "patch_dropout"):
        model.patch_dropout = phase.patch_dropout  # type: ignore[assignment]
    elif phase.patch_dropout:
        raise RecipeError(
            f"phases.{phase.name}.patch_dropout = {phase.patch_dropout}: {type(model).__name__} drops no patches; "
            "leave it out"
        )


def _set_mode(module: nn.Module, training: bool) -> None:
    """A module with nothing but frozen parameters evaluates; one without any does as the module around it."""
    parameters = list(module.parameters())
    module.training = any(parameter.requires_grad for parameter in parameters) if parameters else training
    for child in module.children():
        _set_mode(child, module.training)
