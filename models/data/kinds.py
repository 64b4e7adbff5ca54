"""What becomes of samples by the recipe's kind of data: a collator each, and the tokenizer that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from models.data import sentence_pairs, texts
from models.data.chat import ready_to_chat
from models.data.collate import Collate
from models.data.conversations import Conversations, conversation_tokenizer
from models.data.crops import ManyCrops
from models.data.labelled import Labelled
from models.data.pairs import Pairs, tokenizer_for
from models.data.sentence_pairs import SentencePairs
from models.data.shards import Samples
from models.data.teacher import PairsAndTeacher
from models.data.texts import Texts
from models.data.views import PairsAndViews
from models.recipe import Recipe


class Kind(NamedTuple):
    """How one kind of data is read."""

    collate: Callable[[Recipe, Any], Collate[Any]]
    """Of a recipe and its tokenizer, if it has one."""
    tokenizer: Callable[[Recipe, Mapping[str, Samples]], Any] | None = None
    """The one that the recipe names, else one that is trained on the sets; None where nothing is read as text."""
    ready: Callable[[Any], Any] | None = None
    """What the kind needs of any tokenizer, such as a chat template."""
    images: bool = True
    """Whether it shows any."""


KINDS: Mapping[str, Kind] = {
    "conversations": Kind(
        lambda recipe, tokenizer: Conversations(recipe.data, tokenizer), conversation_tokenizer, ready_to_chat
    ),
    "crops": Kind(lambda recipe, tokenizer: ManyCrops(recipe.data)),
    "labels": Kind(lambda recipe, tokenizer: Labelled(recipe.data)),
    "pairs": Kind(lambda recipe, tokenizer: Pairs(recipe.data, tokenizer), tokenizer_for),
    "pairs_and_teacher": Kind(lambda recipe, tokenizer: PairsAndTeacher(recipe.data, tokenizer), tokenizer_for),
    "pairs_and_views": Kind(lambda recipe, tokenizer: PairsAndViews(recipe.data, tokenizer), tokenizer_for),
    "sentence_pairs": Kind(
        lambda recipe, tokenizer: SentencePairs(recipe.data, tokenizer), sentence_pairs.tokenizer_of, images=False
    ),
    "texts": Kind(lambda recipe, tokenizer: Texts(recipe.data, tokenizer), texts.tokenizer_of, images=False),
}
