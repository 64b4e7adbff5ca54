"""What becomes of samples by the recipe's kind of data: a collator each, and the tokenizer that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from models.data.loader import Collate
from models.data.pairs import Pairs, tokenizer_for
from models.data.shards import Samples
from models.recipe import Recipe


class Kind(NamedTuple):
    """How one kind of data is read."""

    collate: Callable[[Recipe, Any], Collate[Any]]
    """Of a recipe and its tokenizer, if it has one."""
    tokenizer: Callable[[Recipe, Mapping[str, Samples]], Any] | None = None
    """The one that the recipe names, else one that is trained on the sets; None where nothing is read as text."""


KINDS: Mapping[str, Kind] = {
    "pairs": Kind(lambda recipe, tokenizer: Pairs(recipe.data, tokenizer), tokenizer_for),
}
