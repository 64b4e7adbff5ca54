"""A caption comes with the row that its teacher made of it, and a sample without rows is counted."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
import torch

from models.data.collate import Room
from models.data.shards import Damaged, Sample
from models.data.teacher import PairsAndTeacher
from models.recipe import Data, Recipe, RecipeError
from tests.models.data.tars_made import picture
from tests.models.towers import small

CAPTIONS = [{"text": "a cat", "text_embedding": [3, 0, 4]}, {"text": "two", "text_embedding": [0, 2, 0]}]
SAID = {"image_embedding": [0, 0, 0.5], "captions": CAPTIONS}


def row(said: dict[str, Any], seed: int = 0) -> tuple[list[str], dict[str, torch.Tensor]]:
    sample = Sample("key", {"jpg": picture(3, 100, 80), "txt": b"a cat", "json": json.dumps(said).encode()})
    texts = {"vocabulary": 300, "context": 16}
    data = {"kind": "pairs_and_teacher", "images": {"side": 32}, "teacher": {"width": 3}, "texts": texts}
    collate = PairsAndTeacher(Data.model_validate(data), small.words(300, 16))
    room = Room({name: torch.zeros(1, *shape, dtype=torch.uint8) for name, shape in collate.room().items()})
    made = collate.row(sample, Random(seed), room, 0)
    room.finish()
    return made.pair.texts, {**room, **collate.batch([made])}


def test_a_caption_is_drawn_with_its_row_and_rows_have_length_one() -> None:
    found = {}
    for seed in range(10):
        (text,), room = row(SAID, seed)
        assert room["pixel_values"].shape == (1, 3, 32, 32)
        assert room["pixel_values"].any()
        assert room["teacher_image"].tolist() == [[0, 0, 1]]
        found[text] = room["teacher_text"]
    torch.testing.assert_close(found["a cat"], torch.tensor([[0.6, 0, 0.8]]))
    torch.testing.assert_close(found["two"], torch.tensor([[0.0, 1, 0]]))


@pytest.mark.parametrize(
    "rows", [None, [1, 2], [0, 0, 0], ["a", "b", "c"], [1, float("nan"), 1], [[1, 2, 3]], {"a": 1}]
)
def test_rows_that_are_none_are_counted(rows: Any) -> None:
    with pytest.raises(Damaged, match="no teacher"):
        row(SAID | {"image_embedding": rows})


def test_a_caption_without_a_row_is_not_drawn_where_another_has_one() -> None:
    captions = [{"text": "a dog"}, CAPTIONS[0], {"text": "red", "text_embedding": [1]}]
    for seed in range(10):
        assert row(SAID | {"captions": captions}, seed)[0] == ["a cat"]
    with pytest.raises(Damaged, match="expected text_embedding in the json: 3 numbers"):
        row(SAID | {"captions": captions[:1]})


def test_captions_must_be_in_the_json() -> None:
    with pytest.raises(Damaged, match="no caption"):
        row({"image_embedding": [0, 0, 1], "captions": [{"text": " "}, "a cat"]})


def test_one_caption_at_once() -> None:
    with pytest.raises(RecipeError, match="captions = 2: pairs_and_teacher show one at once"):
        Recipe.load("mobileclip", tiny=True, overrides=["data.captions=2"])
