"""What becomes of samples: a row each, and of the rows a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Generic, TypeVar

import torch

from models.data.shards import Sample, Samples
from models.trainable import Batch

Row = TypeVar("Row")
WAITING = 4 << 20
"""Bytes of pixels that wait, about; a core's cache has most of them still."""


class Room(dict[str, torch.Tensor]):
    """Where rows of a batch are written, uint8, and what is still to be written there.

    To decode an image and to resize it are two programs, and a core that does both in turn begins each with cold
    caches: some images decoded and then all of them resized take a tenth to a fifth less time.
    """

    def __init__(self, rows: Mapping[str, torch.Tensor] | None = None) -> None:
        super().__init__(rows or {})
        self._writes: list[Callable[[], object]] = []
        self._nbytes = 0

    def later(self, nbytes: int, write: Callable[[], object]) -> None:
        """`write` is called with others, after those before it. `nbytes`: what it holds until then."""
        self._writes.append(write)
        self._nbytes += nbytes
        if self._nbytes >= WAITING:
            self.finish()

    def finish(self) -> None:
        """Write what waits."""
        for write in self._writes:
            write()
        self._writes, self._nbytes = [], 0


class Collate(ABC, Generic[Row]):
    """Its methods are called by other threads than the one that trains, or by other processes, which get a copy of it
    and give their rows back: both can be pickled."""

    def meet(self, sets: Mapping[str, Samples]) -> None:
        """All sets, before the first sample: for what draws others beside the one whose turn it is."""

    def room(self) -> dict[str, tuple[int, ...]]:
        """Shapes, uint8, of what `row` writes to its place in `room`; it becomes part of the batch."""
        return {}

    @abstractmethod
    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
        """Of one sample, which is to be row `at` of the batch. All chance comes from `dice`.

        Raises `Damaged` for a sample that cannot be used.
        """

    @abstractmethod
    def batch(self, rows: Sequence[Row]) -> Batch:
        """Tensors whose row i is of `rows[i]`."""
