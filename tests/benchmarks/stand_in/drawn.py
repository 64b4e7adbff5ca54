"""Batches that are made of scenes while the trainer learns from them, the same whenever it begins again at a place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt
import torch

from infra.miniweb.scenes import Scene
from models.data.order import Order
from models.train.source import Loader, Source
from models.trainable import Batch, Features

Rows = npt.NDArray[np.int64]


class Drawn(Source):
    """All scenes in another order in every epoch; for one process."""

    def __init__(self, scenes: Sequence[Scene], batch: int) -> None:
        self.scenes = scenes
        self._batch, self._order = batch, Order({"scenes": len(scenes)}, {"scenes": 1}, seed=0)

    @abstractmethod
    def made(self, rows: Rows, place: int) -> Batch:
        """Of the scenes in these rows; `place`: of the first of them in the order of the training."""

    def open(self, start: int) -> Loader:
        places = count(start, self._batch)
        return Opened(self.made(self._rows(place, place + self._batch), place) for place in places)

    def keys(self, start: int, end: int) -> list[str]:
        return [f"scene {row}" for row in self._rows(start, end)]

    def _rows(self, start: int, end: int) -> Rows:
        return self._order.span(start, end)[1]


@dataclass
class Opened:
    """A `Loader` that never skips anything."""

    batches: Iterator[Batch]
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches

    def close(self) -> None:
        """Nothing is held."""


def answered(said: torch.Tensor, true: torch.Tensor, questions: Mapping[str, int]) -> Features:
    """Of every question its logits, by its name, and what is true.

    `said`: (…, all answers); `true`: int64 (…, questions).
    """
    logits = dict(zip(questions, said.split(list(questions.values()), dim=-1), strict=True))
    return logits | {f"true {name}": labels for name, labels in zip(questions, true.unbind(-1), strict=True)}
