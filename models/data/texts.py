"""Texts alone, as language models read them: the captions of curated shards, or a plain corpus in shards of `.txt`.

A text of more than `context` tokens gives one of its pieces each time that it is seen: which, its place in the order of
the training says. Pieces are cut as evenly as can be; only the first begins with the token of a start, and only the
last ends with that of an end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from models.data.collate import Collate, Room
from models.data.pairs import captions_of, drawn, tokenizer_for
from models.data.shards import Damaged, Sample, Samples
from models.data.tokenizer import WRITTEN_ON, Tokens
from models.recipe import Data, Recipe
from models.trainable import Batch

BOOK = 100_000_000
"""Characters of a text that pieces are taken from, at most."""
WINDOW = 20_000
"""Characters that are made tokens to find a piece in: of a book, one of its windows is drawn first."""
SPACE = re.compile(r"\s")


class Texts(Collate[list[int]]):
    """Rows of tokens, each a text or a piece of one: `input_ids` and `attention_mask`, (n, length of the longest)."""

    def __init__(self, data: Data, tokenizer: Any) -> None:
        self._context = data.texts.context
        self._tokens = Tokens(tokenizer)

    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> list[int]:
        text, first, last = window_of(text_of(sample, dice), WINDOW, dice)
        tokens = self._tokens(text, start=first, end=last)
        if len(tokens) < 2:
            raise Damaged("too short a text", sample.key, "expected two tokens, of which one follows the other")
        return piece_of(tokens, self._context, dice)

    def batch(self, rows: Sequence[list[int]]) -> Batch:
        return self._tokens.padded(rows, max(map(len, rows)))


def text_of(sample: Sample, dice: Random) -> str:
    """One of its texts, drawn where it has several. Raises `Damaged` where it has none."""
    return drawn(captions_of(sample, BOOK), 1, dice)[0]


def window_of(text: str, width: int, dice: Random) -> tuple[str, bool, bool]:
    """Some `width` characters of a text, from one white space to another; whether they are its first, and its last."""
    count = -(-len(text) // width)
    number = dice.randrange(count)
    start, stop = (_between_words(text, len(text) * each // count) for each in (number, number + 1))
    return text[start:stop], number == 0, number == count - 1


def _between_words(text: str, place: int) -> int:
    """The next white space, or the place itself where none is near, as in languages that have none."""
    found = SPACE.search(text, place, place + 100) if 0 < place < len(text) else None
    return found.start() if found else place


def piece_of(tokens: list[int], context: int, dice: Random) -> list[int]:
    """One of the fewest pieces of at most `context` tokens, of about the same length each."""
    count = -(-len(tokens) // context)
    number = dice.randrange(count)
    return tokens[len(tokens) * number // count : len(tokens) * (number + 1) // count]


def tokenizer_of(recipe: Recipe, sets: Mapping[str, Samples]) -> Any:
    """The one that the recipe names, else one that is trained on the texts, with their capitals, and ends none."""
    return tokenizer_for(recipe, sets, WRITTEN_ON, cased=True)
