"""Pairs, and what a teacher made of them, stored beside: what MobileCLIP learns from (Vasu et al. 2024, section 4).

The JSON of a sample has the teacher's rows as `stages.shard.WebDataset` writes them with `json_columns:
[image_embedding, text_embedding]`: the image's at the top, a caption's with that caption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from models.data.collate import Collate, Room
from models.data.images import crop_later, image_of
from models.data.pairs import Pair, Pairs, cleaned, document_of, image_id, listed_in
from models.data.shards import Damaged, Sample
from models.recipe import Data
from models.trainable import Batch


class Taught(NamedTuple):
    pair: Pair
    image_d: torch.Tensor
    text_d: torch.Tensor


class PairsAndTeacher(Collate[Taught]):
    """`Pairs` with one caption each, and unit rows `teacher_image` and `teacher_text`, float32 (n, width)."""

    def __init__(self, data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
        self._data, self._teacher = data, data.teacher
        self._pairs = Pairs(data, tokenizer)

    def room(self) -> dict[str, tuple[int, ...]]:
        return self._pairs.room()

    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Taught:
        said, names = document_of(sample), self._teacher
        captions = [(text, one) for one in listed_in(said) if (text := cleaned(one.get("text"))) is not None]
        if not captions:
            raise Damaged(
                "no caption", sample.key, "expected captions in the json, each with its text and the teacher's row"
            )
        rows = [(text, row) for text, one in captions if (row := self._row(one, names.text)) is not None]
        image_d = self._row(said, names.image)
        if image_d is None or not rows:
            name = names.image if image_d is None else names.text
            raise Damaged(
                "no teacher", sample.key, f"expected {name} in the json: {names.width} numbers (`data.teacher`)"
            )
        text, text_d = dice.choice(rows)
        taught = Taught(Pair([text], image_id(image_of(sample))), image_d, text_d)
        crop_later(sample, self._data.images, dice, room, at)
        return taught

    def batch(self, rows: Sequence[Taught]) -> Batch:
        taught = {"teacher_image": [row.image_d for row in rows], "teacher_text": [row.text_d for row in rows]}
        stacked = {name: torch.stack(each) for name, each in taught.items()}
        return {**self._pairs.batch([row.pair for row in rows]), **stacked}

    def _row(self, said: Mapping[str, object], name: str) -> torch.Tensor | None:
        """(width,), of length one; None where there is none."""
        try:
            values = np.asarray(said.get(name), dtype=np.float32)
        except (TypeError, ValueError, OverflowError):
            return None
        length = float(np.linalg.norm(values))
        if values.shape != (self._teacher.width,) or not 0 < length < np.inf:
            return None
        return torch.from_numpy(values / length)
