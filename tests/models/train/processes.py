"""What the toy's training does on one process and on several, which are started once for all cases."""

from __future__ import annotations

import shutil
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from models.objectives.contrastive import InfoNCE
from models.recipe import Phase
from models.train import optimizer, state
from models.train.accumulate import System, gradients
from models.train.loop import Trained, train
from models.train.parallel import Place
from models.trainable import Objective
from tests.models import gloo
from tests.models.train.toy import Biased, NextToken, Toy, ToySource, recipe, rows

Tensors = dict[str, torch.Tensor]
Mode = Literal["ddp", "fsdp"]
BATCH = 12
OBJECTIVES: dict[str, tuple[type[Objective], ...]] = {
    "joint": (InfoNCE,),
    "separable": (NextToken,),
    "both": (InfoNCE, NextToken),
    "sigmoid": (Biased,),
}
MICROS = (None, 3, 4)
"""Of 6 rows a process on two, 4 leaves a piece that is smaller."""
PHASES = [
    {"name": "text", "share": 0.5, "rates": {"image": 0, ".*": 1}},
    {"name": "all", "share": 0.5, "rates": {"text": 0.1, "logit_scale": 0, ".*": 1}},
]


def step(objectives: str, micro: int | None, mode: Mode = "ddp", frozen: bool = False) -> Tensors:
    """Losses and gradients of one step on this process's share of the batch, as the whole model has them."""
    place = Place.here()
    torch.manual_seed(3)
    found = [kind() for kind in OBJECTIVES[objectives]]
    system = System(Toy(), found, [0.5, 2.0][: len(found)], place, shards=mode == "fsdp")
    place.spread(system.model, mode)
    if frozen:
        optimizer.enter(system.model, state.parameters(system), Phase(rates={"image": 0, ".*": 1}))
    share = place.share_of(BATCH)
    losses = gradients(system, rows(place.rank * share, share), place.rank * share, micro)
    parameters = state.parameters(system)
    norm = place.norm(list(parameters.values()))
    own = {name: value.grad for name, value in parameters.items() if value.grad is not None}
    return state.whole(own) | {"losses": losses, "norm": norm}


def training(out: Path, mode: Mode = "ddp", stop_at: int | None = None, **changes: Any) -> tuple[Trained, list[int]]:
    """The toy's whole training, or up to a checkpoint; and the places at which its batches began."""
    place = Place.here()
    source = ToySource(BATCH, place)
    settings = {
        "model": "tests.models.train.toy.Toy",  # without dropout, whose masks depend on how the batch is cut
        "phases": PHASES,
        "parallel": {"mode": mode, "micro_batch": 4},
        "ema": 0.9,
        "optimizer": {"learning_rate": 1e-3, "clip_norm": 1.0},
        "keep": 9,
    }
    trained = train(
        recipe(**settings | changes), {}, str(out), source=source, report=lambda samples, _, __: samples == stop_at
    )
    return trained, source.seen


def steps(rank: int, world: int, folder: Path) -> dict[Any, Any]:
    """One step of every kind."""
    modes: tuple[Mode, ...] = ("ddp", "fsdp")
    return {
        (mode, objectives, micro): step(objectives, micro, mode)
        for mode, objectives, micro in product(modes, OBJECTIVES, MICROS)
    }


def run_all(rank: int, world: int, folder: Path) -> dict[Any, Any]:
    """What every process of a test does."""
    modes: tuple[Mode, ...] = ("ddp", "fsdp")
    found: dict[Any, Any] = steps(rank, world, folder)
    for mode in modes:
        found[mode, "frozen"] = step("both", 3, mode, frozen=True)
        found[mode, "trained"] = training(folder / mode, mode)
        if rank == 0:
            shutil.copytree(folder / "stopped", folder / f"{mode}-on")
        dist.barrier()
        found[mode, "resumed"] = training(folder / f"{mode}-on", mode)
        found[mode, "stopped"] = training(folder / f"{mode}-stopped", mode, stop_at=120)
    return found


def with_statistics(rank: int, world: int, folder: Path) -> dict[str, Tensors]:
    """Weights and running statistics after a training, and after one that was stopped where a checkpoint was due, and
    where none was."""
    made = recipe(model="tests.models.train.toy.WithStatistics")
    found = {}
    for name, stops in (("unbroken", ()), ("broken", (60, 108))):
        for at in (*stops, 240):
            source = ToySource(BATCH, Place.here())
            train(made, {}, f"{folder}/{name}", source=source, stop=partial(_reached, source, at))
        found[name] = load_file(folder / name / "model" / "model.safetensors")
    return found


def _reached(source: ToySource, samples: int) -> bool:
    return source.seen[-1] >= samples


def together(world: int, folder: Path) -> dict[Any, Any]:
    """What came out of all cases on `world` processes."""
    found: dict[Any, Any] = gloo.together(run_all, world, folder)
    return found
