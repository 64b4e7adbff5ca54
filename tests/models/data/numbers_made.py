"""Samples that are numbers, so that a batch says which it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch

from models.data.collate import Collate, Room
from models.data.order import Order
from models.data.shards import Damaged, Sample, Samples
from models.trainable import Batch
from tests.models.data.tars_made import shards

SETS = {"big": range(37), "small": range(100, 105)}
WEIGHTS = {"big": 0.8, "small": 0.2}
Row = tuple[int, float]


class Numbers(Collate[Row]):
    """The number of a sample, and what chance gave it; some samples cannot be used."""

    def __init__(self, damaged: Sequence[int] = ()) -> None:
        self.damaged = set(damaged)

    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
        number = int(sample.key, 16)
        if number in self.damaged:
            raise Damaged("spoilt", sample.key, "by a test")
        room["again"][at, 0] = number
        return number, dice.random()

    def room(self) -> dict[str, tuple[int, ...]]:
        return {"again": (1,)}

    def batch(self, rows: Sequence[Row]) -> Batch:
        return {"number": torch.tensor([row[0] for row in rows]), "chance": torch.tensor([row[1] for row in rows])}


def sets_in(folder: Path) -> dict[str, Samples]:
    return {name: Samples.open(shards(folder / name, numbers, per_shard=10)) for name, numbers in SETS.items()}


def order_of(sets: dict[str, Samples], seed: int = 3) -> Order:
    return Order({name: len(samples) for name, samples in sets.items()}, WEIGHTS, seed)
