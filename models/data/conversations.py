"""Conversations about images, in LLaVA's form, out of shards; and pairs, as conversations of one answer.

`{key}.json` has `conversations`: a list of `{"from": "human" | "gpt" | "system", "value": "<image>\\nWhat is this?"}`.
Images are `{key}.jpg`, or `{key}.0.jpg`, `{key}.1.jpg` and so on; each stands where a human says `<image>`, in order,
or first where none does. A sample without `conversations` is a pair: of its captions one is the answer to the bare
image (LLaVA's first phase). Only answers are learnt, and what ends them; a place of an image never is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from models.data.chat import IMAGE, ChatTemplate, TemplateMismatch, Turn
from models.data.collate import Collate, Room
from models.data.images import images_of
from models.data.order import Order
from models.data.pairs import LEARNT_FROM, LONGEST, captions_of, document_of, drawn
from models.data.rounds import Tree, apart, whole
from models.data.shards import Damaged, DataError, Sample, Samples
from models.data.tiles import Seen, seen, tokens_of
from models.data.tokenizer import WRITTEN_ON, trained
from models.recipe import Data, Recipe
from models.trainable import Batch

SPEAKERS = {"system": "system", "human": "user", "gpt": "assistant"}
"""LLaVA's names, and those of chat templates."""
MOST_IMAGES = 64
"""Of a sample."""


class Row(NamedTuple):
    """A sample."""

    tree: Tree
    images: list[Seen]


