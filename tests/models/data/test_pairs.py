"""From shards to the tensors of a step: the captions belong to their images, and are drawn as the recipe says."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import models.without_torchvision  # isort: skip  # noqa: F401
from models.data.images import training_crop
from models.data.order import dice
from models.data.pairs import TAIL, captions_of, drawn, image_id, open_pairs, order_of
from models.data.shards import Damaged, DataError, Sample, Samples
from models.recipe import Recipe
from tests.models.data.tars_made import pair, picture, shards, tar_of


def recipe_of(**data: Any) -> Recipe:
    settings = {"images": {"side": 16}, "texts": {"vocabulary": 300, "context": 12}, **data}
    toy: dict[str, Any] = {"models.data.order.Order": {}}  # a recipe needs a model, and the data do not
    return Recipe.model_validate(
        {
            "name": "toy", "about": "data alone", "model": toy, "objectives": [toy], "samples": 100, "batch": 8,
            "optimizer": {"learning_rate": 1}, "data": settings,
        }
    )  # fmt: skip


def several(folder: Path, count: int, captions: int) -> Path:
    folder.mkdir()
    members = [member for number in range(count) for member in pair(number, captions=captions)]
    (folder / "0.tar").write_bytes(tar_of(members))
    return folder


def test_a_batch_holds_images_and_the_tokens_of_their_captions(tmp_path: Path) -> None:
    folder = shards(tmp_path / "set", range(30), per_shard=10)
    recipe = recipe_of()
    loader, tokenizer = open_pairs(recipe, {"shards": str(folder)})
    with loader:
        batch = next(loader)
    assert {name: (tuple(each.shape), each.dtype) for name, each in batch.items()} == {
        "pixel_values": ((8, 3, 16, 16), torch.uint8),
        "input_ids": ((8, 12), torch.int64),
        "attention_mask": ((8, 12), torch.int64),
        "image_id": ((8,), torch.int64),
        "position": ((8,), torch.int64),
    }
    samples = Samples.open(folder)
    order = order_of(recipe, {"shards": samples})
    for place in range(8):
        sample = samples[int(order.span(place, place + 1)[1][0])]
        chance = dice(recipe.seed, place, 0)
        (text,) = drawn(captions_of(sample), 1, chance)
        assert str(tokenizer.decode(batch["input_ids"][place], skip_special_tokens=True)).strip() == text
        assert torch.equal(batch["pixel_values"][place], training_crop(sample, recipe.data.images, chance).resized())
        assert batch["attention_mask"][place].sum() == (batch["input_ids"][place] != tokenizer.pad_token_id).sum()


def test_several_captions_are_those_of_the_image_and_other_ones_in_the_next_epoch(tmp_path: Path) -> None:
    recipe = recipe_of(captions=3)
    loader, tokenizer = open_pairs(recipe, {"shards": str(several(tmp_path / "set", 8, captions=6))})
    with loader:
        batches = list(islice(loader, 2))
    assert batches[0]["input_ids"].shape == batches[0]["attention_mask"].shape == (8, 3, 12)
    seen: list[dict[int, set[str]]] = []
    for batch in batches:
        seen.append({})
        for tokens in batch["input_ids"]:
            texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
            (number,) = {int(text.split()[1]) for text in texts}
            seen[-1][number] = set(texts)
            assert len(seen[-1][number]) == 3
    assert set(seen[0]) == set(seen[1]) == set(range(8))
    assert seen[0] != seen[1]


def test_copies_of_one_file_are_known_as_such_in_whatever_crops_and_epochs_they_come(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    members = [member for number in range(6) for member in pair(number)]
    members += [(name.replace("0000", "copy"), data) for name, data in pair(0)]
    (tmp_path / "set" / "0.tar").write_bytes(tar_of(members))
    recipe = recipe_of(images={"side": 16, "crop": [0.1, 1.0]})
    loader, _ = open_pairs(recipe, {"shards": str(tmp_path / "set")})
    with loader:
        batches = list(islice(loader, 7))
    order = order_of(recipe, {"shards": Samples.open(tmp_path / "set")})
    known: dict[int, set[int]] = {}
    crops: dict[int, set[bytes]] = {}
    for batch in batches:
        for place, pixels, image in zip(batch["position"], batch["pixel_values"], batch["image_id"], strict=True):
            number = int(order.span(int(place), int(place) + 1)[1][0])
            known.setdefault(number, set()).add(int(image))
            crops.setdefault(int(image), set()).add(pixels.numpy().tobytes())
    assert all(len(ids) == 1 for ids in known.values())
    assert known[0] == known[6]
    assert len(set.union(*known.values())) == 6
    assert min(len(seen) for seen in crops.values()) > 3


def test_one_caption_is_drawn_of_all_an_image_has(tmp_path: Path) -> None:
    loader, tokenizer = open_pairs(recipe_of(), {"shards": str(several(tmp_path / "set", 2, captions=4))})
    with loader:
        tokens = torch.cat([batch["input_ids"] for batch in islice(loader, 20)])
    counts = Counter(text.split()[3] for text in tokenizer.batch_decode(tokens, skip_special_tokens=True))
    assert set(counts) == set("0123")
    assert min(counts.values()) > 20


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True), st.integers(1, 12), st.integers(0, 99))
def test_no_caption_comes_twice_before_all_have_come(texts: list[str], count: int, seed: int) -> None:
    counts = Counter(drawn(texts, count, Random(seed)))
    assert sum(counts.values()) == count
    assert set(counts) <= set(texts)
    assert max(counts.values()) - min([counts[text] for text in texts]) <= 1


@pytest.mark.parametrize(
    ("members", "found"),
    [
        ({"txt": b"a cat"}, ["a cat"]),
        ({"txt": b"a cat", "json": b'{"caption": "another"}'}, ["a cat"]),
        ({"json": b'{"caption": "a cat", "captions": 2}'}, ["a cat"]),
        ({"txt": b"best", "json": b'{"captions": [{"text": "a"}, {"text": "b"}, {"text": " "}]}'}, ["a", "b"]),
        ({"txt": b"a cat", "json": b"{broken"}, ["a cat"]),
        ({"txt": b"a cat", "json": b"[1]"}, ["a cat"]),
        ({"txt": b"a cat", "json": b"[" * 100_000}, ["a cat"]),
        ({"txt": b"caf\xe9"}, ["caf\ufffd"]),
        ({"txt": b" \n"}, None),
        ({"json": b'{"caption": null}'}, None),
        ({"cls": b"3"}, None),
    ],
)
def test_captions_are_found_where_each_tool_writes_them(members: dict[str, bytes], found: list[str] | None) -> None:
    if found is None:
        with pytest.raises(Damaged, match="key: no caption: expected a txt, or captions in the json"):
            captions_of(Sample("key", members))
    else:
        assert captions_of(Sample("key", members)) == found


def test_spoilt_images_and_missing_captions_are_replaced_and_counted_by_reason(tmp_path: Path) -> None:
    images = {3: b"no image", 5: picture(5)[:300], 7: b""}
    folder = shards(tmp_path / "set", range(12), per_shard=12, images=images)
    (folder / "x.tar").write_bytes(tar_of([("x.jpg", picture(1)), ("y.txt", b"picture 99 alone")]))
    loader, tokenizer = open_pairs(recipe_of(), {"shards": str(folder)})
    with loader:
        tokens = torch.cat([batch["input_ids"] for batch in islice(loader, 7)])
    numbers = {int(text.split()[1]) for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)}
    assert numbers == set(range(12)) - set(images)
    assert set(loader.skipped) == {"undecodable image", "no caption", "no image"}
    assert loader.skipped["undecodable image"] >= 12
    assert any(told.startswith("00000005: undecodable image: ") for told in loader.named)
    assert any(told.startswith("y: no image: it has txt") for told in loader.named)


def test_a_folder_without_one_usable_image_is_an_error_of_one_line(tmp_path: Path) -> None:
    folder = shards(tmp_path / "set", range(9), per_shard=9, images=dict.fromkeys(range(9), b"\xff\xd8\xff spoilt"))
    loader, _ = open_pairs(recipe_of(), {"shards": str(folder)})
    with loader, pytest.raises(DataError, match=r"mixture\.shards: none of 100 samples") as found:
        next(loader)
    assert "\n" not in str(found.value)


def test_a_training_goes_on_with_the_tokenizer_it_began_with(tmp_path: Path) -> None:
    folder = str(shards(tmp_path / "set", range(20), per_shard=20))
    loader, tokenizer = open_pairs(recipe_of(), {"shards": folder})
    with loader:
        wanted = list(islice(loader, 3))[2]
    loader, same = open_pairs(recipe_of(), {"shards": folder}, start=16, tokenizer=tokenizer)
    assert same is tokenizer
    with loader:
        found = next(loader)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_tokenizer_is_taken_from_where_the_recipe_says(tmp_path: Path) -> None:
    folder = str(shards(tmp_path / "set", range(20), per_shard=20))
    loader, tokenizer = open_pairs(recipe_of(), {"shards": folder})
    loader.close()
    tokenizer.save_pretrained(tmp_path / "words")
    texts = {"tokenizer": str(tmp_path / "words"), "context": 12}
    loader, named = open_pairs(recipe_of(texts=texts), {"shards": folder})
    loader.close()
    assert named("picture 3").input_ids == tokenizer("picture 3").input_ids
    (tmp_path / "none").mkdir()
    texts["tokenizer"] = str(tmp_path / "none")
    with pytest.raises(DataError, match=r"data\.texts\.tokenizer = .*none' cannot be loaded"):
        open_pairs(recipe_of(texts=texts), {"shards": folder})


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        ({}, r"mixture\.shards: nothing says where it lies; give --data shards=FOLDER"),
        ({"shards": ".", "shard": "."}, r"--data shard=…: the recipe's mixture has no such set; it has shards"),
    ],
)
def test_sets_without_a_folder_and_folders_without_a_set_are_named(folders: dict[str, str], told: str) -> None:
    with pytest.raises(DataError, match=told):
        open_pairs(recipe_of(), folders)


def test_a_mixture_of_two_folders_keeps_its_shares(tmp_path: Path) -> None:
    folders = {
        "web": str(shards(tmp_path / "web", range(20), per_shard=20)),
        "trusted": str(shards(tmp_path / "trusted", range(100, 103), per_shard=3)),
    }
    loader, tokenizer = open_pairs(recipe_of(mixture={"web": 3, "trusted": 1}), folders)
    with loader:
        tokens = torch.cat([batch["input_ids"] for batch in islice(loader, 5)])
    numbers = [int(text.split()[1]) for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    assert [sum(number >= 100 for number in numbers[at : at + 8]) for at in range(0, 40, 8)] == [2, 2, 2, 2, 2]


def test_captions_without_any_text_are_an_error_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of([("a.jpg", picture(0)), ("a.json", json.dumps({}).encode())]))
    with pytest.raises(DataError, match="no sample of shards has a caption; expected txt members"):
        open_pairs(recipe_of(), {"shards": str(tmp_path)})


def test_half_an_emoji_and_a_whole_book_are_captions_like_others(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    spoilt = {"captions": [{"text": "a \ud83d cat"}, {"text": "b" * 1_000_000}]}
    members = [(f"{n}.jpg", picture(n)) for n in range(8)]
    members = [one for n in range(8) for one in (members[n], (f"{n}.json", json.dumps(spoilt).encode()))]
    (tmp_path / "set" / "0.tar").write_bytes(tar_of(members))
    found = captions_of(Samples.open(tmp_path / "set")[0])
    assert found[0] == "a ? cat"
    assert len(found[1]) == 20_000
    loader, _ = open_pairs(recipe_of(), {"shards": str(tmp_path / "set")}, 0, 1, 0)
    assert next(iter(loader))["input_ids"].shape == (8, 12)


def test_images_are_told_apart_by_their_size_where_their_ends_agree() -> None:
    end = bytes(range(256)) * (TAIL // 256)
    assert image_id(end) == image_id(bytes(end))
    assert len({image_id(end), image_id(b"\0" + end), image_id(b"\0\0" + end)}) == 3
