"""The activation is transformers' own, and keeps less of a step."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.activations import QuickGELUActivation

from models.recipe import Recipe
from models.towers.quick_gelu import QuickGELU, put_into
from tests.models.towers import small


def run(activation: nn.Module, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """What comes out, its gradient, and bytes that were kept for that."""
    rows, kept = values.clone().requires_grad_(), dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        found = activation(rows)
    torch.autograd.backward(found.sum())
    assert rows.grad is not None
    return found.detach(), rows.grad, sum(kept.values())


def test_values_and_gradients_are_those_of_transformers_for_half_of_the_memory() -> None:
    values = torch.cat([torch.linspace(-12, 12, 2001), torch.tensor([-1e4, 1e4])])
    found, expected = run(QuickGELU(), values), run(QuickGELUActivation(), values)
    torch.testing.assert_close(found[:2], expected[:2], atol=2e-6, rtol=1e-6)
    assert found[2] == expected[2] // 2 == values.nbytes


def test_in_bfloat16_it_is_as_near_to_the_truth_as_three_roundings_are() -> None:
    values = torch.linspace(-8, 8, 2001).bfloat16()
    found, expected = run(QuickGELU(), values), run(QuickGELUActivation(), values.double())
    for one, true in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one.double(), true, atol=2**-7, rtol=3 * 2**-8)


def test_a_clip_has_it_in_every_layer_and_a_tower_with_another_activation_keeps_that() -> None:
    for name, of_the_kind in (("clip-vit-b32", 3), ("flair-vit-b16", 0)):
        modules = list(small.model(Recipe.load(name, tiny=True)).modules())
        assert sum(isinstance(module, QuickGELU) for module in modules) == of_the_kind
        assert not any(isinstance(module, QuickGELUActivation) for module in modules)


def test_it_is_found_at_any_depth() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), QuickGELUActivation()), nn.GELU())
    put_into(model)
    assert [type(module).__name__ for module in model.modules() if not list(module.children())] == [
        "Linear",
        "QuickGELU",
        "GELU",
    ]
