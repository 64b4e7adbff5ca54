"""Rows of the other processes, with gradients that find their way back.

all_texts_nd = gathered(texts_md)              # n = processes x m
for owner, texts_md in ring(texts_md): ...     # one process's rows at a time

Without torch.distributed there is one process, and both give back what they were given. Every process must hold
equally many rows. torch.distributed.nn did the same and is deprecated in torch 2.13.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd import Function


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def gathered(rows: torch.Tensor) -> torch.Tensor:
    """(world x m, …) of (m, …): the rows of all processes, in the order of their ranks.

    Each process's gradient comes back to the process whose rows they were, and is added up there.
    """
    if world() == 1:
        return rows
    everything: torch.Tensor = _Gathered.apply(rows)  # type: ignore[no-untyped-call]
    return everything


def ring(rows: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """(owner's rank, its rows (m, …)), this process's first; they go round once, so that two are held at a time."""
    processes, own = world(), rank()
    yield own, rows
    for step in range(1, processes):
        rows = _Handed.apply(rows, 1)  # type: ignore[no-untyped-call]
        yield (own - step) % processes, rows


class _Gathered(Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        everything = rows.new_empty((world() * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_single(everything, rows.contiguous())
        return everything

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (gradient,) = gradients
        own = gradient.new_empty((gradient.shape[0] // world(), *gradient.shape[1:]))
        dist.reduce_scatter_single(own, gradient.contiguous())
        return own


class _Handed(Function):
    """Rows go `steps` processes on, and their gradient as many back."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, steps: int) -> torch.Tensor:
        ctx.steps = steps
        return _handed(rows, steps)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _handed(gradients[0], -ctx.steps), None


def _handed(rows: torch.Tensor, steps: int) -> torch.Tensor:
    rows = rows.contiguous()
    coming = torch.empty_like(rows)
    away, back = ((rank() + way) % world() for way in (steps, -steps))
    sides = [dist.P2POp(dist.isend, rows, away), dist.P2POp(dist.irecv, coming, back)]
    for work in dist.batch_isend_irecv(sides):
        work.wait()
    return coming
