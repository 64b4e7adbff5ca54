"""Tokens to be guessed: 15 in 100, of which 8 in 10 are hidden, 1 is another token and 1 stays (Devlin et al. 2019).

masking = Masking(tokenizer, most=10)
hidden, places, labels = masking(tokens, dice)
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

from models.objectives.language import NOT_LEARNT

SHARE = 0.15
HIDDEN, OTHER = 0.8, 0.9
"""Below the first a token becomes the mask, below the second one at random, else it stays."""


class Masked(NamedTuple):
    tokens: list[int]
    """With some of them changed."""
    places: list[int]
    """Of those that are to be guessed, from left to right, and 0 up to `most`."""
    labels: list[int]
    """What they were, and -100 up to `most`."""


class Masking:
    """All chance comes from the dice of a sample, so that its masks are the same wherever and whenever it is read."""

    def __init__(self, tokenizer: Any, most: int) -> None:
        """`most`: tokens of a text that are to be guessed. Raises `ValueError` for a tokenizer without a mask."""
        if tokenizer.mask_token_id is None:
            raise ValueError(f"the tokenizer {tokenizer.name_or_path!r} has no mask token; take one of BERT's kind")
        self._mask, self._most = tokenizer.mask_token_id, most
        self._special = frozenset(tokenizer.all_special_ids)
        self._others = sorted(set(range(len(tokenizer))) - self._special)

    def __call__(self, tokens: Sequence[int], dice: Random) -> Masked:
        changed = list(tokens)
        words = [place for place, token in enumerate(tokens) if token not in self._special]
        count = min(self._most, max(1, round(SHARE * len(words))), len(words))
        places = sorted(dice.sample(words, count))
        for place in places:
            fate = dice.random()
            if fate < HIDDEN:
                changed[place] = self._mask
            elif fate < OTHER:
                changed[place] = dice.choice(self._others)
        rest = self._most - count
        return Masked(changed, places + [0] * rest, [tokens[place] for place in places] + [NOT_LEARNT] * rest)
