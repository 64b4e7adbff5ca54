"""Memory of batches, taken again once nobody holds it.

What the system gives afresh it fills with zeros first, page by page: for an image of 224 px a tenth of the time that it
takes to decode one.
"""

from __future__ import annotations

import math
import weakref
from collections import defaultdict, deque
from contextlib import suppress
from functools import cache
from multiprocessing.shared_memory import SharedMemory
from typing import NamedTuple

import numpy as np
import torch


class Recycled:
    """Threads may share one."""

    def __init__(self) -> None:
        self._free: defaultdict[int, deque[np.ndarray]] = defaultdict(deque)

    def empty(self, *shape: int) -> torch.Tensor:
        """uint8 of that shape, with whatever was there before. It is free again when the last view of it is gone."""
        free = self._free[math.prod(shape)]
        try:
            block = free.pop()
        except IndexError:
            block = self._fresh(math.prod(shape))
        held = block.view()  # which every tensor over it holds, and nothing else does
        weakref.finalize(held, free.append, block).atexit = False
        return torch.from_numpy(held).view(shape)

    def _fresh(self, nbytes: int) -> np.ndarray:
        return np.empty(nbytes, np.uint8)


class Block(NamedTuple):
    """Memory as another process finds it."""

    name: str
    shape: tuple[int, ...]


class Shared(Recycled):
    """The same, of which other processes can write to what is lent to them by its name."""

    def __init__(self) -> None:
        super().__init__()
        self._memories: dict[int, SharedMemory] = {}

    def block(self, rows: torch.Tensor) -> Block:
        """What `empty` gave, to be sent to `lent`."""
        return Block(self._memories[rows.data_ptr()].name, tuple(rows.shape))

    def close(self) -> None:
        """No process can find it any more; tensors that somebody holds stay as they are."""
        for memory in self._memories.values():
            memory.unlink()
        self._memories.clear()

    def _fresh(self, nbytes: int) -> np.ndarray:
        memory = _Memory(create=True, size=max(1, nbytes))
        assert memory.buf is not None
        block = np.frombuffer(memory.buf, np.uint8, nbytes)  # not `np.ndarray`, which would not keep it mapped
        self._memories[block.ctypes.data] = memory
        return block


def lent(block: Block) -> torch.Tensor:
    """uint8 over a block of another process."""
    return torch.frombuffer(_opened(block.name).buf, dtype=torch.uint8)[: math.prod(block.shape)].view(block.shape)


@cache
def _opened(name: str) -> SharedMemory:
    """Once a process: pages that are mapped anew are found anew, one by one."""
    return _Memory(name)


class _Memory(SharedMemory):
    def __del__(self) -> None:
        with suppress(BufferError):  # batches lie in it still; the system takes it back with the last of them
            super().__del__()
