"""Several processes that are one group, for what must not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

Case = Callable[[int, int, Path], Any]
"""Of rank, number of processes and a folder; on every process the same function of a module."""


def together(case: Case, world: int, folder: Path) -> Any:
    """What the first of `world` processes found."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([case.__module__])
    processes = [context.Process(target=_member, args=(case, rank, world, folder)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * world
    return torch.load(folder / "found.pt", weights_only=False)


def _member(case: Case, rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    found = case(rank, world, folder)
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()
