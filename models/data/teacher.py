"""Pairs, and what a teacher made of them, stored beside: what MobileCLIP learns from (Vasu et al. 2024, section 4).

The JSON of a sample has the teacher's rows as `stages.shard.WebDataset` writes them with `json_columns:
[image_embedding, text_embedding]`: the image's at the top, a caption's with that caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from models.data.images import image_of, training_pixels
from models.data.loader import Collate
from models.data.pairs import LONGEST, Pair, Pairs, document_of, image_id
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

    def row(self, sample: Sample, dice: Random, room: Batch, at: int) -> Taught:
        said = document_of(sample)
        listed = said.get("captions")
        found = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        captions = [one for one in found if isinstance(one.get("text"), str) and one["text"].strip()]
        if not captions:
            raise Damaged(
                "no caption", sample.key, "expected captions in the json, each with its text and the teacher's row"
            )
        chosen = dice.choice(captions)
        text_d = self._row(chosen, self._teacher.text, sample.key)
        image_d = self._row(said, self._teacher.image, sample.key)
        room["pixel_values"][at] = training_pixels(sample, self._data.images, dice)
        text = chosen["text"][:LONGEST].encode("utf-8", "replace").decode("utf-8")
        return Taught(Pair([text], image_id(image_of(sample))), image_d, text_d)

    def batch(self, rows: Sequence[Taught]) -> Batch:
        taught = {"teacher_image": [row.image_d for row in rows], "teacher_text": [row.text_d for row in rows]}
        stacked = {name: torch.stack(each) for name, each in taught.items()}
        return {**self._pairs.batch([row.pair for row in rows]), **stacked}

    def _row(self, said: dict[str, Any], name: str, key: str) -> torch.Tensor:
        width = self._teacher.width
        try:
            values = np.asarray(said.get(name), dtype=np.float32)
        except (TypeError, ValueError, OverflowError):
            values = np.zeros(0, np.float32)
        length = float(np.linalg.norm(values))
        if values.shape != (width,) or not 0 < length < np.inf:
            raise Damaged("no teacher", key, f"expected {name} in the json: {width} numbers (`data.teacher`)")
        return torch.from_numpy(values / length)
