"""All that a training is at a moment: tensors by name, and facts that JSON holds.

Randomness needs no state: it is a function of the seed and of a sample's place in the order (`accumulate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import models
from models.train.accumulate import System
from models.train.ema import Average
from models.train.optimizer import Parameters

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
Tensors = dict[str, torch.Tensor]


def parameters(system: System) -> dict[str, nn.Parameter]:
    """By name; an objective's own are called `objectives.<number>.<name>`."""
    found = dict(system.model.named_parameters())
    for number, objective in enumerate(system.objectives):
        found |= {f"objectives.{number}.{name}": own for name, own in objective.named_parameters()}
    return found


def buffers(system: System) -> Tensors:
    """Those that belong to the state of a model or an objective, by name."""
    found: Tensors = {}
    modules: list[tuple[str, nn.Module]] = [("", system.model)]
    modules += [(f"objectives.{number}.", objective) for number, objective in enumerate(system.objectives)]
    for prefix, module in modules:
        kept = module.state_dict().keys()
        found |= {f"{prefix}{name}": buffer for name, buffer in module.named_buffers() if name in kept}
    return found


def tensors(system: System, optimizer: torch.optim.Optimizer, average: Average | None) -> Tensors:
    """Weights, buffers, the optimizer's moments and the average, under `model.`, `exp_avg.` and so on; not copied."""
    named = parameters(system)
    found = {f"model.{name}": parameter.detach() for name, parameter in named.items()}
    found |= {f"buffer.{name}": buffer for name, buffer in buffers(system).items()}
    for name, parameter in named.items():
        found |= {f"{moment}.{name}": value for moment, value in optimizer.state.get(parameter, {}).items()}
    if average is not None:
        found |= {f"ema.{name}": value for name, value in average.values.items()}
    return found


def make_room(system: System, optimizer: torch.optim.Optimizer, names: set[str]) -> None:
    """Give the optimizer moments for just the parameters that have some among the `names` of a checkpoint."""
    optimizer.state.clear()
    for name, parameter in parameters(system).items():
        if f"{MOMENTS[0]}.{name}" in names:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def whole(found: Parameters | Mapping[str, torch.Tensor]) -> Tensors:
    """Full copies on the CPU, of shards that lie on many processes too; to be called on all of them."""
    return {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().to("cpu", copy=True)
        for name, tensor in found.items()
    }


@torch.no_grad()
def fill(system: System, weights: Tensors) -> None:
    """Parameters and buffers from whole tensors by their names."""
    for name, tensor in {**parameters(system), **buffers(system)}.items():
        tensor.copy_(weights[name])


def code() -> dict[str, str]:
    """Which code this is: versions, and a digest of the package `models`, whether or not it lies in a git checkout."""
    digest = sha256()
    folder = Path(models.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return {name: version(name) for name in ("sluice", "torch", "transformers")} | {"models": digest.hexdigest()[:16]}