class Conversations(Collate[Row]):
    """`input_ids`, `attention_mask` (n, length) int64; `learnt` (n, length) bool, of tokens that are to be predicted;
    `image_places` (n, length) bool, where parts of images stand; `pixel_values` (n, tiles, 3, side, side) uint8, the
    tiles of all images of a sample one after the other; `tiles` (n, images) int64, how many each image has, 0 where
    there is none; `image_sizes` (n, images, 2) int64, heights and widths in px. Where turns are read apart, `branches`
    and `positions` (n, length) int64 of `models.data.rounds`."""

    def __init__(self, data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises `DataError` for a chat template that cannot be learnt from."""
        self._images, self._context, self._turns = data.images, data.texts.context, data.texts.turns
        self._template = ChatTemplate(tokenizer)
        self._pad = tokenizer.pad_token_id or 0  # whatever it is, the mask hides it

    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Row:
        given = images_of(sample)
        if len(given) > MOST_IMAGES:
            raise Damaged("too many images", sample.key, f"{len(given)}; at most {MOST_IMAGES} are read")
        turns = turns_of(sample, len(given), dice)
        images = [seen(data, self._images, sample.key) for data in given]
        try:
            tree = self._read(turns, [tokens_of(image.size, self._images) for image in images], dice)
        except TemplateMismatch as mismatch:
            raise Damaged("chat template does not fit", sample.key, str(mismatch)) from None
        if tree.text.image[self._context :].any():
            raise Damaged("images beyond the context", sample.key, f"{len(tree.text.ids)} tokens of {self._context}")
        tree = tree.cut(self._context)
        if not tree.text.learnt[1:].any():
            raise Damaged("no answer within the context", sample.key, f"texts.context = {self._context} tokens")
        return Row(tree, images)

    def _read(self, turns: Sequence[Turn], images: Sequence[int], dice: Random) -> Tree:
        if self._turns == "apart":
            return apart(self._template, turns, images, self._context, dice)
        return whole(self._template.encode(turns, images))

    def batch(self, rows: Sequence[Row]) -> Batch:
        length = max(len(row.tree.text.ids) for row in rows)
        tiles = max(sum(len(image.tiles_t3ss) for image in row.images) for row in rows)
        images = max(len(row.images) for row in rows)
        side, count = self._images.side, len(rows)
        ids = np.full((count, length), self._pad, np.int64)
        mask, learnt, places = np.zeros((count, length), np.int64), *np.zeros((2, count, length), np.bool_)
        pixels = torch.zeros(count, tiles, 3, side, side, dtype=torch.uint8)
        counts, sizes = np.zeros((count, images), np.int64), np.zeros((count, images, 2), np.int64)
        branches, positions = np.zeros((2, count, length), np.int64)
        for number, ((text, *where), own) in enumerate(rows):
            many = len(text.ids)
            branches[number, :many], positions[number, :many] = where
            ids[number, :many], mask[number, :many] = text.ids, 1
            learnt[number, :many], places[number, :many] = text.learnt, text.image
            if own:
                whole = torch.cat([image.tiles_t3ss for image in own])
                pixels[number, : len(whole)] = whole
                counts[number, : len(own)] = [len(image.tiles_t3ss) for image in own]
                sizes[number, : len(own)] = [image.size for image in own]
        named = {"input_ids": ids, "attention_mask": mask, "learnt": learnt, "image_places": places}
        named |= {"tiles": counts, "image_sizes": sizes}
        if self._turns == "apart":
            named |= {"branches": branches, "positions": positions}
        return {**{name: torch.from_numpy(column) for name, column in named.items()}, "pixel_values": pixels}


def turns_of(sample: Sample, images: int, dice: Random) -> list[Turn]:
    """The turns of a sample with so many images, of a pair those that are made of it. Raises `Damaged`."""
    given = document_of(sample).get("conversations")
    if not given:
        if not images:
            raise Damaged("no image", sample.key, "a pair has one; expected jpg, png or webp, or conversations")
        return [Turn("user", (None,) * images), Turn("assistant", tuple(drawn(captions_of(sample), 1, dice)))]
    spoken = [_spoken(sample, turn) for turn in (given if isinstance(given, list) else [given])]
    expected = ["system"] * (spoken[0][0] == "system") + ["user", "assistant"] * len(spoken)
    roles = [role for role, _ in spoken]
    if roles != expected[: len(roles)] or roles[-1] != "assistant":
        told = ", ".join(roles[:6])
        raise Damaged("turns out of order", sample.key, f"{told}; expected human and gpt in turns, gpt last")
    return _placed(sample, spoken, images)


def _spoken(sample: Sample, turn: Any) -> tuple[str, str]:
    role = SPEAKERS.get(str(turn.get("from"))) if isinstance(turn, dict) else None
    value = turn.get("value") if role else None
    if role is None or not isinstance(value, str):
        raise Damaged("no conversation", sample.key, "expected turns with `from` human, gpt or system, and a `value`")
    text = value[:LONGEST].encode("utf-8", "replace").decode("utf-8")  # JSON can say half a surrogate pair
    if not text.strip() and role != "user":
        raise Damaged("empty turn", sample.key, f"the {role} says nothing")
    return role, text


def _placed(sample: Sample, spoken: Sequence[tuple[str, str]], images: int) -> list[Turn]:
    """Images in the places that humans name. Nobody else's text has places, whatever it says."""
    named = sum(text.count(IMAGE) for role, text in spoken if role == "user")
    if named not in (0, images):
        raise Damaged("images and their places differ", sample.key, f"{images} images, and {named} times {IMAGE}")
    turns, ahead = [], 0 if named else images
    for role, text in spoken:
        parts: list[str | None] = [text]
        if role == "user":
            first, *others = text.split(IMAGE)
            parts = [first, *(part for other in others for part in (None, other))]
            if ahead:
                parts, ahead = [*[part for _ in range(ahead) for part in (None, "\n")], *parts], 0
        turns.append(Turn(role, tuple(part for part in parts if part != "")))
    return turns


def conversation_tokenizer(recipe: Recipe, sets: Mapping[str, Samples]) -> PreTrainedTokenizerBase:
    """The one that the recipe names, else one that is trained on what its sets say, in their own case."""
    texts = recipe.data.texts
    if texts.tokenizer is None:
        return trained(_said(recipe, sets), texts.vocabulary, texts.context, WRITTEN_ON, cased=True)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(texts.tokenizer, trust_remote_code=False)
    except (OSError, ValueError) as error:
        told = str(error).strip().splitlines()[0]
        raise DataError(f"data.texts.tokenizer = {texts.tokenizer!r} cannot be loaded: {told}") from None
    return tokenizer


def _said(recipe: Recipe, sets: Mapping[str, Samples]) -> Iterator[str]:
    """All texts of the sets, or of `LEARNT_FROM` samples in proportion to their sizes."""
    sizes = {name: len(samples) for name, samples in sets.items()}
    order = Order(sizes, {name: float(size) for name, size in sizes.items()}, recipe.seed)
    found = False
    for place in range(min(LEARNT_FROM, sum(sizes.values()))):
        name, number = order.at(place)
        try:
            sample = sets[name].read(number)
            turns = turns_of(sample, len(images_of(sample)), Random(0))
        except Damaged:
            continue  # the loader meets it again, and counts it
        found = True
        yield from (part for turn in turns for part in turn.parts if part is not None)
    if not found:
        raise DataError(f"no sample of {', '.join(sets)} has turns or a caption; expected LLaVA's JSON, or pairs")
