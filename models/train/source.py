"""Where a training's batches come from, by the recipe's kind of data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from models.data import loader
from models.data.images import normalise
from models.data.kinds import KINDS
from models.data.pairs import open_sets, order_of
from models.data.shards import Damaged
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

    def content(self) -> dict[str, Any]:
        """What the order of the samples follows from: a training goes on with the same only."""
        return {}

    def ready(self, batch: Batch) -> Batch:
        """What is left to do on the device with some rows of a batch, which stay as they are: they may come again."""
        return batch


class Shards(Source):
    """The sets of a recipe's mixture, each sample made a row by its kind of data."""

    def __init__(self, recipe: Recipe, data: Mapping[str, Any], place: Place, tokenizer: Any) -> None:
        """`tokenizer`: of the training that goes on, or of the weights that it begins with; None for the recipe's."""
        self._recipe, self._place = recipe, place
        self._sets = open_sets(recipe, data)
        self._order = order_of(recipe, self._sets)
        kind = KINDS[recipe.data.kind]
        if kind.tokenizer is not None:
            self.tokenizer = tokenizer or kind.tokenizer(recipe, self._sets)
        if kind.ready is not None:
            self.tokenizer = kind.ready(self.tokenizer)
        self._collate = kind.collate(recipe, self.tokenizer)

    def open(self, start: int) -> Loader:
        rank, world, pin = self._place.rank, self._place.world, self._place.device.type == "cuda"
        recipe, decoders = self._recipe, self._recipe.parallel.decoders
        return loader.Loader(
            self._sets, self._order, self._collate, recipe.batch, rank, world, start, pin=pin, decoders=decoders
        )

    def content(self) -> dict[str, Any]:
        return {name: samples.content() for name, samples in self._sets.items()}

    def keys(self, start: int, end: int) -> list[str]:
        whose, which = self._order.span(start, end)
        names = [self._order.names[number] for number in whose.tolist()]
        return [self._key(name, sample) for name, sample in zip(names, which.tolist(), strict=True)]

    def _key(self, name: str, sample: int) -> str:
        try:
            return f"{name}/{self._sets[name].read(sample).key}"
        except Damaged as damaged:  # another stood in its place
            return f"{name}/{damaged}"

    def ready(self, batch: Batch) -> Batch:
        return normalise(batch, self._recipe.data.images) if "pixel_values" in batch else batch
