"""Pairs, and beside each two more views of its image that were changed by chance: what SLIP learns from.

Colours are changed as DINO's small views are: by the chances and strengths of SLIP's authors (Mu et al. 2022; their
datasets.py, `get_dataset`, from memory), but for the saturation, which moves by up to 0.2 here and by 0.4 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from transformers import PreTrainedTokenizerBase

from models.data.collate import Collate, Room
from models.data.crops import SMALL, cut, side_of_whole, view, whole
from models.data.images import image_of
from models.data.pairs import Pair, Pairs, captions_of, drawn, image_id
from models.data.shards import Sample
from models.recipe import Data
from models.trainable import Batch


class PairsAndViews(Collate[Pair]):
    """`Pairs`, and `view_pixel_values` uint8 (n, count, 3, side, side) by the recipe's `data.crops`."""

    def __init__(self, data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
        self._data, self._side = data, side_of_whole(data)
        self._pairs = Pairs(data, tokenizer)

    def room(self) -> dict[str, tuple[int, ...]]:
        count, side = self._data.crops.count, self._data.crops.side
        return {**self._pairs.room(), "view_pixel_values": (count, 3, side, side)}

    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Pair:
        images, crops, flip = self._data.images, self._data.crops, self._data.flip_of_crops
        texts = drawn(captions_of(sample), self._data.captions, dice)
        image_hwc = whole(sample, self._side)
        room["pixel_values"][at] = cut(image_hwc, images, images.flip, dice)
        for number in range(crops.count):
            room["view_pixel_values"][at, number] = view(image_hwc, crops, flip, SMALL, dice)
        return Pair(texts, image_id(image_of(sample)))

    def batch(self, rows: Sequence[Pair]) -> Batch:
        return self._pairs.batch(rows)
