"""BLIP on two processes is BLIP on one: gradients, hard negatives, queue and slow copy; and in the whole training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from models.train.loop import train
from models.train.parallel import Place
from tests.models import gloo
from tests.models.towers import tiny_blip

BATCH, STEPS = 12, 3
Mode = Literal["ddp", "fsdp"]
MODES: tuple[Mode, ...] = ("ddp", "fsdp")
Tensors = dict[str, torch.Tensor]


def by_hand(rank: int = 0, world: int = 1) -> Tensors:
    """Three steps in float64: gradients of each, and what is in the queue and the slow copy at the end."""
    model: Any = tiny_blip.model(momentum=0.5).double()
    objectives = [objective.double() for objective in tiny_blip.objectives()]
    found: Tensors = {}
    share = BATCH // world
    for step in range(STEPS):
        batch = tiny_blip.rows(step * BATCH + rank * share, share)
        batch["pixel_values"] = batch["pixel_values"].double()
        features = model(batch)
        losses = [objective(features, model.scalars()) for objective in objectives]
        counts = [_added(loss.count.detach().clone()) for loss in losses]
        means = torch.stack([loss.total / count for loss, count in zip(losses, counts, strict=True)])
        model.zero_grad()
        means.sum().backward()  # type: ignore[no-untyped-call]
        found[f"{step} losses"] = _added(means.detach().clone())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                found[f"{step} {name}"] = _added(parameter.grad).clone()
                parameter.sub_(0.05 * parameter.grad)
        for part in (model, *objectives):
            part.after_step()
    found |= {f"slow {name}": buffer for name, buffer in model.named_buffers() if name.startswith("slow")}
    return found | {f"queue {name}": buffer for name, buffer in objectives[0].named_buffers()}


def trained(out: Path, mode: Mode) -> Tensors:
    """The weights that a whole training exports."""
    source = tiny_blip.BlipSource(BATCH, Place.here())
    settings: dict[str, Any] = {"parallel": {"mode": mode}, "samples": 36}
    train(tiny_blip.recipe(**settings, optimizer={"learning_rate": 1e-3}), {}, str(out), source=source)
    return load_file(out / "model" / "model.safetensors")


def run_all(rank: int, world: int, folder: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = {"by hand": by_hand(rank, world)}
    for mode in MODES:
        found[mode] = trained(folder / mode, mode)
    return found


def _added(tensor: torch.Tensor) -> torch.Tensor:
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    folder = tmp_path_factory.mktemp("blip")
    found: dict[Any, Any] = gloo.together(run_all, 2, folder)
    return found


def test_gradients_queue_and_slow_copy_do_not_depend_on_the_number_of_processes(on_two: dict[Any, Any]) -> None:
    found, expected = on_two["by hand"], by_hand()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        far = float((found[name] - value).abs().max())
        assert far < 1e-11 * max(1, float(value.abs().max())), f"{name} is off by {far:.2g}"
    assert expected["queue seen"] == STEPS * BATCH
    assert (expected["queue image_queue"].norm(dim=1) - 1).abs().max() < 1e-9


def test_a_training_on_two_processes_ends_as_on_one(on_two: dict[Any, Any], tmp_path: Path) -> None:
    expected = trained(tmp_path, "ddp")
    for mode in MODES:
        assert on_two[mode].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(on_two[mode][name], value, atol=2e-4, rtol=1e-3)
