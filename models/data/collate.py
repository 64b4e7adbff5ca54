"""What becomes of samples: a row each, and of the rows a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from random import Random
from typing import Generic, TypeVar

from models.data.shards import Sample, Samples
from models.trainable import Batch

Row = TypeVar("Row")


class Collate(ABC, Generic[Row]):
    """Its methods are called by other threads than the one that trains, or by other processes, which get a copy of it
    and give their rows back: both can be pickled."""

    def meet(self, sets: Mapping[str, Samples]) -> None:
        """All sets, before the first sample: for what draws others beside the one whose turn it is."""

    def room(self) -> dict[str, tuple[int, ...]]:
        """Shapes, uint8, of what `row` writes to its place in `room`; it becomes part of the batch."""
        return {}

    @abstractmethod
    def row(self, sample: Sample, dice: Random, room: Batch, at: int) -> Row:
        """Of one sample, which is to be row `at` of the batch. All chance comes from `dice`.

        Raises `Damaged` for a sample that cannot be used.
        """

    @abstractmethod
    def batch(self, rows: Sequence[Row]) -> Batch:
        """Tensors whose row i is of `rows[i]`."""
