"""Images and the classes that they are of: what supervised training learns from."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch

from models.data.collate import Collate, Room
from models.data.images import crop_later
from models.data.pairs import document_of
from models.data.shards import Damaged, Sample
from models.recipe import Data, Labels
from models.trainable import Batch


class Labelled(Collate[int]):
    """`pixel_values` uint8 (n, 3, side, side) and `classes` int64 (n,)."""

    def __init__(self, data: Data) -> None:
        self._data = data

    def room(self) -> dict[str, tuple[int, ...]]:
        side = self._data.images.side
        return {"pixel_values": (3, side, side)}

    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> int:
        label = class_of(sample, self._data.labels)
        crop_later(sample, self._data.images, dice, room, at)
        return label

    def batch(self, rows: Sequence[int]) -> Batch:
        return {"classes": torch.tensor(rows)}


def class_of(sample: Sample, labels: Labels) -> int:
    """The number of its class. Raises `Damaged` where it has none, or one that the recipe does not name."""
    where = ".cls" if labels.field is None else f"{labels.field} in the json"
    said = _cls(sample) if labels.field is None else document_of(sample).get(labels.field)
    if isinstance(said, str) and said in labels.names:
        return labels.names.index(said)
    if (
        isinstance(said, int)
        and not isinstance(said, bool)
        and said >= 0
        and (not labels.names or said < len(labels.names))
    ):
        return int(said)
    known = f"0 to {len(labels.names) - 1}, or one of labels.names" if labels.names else "a number from 0 on"
    raise Damaged("no class", sample.key, f"{where} is {said!r}; expected {known}")


def _cls(sample: Sample) -> int | str | None:
    text = sample.members.get("cls", b"").decode("utf-8", "replace").strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text or None
