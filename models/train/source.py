"""Where a training's batches come from, by the recipe's kind of data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from models.data.images import normalise
from models.data.pairs import open_pairs, open_sets, order_of, tokenizer_for
from models.recipe import Recipe
from models.train.parallel import Place
from models.trainable import Batch


class Loader(Protocol):
    """Batches of this process's rows, from a place in the order of the training on."""

    @property
    def skipped(self) -> Mapping[str, int]:
        """Samples of this process that were replaced by another, by reason."""

    def __iter__(self) -> Iterator[Batch]: ...

    def close(self) -> None: ...


class Source(ABC):
    """The data of one training."""

    tokenizer: Any = None

    @abstractmethod
    def open(self, start: int) -> Loader:
        """From `start` samples of all processes on."""

    @abstractmethod
    def keys(self, start: int, end: int) -> list[str]:
        """What the samples at these places of the order are called."""

    def ready(self, batch: Batch) -> Batch:
        """What is left to do on the device."""
        return batch


class Pairs(Source):
    """Images and their captions."""

    def __init__(self, recipe: Recipe, data: Mapping[str, Any], place: Place, tokenizer: Any) -> None:
        self._recipe, self._data, self._place = recipe, data, place
        self.tokenizer = tokenizer or tokenizer_for(recipe, open_sets(recipe, data))

    def open(self, start: int) -> Loader:
        rank, world, pin = self._place.rank, self._place.world, self._place.device.type == "cuda"
        return open_pairs(self._recipe, self._data, rank, world, start, self.tokenizer, pin=pin)[0]

    def keys(self, start: int, end: int) -> list[str]:
        sets = open_sets(self._recipe, self._data)
        order = order_of(self._recipe, sets)
        whose, which = order.span(start, end)
        return [
            f"{order.names[number]}/{sets[order.names[number]].read(sample).key}"
            for number, sample in zip(whose.tolist(), which.tolist(), strict=True)
        ]

    def ready(self, batch: Batch) -> Batch:
        return normalise(batch, self._recipe.data.images)
