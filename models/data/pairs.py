"""Images with captions, out of shards.

loader, tokenizer = open_pairs(recipe, {"shards": "root/shards/data/3d2c0b8e1d97"})
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from random import Random
from typing import NamedTuple

import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from models.data.collate import Collate, Room
from models.data.images import crop_later, image_of
from models.data.loader import Loader
from models.data.order import Order
from models.data.phases import PhasedOrder, Places
from models.data.shards import Damaged, DataError, Sample, Samples
from models.data.tokenizer import CAPTION, Encoder, Marks, trained
from models.recipe import Data, Recipe
from models.trainable import Batch

LONGEST = 20_000
"""Characters of a caption that are looked at."""
TAIL = 4096
"""Bytes at the end of an image's file that tell it from others."""
LEARNT_FROM = 200_000
"""Samples whose captions a tokenizer is trained on, at most."""


class Pair(NamedTuple):
    texts: list[str]
    image_id: int


class Pairs(Collate[Pair]):
    """An image and `captions` of its captions: the pairs of contrastive objectives and captioners."""

    def __init__(self, data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
        self._data = data
        self._encode = Encoder(tokenizer, data.texts.context)

    def room(self) -> dict[str, tuple[int, ...]]:
        side = self._data.images.side
        return {"pixel_values": (3, side, side)}

    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Pair:
        texts = drawn(captions_of(sample), self._data.captions, dice)
        pair = Pair(texts, image_id(image_of(sample)))
        crop_later(sample, self._data.images, dice, room, at)
        return pair

    def batch(self, rows: Sequence[Pair]) -> Batch:
        tokens, mask = self._encode([text for row in rows for text in row.texts])
        if self._data.captions > 1:
            tokens, mask = (each.view(len(rows), self._data.captions, -1) for each in (tokens, mask))
        return {"input_ids": tokens, "attention_mask": mask, "image_id": torch.tensor([row.image_id for row in rows])}


def image_id(data: bytes) -> int:
    """Of 64 bits, the same for copies of one file. Of its size and its end, for a digest of all takes as long as a
    fortieth of the decoding, and two photographs that agree in both are one."""
    told = blake2b(data[-TAIL:], digest_size=8, salt=len(data).to_bytes(16, "little")).digest()
    return int.from_bytes(told, "little", signed=True)


def captions_of(sample: Sample, longest: int = LONGEST) -> list[str]:
    """All of them: the texts of `captions` in the JSON, as sluice's shards have it, else the txt, else the JSON's
    `caption`, as img2dataset's have it. `longest`: characters of each. Raises `Damaged` where there is none."""
    said = document_of(sample)
    found = [one.get("text") for one in listed_in(said)]
    if not found and "txt" in sample.members:
        found = [sample.members["txt"].decode("utf-8", "replace")]
    texts = [text for one in found or [said.get("caption")] if (text := cleaned(one, longest)) is not None]
    if not texts:
        raise Damaged("no caption", sample.key, "expected a txt, or captions in the json")
    return texts


def listed_in(said: Mapping[str, object]) -> list[dict[str, object]]:
    """The `captions` of a sample's JSON, each with what is said of it; those that are none are left out."""
    listed = said.get("captions")
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def cleaned(text: object, longest: int = LONGEST) -> str | None:
    """A caption as a tokenizer takes it, of at most so many characters; None where there are no words in it."""
    if not isinstance(text, str) or not text.strip():
        return None
    # JSON can say half a surrogate pair, which no tokenizer takes; and what is cut to a context needs no book before.
    return text[:longest].encode("utf-8", "replace").decode("utf-8")


def document_of(sample: Sample) -> dict[str, object]:
    """What its JSON says; nothing where it cannot be read."""
    try:
        said = json.loads(sample.members.get("json", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def drawn(texts: Sequence[str], count: int, dice: Random) -> list[str]:
    """`count` of the texts at random: all of them before one comes again."""
    found: list[str] = []
    while len(found) < count:
        found += dice.sample(texts, min(len(texts), count - len(found)))
    return found


def open_sets(recipe: Recipe, folders: Mapping[str, str]) -> dict[str, Samples]:
    """The sets of the recipe's mixtures. Raises `DataError` for one that no folder is given for, or the other way."""
    wanted = recipe.sets
    for name in wanted:
        if name not in folders:
            raise DataError(f"mixture.{name}: nothing says where it lies; give --data {name}=FOLDER")
    for name in folders:
        if name not in wanted:
            raise DataError(f"--data {name}=…: the recipe's mixture has no such set; it has {', '.join(wanted)}")
    return {name: Samples.open(folders[name]) for name in wanted}


def tokenizer_for(
    recipe: Recipe, sets: Mapping[str, Samples], marks: Marks = CAPTION, cased: bool = False
) -> PreTrainedTokenizerBase:
    """The one that the recipe names, else one that is trained on captions as the mixture has them."""
    texts = recipe.data.texts
    if texts.tokenizer is not None:
        try:
            return AutoTokenizer.from_pretrained(texts.tokenizer, trust_remote_code=False)
        except (OSError, ValueError) as error:
            told = str(error).strip().splitlines()[0]
            raise DataError(f"data.texts.tokenizer = {texts.tokenizer!r} cannot be loaded: {told}") from None
    return trained(_captions(order_of(recipe, sets), sets), texts.vocabulary, texts.context, marks, cased)


def _captions(order: Places, sets: Mapping[str, Samples]) -> Iterator[str]:
    """All captions of the first samples of the order, as many as the sets hold, or `LEARNT_FROM`."""
    whose, which = order.span(0, min(LEARNT_FROM, sum(len(sets[name]) for name in order.names)))
    found = False
    for number, sample in zip(whose.tolist(), which.tolist(), strict=True):
        try:
            yield from captions_of(sets[order.names[number]].read(sample))
            found = True
        except Damaged:
            continue  # the loader meets it again, and counts it
    if not found:
        raise DataError(f"no sample of {', '.join(order.names)} has a caption; expected txt members")


def order_of(recipe: Recipe, sets: Mapping[str, Samples]) -> Places:
    sizes = {name: len(samples) for name, samples in sets.items()}
    if any(phase.mixture is not None for phase in recipe.phases):
        return PhasedOrder(recipe, sizes)
    return Order(sizes, recipe.data.mixture, recipe.seed)


def open_pairs(
    recipe: Recipe,
    folders: Mapping[str, str],
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    threads: int | None = None,
    pin: bool = False,
) -> tuple[Loader[Pair], PreTrainedTokenizerBase]:
    """The batches of a recipe from `start` (samples seen) on, and the tokenizer, which is `tokenizer` where a training
    goes on. Raises `DataError`."""
    sets = open_sets(recipe, folders)
    tokenizer = tokenizer if tokenizer is not None else tokenizer_for(recipe, sets)
    collate = Pairs(recipe.data, tokenizer)
    order, decoders = order_of(recipe, sets), recipe.parallel.decoders
    return Loader(sets, order, collate, recipe.batch, rank, world, start, threads, pin, decoders), tokenizer
