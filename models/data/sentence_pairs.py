"""Two texts, of which the second goes on with the first or is another's, with some tokens hidden: what BERT reads.

Half of the pairs are one text in two: cut between sentences, else between words, else between letters. In the others,
the second half is that of another sample. Which, where the cut is and what is hidden, the place in the order says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import torch

from models.data.collate import Collate, Room
from models.data.masking import SHARE, Masked, Masking
from models.data.pairs import tokenizer_for
from models.data.shards import Damaged, Sample, Samples
from models.data.texts import text_of, window_of
from models.data.tokenizer import MASKED, Tokens
from models.recipe import Data, Recipe
from models.trainable import Batch

NEXT, RANDOM = 0, 1
"""As transformers' BertForPreTraining counts them."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
CHARACTERS = 6
"""Of a token, at most, about: so much of a long text is looked at as fills the context."""
TRIES = 64
"""Of finding another sample than the first."""


class Pair(NamedTuple):
    masked: Masked
    first: int
    """How many tokens are of the first text."""
    label: int


class SentencePairs(Collate[Pair]):
    """`input_ids`, `attention_mask`, `token_type_ids` (n, length), `masked_places` and `masked_labels` (n, m), and
    `next_labels` (n,): 0 where the second text goes on with the first, 1 where it does not."""

    def __init__(self, data: Data, tokenizer: Any) -> None:
        """Raises `ValueError` for a tokenizer that lacks a special token."""
        self._context = data.texts.context
        self._tokens = Tokens(tokenizer)
        self._first, self._last = tokenizer.cls_token_id, tokenizer.sep_token_id
        self._masking = Masking(tokenizer, max(1, round(SHARE * self._context)))
        self._sets: Sequence[Samples] = ()

    def meet(self, sets: Mapping[str, Samples]) -> None:
        self._sets = [sets[name] for name in sorted(sets)]

    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> Pair:
        first, second = self._halves(sample, dice)
        label = NEXT if dice.random() < 0.5 else RANDOM
        if label == RANDOM:
            second = self._halves(self._another(sample, dice), dice)[1]
        first, second = fitted(first, second, self._context - 3)
        tokens = [self._first, *first, self._last, *second, self._last]
        return Pair(self._masking(tokens, dice), len(first) + 2, label)

    def _halves(self, sample: Sample, dice: Random) -> tuple[list[int], list[int]]:
        """The tokens of both parts of a text."""
        text = window_of(text_of(sample, dice), CHARACTERS * self._context, dice)[0]
        first, second = halves(text, dice)
        if not second:
            raise Damaged("too short a text", sample.key, "expected two letters at the least")
        return self._tokens(first, start=False, end=False), self._tokens(second, start=False, end=False)

    def _another(self, sample: Sample, dice: Random) -> Sample:
        """Raises `Damaged` where there is no other."""
        for _ in range(TRIES):
            number = dice.randrange(sum(map(len, self._sets)))
            for samples in self._sets:
                if number < len(samples):
                    break
                number -= len(samples)
            other = samples.read(number)
            if other.key != sample.key:
                return other
        raise Damaged("no other text", sample.key, "expected more samples than one")

    def batch(self, rows: Sequence[Pair]) -> Batch:
        length = max(len(row.masked.tokens) for row in rows)
        tokens = self._tokens.padded([row.masked.tokens for row in rows], length)
        places = torch.arange(length)
        firsts = torch.tensor([row.first for row in rows])
        return {
            **tokens,
            "token_type_ids": (places >= firsts[:, None]).long() * tokens["attention_mask"],
            "masked_places": torch.tensor([row.masked.places for row in rows]),
            "masked_labels": torch.tensor([row.masked.labels for row in rows]),
            "next_labels": torch.tensor([row.label for row in rows]),
        }


def halves(text: str, dice: Random) -> tuple[str, str]:
    """A text cut in two; the second is empty where there is nothing to cut."""
    sentences = [part for part in SENTENCE_END.split(text) if part.strip()]
    parts, between = (sentences, " ") if len(sentences) > 1 else (text.split(), " ")
    if len(parts) < 2:
        parts, between = list(text.strip()), ""
    if len(parts) < 2:
        return text, ""
    cut = dice.randrange(1, len(parts))
    return between.join(parts[:cut]), between.join(parts[cut:])


def fitted(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """Of both what is nearest to the cut, the longer one shortened first, so that they have room together."""
    short = min(len(first), len(second), room // 2)
    kept = (min(len(first), room - short), short) if len(first) > len(second) else (short, room - short)
    return first[len(first) - kept[0] :], second[: kept[1]]


def tokenizer_of(recipe: Recipe, sets: Mapping[str, Samples]) -> Any:
    """The one that the recipe names, else one that is trained on the texts, and has BERT's special tokens."""
    return tokenizer_for(recipe, sets, MASKED)
