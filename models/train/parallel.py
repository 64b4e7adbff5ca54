"""One process or many: what each holds of the model, and how gradients and figures are added up.

place = Place.here()
place.spread(model, "fsdp"); … ; place.add_up(loose_parameters); place.total(figures)

Gradients are summed over processes, never averaged: what they are divided by is how many rows or tokens there were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.checkpoint import checkpoint

from models.recipe import RecipeError
from models.train.ema import local

Mode = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that train together."""

    rank: int
    world: int
    device: torch.device
    side_group: Any = None
    """A group of its own for what runs beside the training: gloo, for files are written from the CPU's memory."""

    @classmethod
    def here(cls) -> Place:
        """The process group that somebody set up, or this process alone; on the current GPU where there is one."""
        if not dist.is_initialized():
            return cls(0, 1, torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU)
        on_gpu = torch.cuda.is_available() and "nccl" in str(dist.get_backend_config())
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else CPU
        return cls(dist.get_rank(), dist.get_world_size(), device, dist.new_group(backend="gloo"))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def share_of(self, batch: int) -> int:
        """Rows of the global batch that each process works on. Raises `RecipeError` where it does not divide."""
        if batch % self.world:
            raise RecipeError(f"batch = {batch} does not divide over {self.world} processes; take as many as divide it")
        return batch // self.world

    def total(self, figures: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(figures)
        return figures

    def told(self, thing: Any) -> Any:
        """What the first process says, on all."""
        if self.world == 1:
            return thing
        said = [thing]
        dist.broadcast_object_list(said, src=0, group=self.side_group)
        return said[0]

    def added(self, counts: Counter[str]) -> Counter[str]:
        """Counts of all processes together."""
        if self.world == 1:
            return counts
        everyone: list[Counter[str]] = [Counter() for _ in range(self.world)]
        dist.all_gather_object(everyone, counts, group=self.side_group)
        return sum(everyone, Counter())

    @torch.no_grad()
    def agree(self, tensors: Iterable[torch.Tensor]) -> None:
        """Make them those of the first process, on all."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def spread(self, model: nn.Module, mode: Mode) -> None:
        """Lay a model over the processes: a copy on each (`ddp`), or a shard (`fsdp`).

        Scalars stay out of it, for objectives read them outside of `forward`: `add_up` sums their gradients.
        """
        if self.world == 1:
            return
        self.agree([*model.parameters(), *model.buffers()])  # seeds are equal, libraries and machines may differ
        name = "shard" if mode == "fsdp" else "replicate"
        mesh: DeviceMesh = init_device_mesh(self.device.type, (self.world,), mesh_dim_names=(name,))
        wrap = partial(fully_shard if mode == "fsdp" else replicate, mesh=mesh, ignored_params=set(loose(model)))
        for block in _apart(model):
            wrap(block)
        wrap(model)
        for module in _wrapped(model):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)

    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of parameters that `spread` left out."""
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            torch._foreach_copy_(
                gradients,
                [
                    part.view_as(gradient)
                    for part, gradient in zip(
                        torch.split(flat, [gradient.numel() for gradient in gradients]), gradients, strict=True
                    )
                ],
            )

    def norm(self, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
        """(): the length of the gradient over all parameters, wherever their shards lie."""
        squares: dict[bool, torch.Tensor] = {kind: torch.zeros((), device=self.device) for kind in (True, False)}
        for sharded in squares:
            gradients = [
                local(parameter.grad)
                for parameter in parameters
                if parameter.grad is not None and _is_sharded(parameter) is sharded
            ]
            if gradients:
                squares[sharded] = torch.stack(torch._foreach_norm(gradients)).square().sum()
        if any(map(_is_sharded, parameters)):
            dist.all_reduce(squares[True])
        return (squares[True] + squares[False]).sqrt()


CPU = torch.device("cpu")


def loose(model: nn.Module) -> Iterator[nn.Parameter]:
    """Single numbers, such as `logit_scale`."""
    return (parameter for parameter in model.parameters() if parameter.numel() == 1)


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of the towers: outermost members of lists in which a class with parameters comes up at least twice."""
    for child in model.children():
        members = list(child.children())
        if isinstance(child, nn.ModuleList | nn.Sequential) and len({type(member) for member in members}) < len(
            members
        ):
            yield from (member for member in members if any(True for _ in member.parameters()))
        else:
            yield from blocks(child)


def _apart(model: nn.Module) -> Iterator[nn.Module]:
    """Layers that share nothing with one another: what several have (BLIP's decoder) belongs to the whole model."""
    owners = Counter(parameter for block in blocks(model) for parameter in block.parameters())
    return (block for block in blocks(model) if all(owners[parameter] == 1 for parameter in block.parameters()))


def lighten(model: nn.Module) -> None:
    """Keep only the inputs of every layer for the backward pass, which computes the rest again (Chen et al. 2016)."""
    for block in blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(model: nn.Module) -> None:
    """Compile every layer by itself, so that equal layers are compiled once and wrappers' hooks stay outside."""
    for block in blocks(model):
        block.forward = torch.compile(block.forward)


def synchronise(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass adds gradients up over processes, or keeps them for a later one."""
    for module in _wrapped(model):
        module.set_requires_gradient_sync(now, recurse=False)


def _wrapped(model: nn.Module) -> Iterator[FSDPModule]:
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def _is_sharded(tensor: torch.Tensor) -> bool:
    return any(placement.is_shard() for placement in getattr(tensor, "placements", ()))
