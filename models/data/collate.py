"""What becomes of samples: a row each, and of the rows a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Generic, NamedTuple, TypeVar

import torch

from models.data.shards import Damaged, Sample, Samples
from models.trainable import Batch

Row = TypeVar("Row")
ENCODED = 1 << 20
"""Bytes of samples that wait to be decoded, about; a core's cache has them still."""
DECODED = 4 << 20
"""Bytes of pixels that wait to be resized, about; a core's cache has most of them still."""


class Decoded(NamedTuple):
    nbytes: int
    """What it holds until it is written."""
    write: Callable[[], object]


class Room(dict[str, torch.Tensor]):
    """Where rows of a batch are written, uint8, and the images that are still to be written there.

    To read what a sample says, to decode its image and to resize that are three programs, and a core that does them in
    turn begins each with cold caches. Each is done for some samples before the next one: to resize apart saves a tenth
    to a fifth of the time, and to read apart a fifteenth more.
    """

    def __init__(self, rows: Mapping[str, torch.Tensor] | None = None) -> None:
        super().__init__(rows or {})
        self._waiting: list[tuple[int, Callable[[], Decoded]]] = []
        self._nbytes = 0

    @property
    def full(self) -> bool:
        return self._nbytes >= ENCODED

    def later(self, at: int, nbytes: int, decode: Callable[[], Decoded]) -> None:
        """Row `at` is decoded when others are; `decode`, which holds `nbytes`, may raise `Damaged`. Nothing else of the
        row may do so after this."""
        self._waiting.append((at, decode))
        self._nbytes += nbytes

    def finish(self) -> list[tuple[int, Damaged]]:
        """Decode and write what waits. The rows whose images cannot be decoded, and why; nothing is written there."""
        waiting, self._waiting, self._nbytes = self._waiting, [], 0
        damaged, decoded, nbytes = list[tuple[int, Damaged]](), list[Decoded](), 0
        for at, decode in waiting:
            try:
                decoded.append(decode())
            except Damaged as error:
                damaged.append((at, error))
                continue
            nbytes += decoded[-1].nbytes
            if nbytes >= DECODED:
                _write(decoded)
                nbytes = 0
        _write(decoded)
        return damaged


def _write(decoded: list[Decoded]) -> None:
    """All of them, and none is held any more; the last first, which the cache has best."""
    while decoded:
        decoded.pop().write()


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
        """Of one sample, which is to be row `at` of the batch. All chance comes from `dice`, which no other row has.

        Raises `Damaged` for a sample that cannot be used, here or in the `decode` that it gives to `room.later`, behind
        which nothing is raised here; then another sample becomes the row.
        """

    @abstractmethod
    def batch(self, rows: Sequence[Row]) -> Batch:
        """Tensors whose row i is of `rows[i]`."""
