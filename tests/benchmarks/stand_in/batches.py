"""Scenes as the batches of a training, which the trainer's own loader makes ahead, in an order that it can begin in."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import torch

from infra.miniweb.captions import Caption, caption
from infra.miniweb.scenes import Scene
from models.data.collate import Collate, Room
from models.data.loader import Loader
from models.data.order import Order
from models.train.source import Source
from models.trainable import Batch
from tests.benchmarks.stand_in.lessons import Pixels, cells, false_caption, ground, truth

Told = tuple[int, list[Caption]]
"""The number of a scene, and captions that were made for it."""


class Numbers(Source):
    """The numbers of scenes, in another order in every epoch, and what a collator makes of them; for one process."""

    remote, faults = False, dict[str, str]()  # the loader asks this of a set of shards, which it takes this for

    def __init__(self, scenes: int, batch: int, collate: Collate[Any], tokenizer: Any) -> None:
        self._batch, self._collate, self.tokenizer = batch, collate, tokenizer
        self._order = Order({"scenes": scenes}, {"scenes": 1}, seed=0)

    def read(self, number: int) -> int:
        return number

    def open(self, start: int) -> Loader[Any]:
        sets: Any = {"scenes": self}
        return Loader(sets, self._order, self._collate, self._batch, start=start)

    def keys(self, start: int, end: int) -> list[str]:
        return [f"scene {number}" for number in self._order.span(start, end)[1]]


class Looks(Collate[int]):
    """Images, and what can be seen in them."""

    def __init__(self, images: Sequence[Pixels], scenes: Sequence[Scene]) -> None:
        self._images = images
        self._cells_nkq = torch.from_numpy(np.stack([cells(scene) for scene in scenes]))
        self._grounds_nq = torch.from_numpy(np.stack([ground(scene) for scene in scenes]))

    def row(self, sample: Any, dice: Random, room: Room, at: int) -> int:
        return int(sample)

    def batch(self, rows: Sequence[int]) -> Batch:
        images_nhwc = torch.from_numpy(np.stack([self._images[row] for row in rows]))
        return {"pixel_values": images_nhwc, "cells": self._cells_nkq[rows], "ground": self._grounds_nq[rows]}


class Captions(Collate[Told]):
    """What the trunk sees of images, and of each `each` true captions and as many false ones.

    These differ from it in what a mismatch of the small local web differs in.
    """

    def __init__(self, seen_ncyx: torch.Tensor, scenes: Sequence[Scene], tokenizer: Any, each: int) -> None:
        self._seen_ncyx, self._scenes, self._tokenizer, self._each = seen_ncyx, scenes, tokenizer, each

    def row(self, sample: Any, dice: Random, room: Room, at: int) -> Told:
        scene = self._scenes[sample]
        return sample, [tell(scene, dice) for tell in (caption, false_caption) for _ in range(self._each)]

    def batch(self, rows: Sequence[Told]) -> Batch:
        numbers, told = [number for number, _ in rows], [one for _, captions in rows for one in captions]
        columns = {
            **self._tokenizer([one.text for one in told], padding=True, truncation=True, return_tensors="pt"),
            "true": torch.from_numpy(truth(told, [self._scenes[number] for number in numbers])),
        }
        grouped = {name: column.unflatten(0, (len(rows), -1)) for name, column in columns.items()}
        return {"seen": self._seen_ncyx[numbers], **grouped}
