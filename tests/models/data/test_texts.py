"""Texts as language models read them: every token of a long one has its turn, and none is taken for a special one."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from models.data.collate import Room
from models.data.loader import Loader
from models.data.order import Order
from models.data.shards import Damaged, Sample, Samples
from models.data.texts import Texts, piece_of, text_of, tokenizer_of, window_of
from models.data.tokenizer import END, START, WRITTEN_ON, Tokens, trained
from models.recipe import Data, Recipe
from tests.models.data.tars_made import tar_of

LINES = ["The cat sat on the mat.", "A dog ran after the cat, and the cat ran up a tree.", "It rained."] * 5
CONTEXT = 16


def reader(**texts: Any) -> tuple[Texts, Any]:
    tokenizer = trained(LINES, 400, CONTEXT, WRITTEN_ON, cased=True)
    data = Data.model_validate({"kind": "texts", "texts": {"context": CONTEXT, **texts}})
    return Texts(data, tokenizer), tokenizer


def sample(text: str) -> Sample:
    return Sample("key", {"txt": text.encode()})


def test_a_text_begins_with_a_start_and_ends_with_an_end_and_the_mask_covers_it() -> None:
    texts, tokenizer = reader()
    batch = texts.batch([texts.row(sample(text), Random(0), Room(), 0) for text in ("It rained.", "The cat sat.")])
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True).strip() == "It rained."
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        length = int(mask.sum())
        assert mask[:length].all()
        assert ids[0] == tokenizer.bos_token_id
        assert ids[length - 1] == tokenizer.eos_token_id
        assert (ids == tokenizer.eos_token_id).sum() == 1
    assert batch["attention_mask"].all(dim=1).any(), "padded to the longest, and no further"


def test_the_pieces_of_a_long_text_are_all_of_it_and_about_equally_long() -> None:
    texts, tokenizer = reader()
    text = " ".join(LINES)
    rows = {tuple(texts.row(sample(text), Random(seed), Room(), 0)) for seed in range(200)}
    whole = Tokens(tokenizer)(text)
    assert sum(map(len, rows)) == len(whole)
    assert {len(row) for row in rows} <= {len(whole) // len(rows), len(whole) // len(rows) + 1}
    assert len(rows) == -(-len(whole) // CONTEXT)
    assert sum(row[0] == tokenizer.bos_token_id for row in rows) == 1
    assert sum(row[-1] == tokenizer.eos_token_id for row in rows) == 1


def test_the_windows_of_a_book_are_all_of_it_and_cut_no_word() -> None:
    text = " ".join(f"word{number}" for number in range(900))
    found = {window_of(text, 1000, Random(seed)) for seed in range(200)}
    assert sum(len(part) for part, _, _ in found) == len(text)
    assert sorted(word for part, _, _ in found for word in part.split()) == sorted(text.split())
    assert [sum(first for _, first, _ in found), sum(last for _, _, last in found)] == [1, 1]
    assert max(len(part) for part, _, _ in found) <= 1010


def test_what_looks_like_an_end_in_a_text_is_none() -> None:
    texts, tokenizer = reader(context=64)
    row = texts.row(sample(f"a {END} b"), Random(1), Room(), 0)
    assert row.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(row[1:-1]).strip() == f"a {END} b"


def test_captions_of_curated_samples_have_their_turn_by_the_dice() -> None:
    captions = [{"text": f"caption {number}"} for number in range(3)]
    found = Sample("key", {"jpg": b"", "json": json.dumps({"captions": captions}).encode()})
    assert {text_of(found, Random(seed)) for seed in range(30)} == {"caption 0", "caption 1", "caption 2"}


@pytest.mark.parametrize("members", [{"jpg": b"x"}, {"txt": b"  "}])
def test_a_sample_without_text_is_counted_as_damaged(members: dict[str, bytes]) -> None:
    with pytest.raises(Damaged, match="no caption"):
        reader()[0].row(Sample("key", members), Random(0), Room(), 0)


def test_the_same_place_gives_the_same_piece_on_any_number_of_processes(tmp_path: Path) -> None:
    members = [(f"{number:03}.txt", " ".join(LINES[number:]).encode()) for number in range(6)]
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    sets = {"shards": Samples.open(str(tmp_path))}
    recipe = Recipe.load("llama", tiny=True, overrides=["data.texts.context=16", "data.texts.vocabulary=300"])
    tokenizer = tokenizer_of(recipe, sets)
    assert tokenizer("The cat").input_ids[0] == tokenizer.convert_tokens_to_ids(START)
    assert tokenizer("The cat").input_ids[-1] != tokenizer.eos_token_id, "a prompt is to be gone on with"
    assert "The cat" in tokenizer.decode(tokenizer("The cat").input_ids), "capitals stay"
    found: dict[int, list[Any]] = {}
    for world in (1, 2):
        loaders = [
            Loader(sets, Order({"shards": 6}, {"shards": 1}, 0), Texts(recipe.data, tokenizer), 4, rank, world)
            for rank in range(world)
        ]
        rows = [batch for loader in loaders for batch in islice(loader, 3)]
        for loader in loaders:
            loader.close()
        found[world] = sorted(
            (int(place), ids[mask.bool()].tolist())
            for batch in rows
            for place, ids, mask in zip(batch["position"], batch["input_ids"], batch["attention_mask"], strict=True)
        )
    assert found[1] == found[2]
    assert len({tuple(row) for _, row in found[1]}) > 6


def test_one_piece_holds_a_text_that_fits() -> None:
    assert piece_of(list(range(16)), 16, Random(0)) == list(range(16))
    assert len(piece_of(list(range(17)), 16, Random(0))) in (8, 9)


def test_a_hub_tokenizer_without_a_start_gets_none_and_one_without_an_end_is_refused() -> None:
    tokenizer = trained(LINES, 300, CONTEXT, WRITTEN_ON)
    tokenizer.bos_token = None
    assert Tokens(tokenizer)("cat")[-1] == tokenizer.eos_token_id
    assert Tokens(tokenizer)("cat")[0] != tokenizer.convert_tokens_to_ids(START)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no end token"):
        Tokens(tokenizer)


def test_padding_is_hidden() -> None:
    padded = Tokens(trained(LINES, 300, CONTEXT)).padded([[5, 6, 7], [8]], 4)
    assert torch.equal(padded["attention_mask"], torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]))
    assert padded["input_ids"][1].tolist() == [8, 0, 0, 0]
