"""The order of a training whose phases read different sets.

A phase with a mixture of its own goes through its sets from their beginning, whatever the phases before it took. A
batch belongs to the phase in which its first sample is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

import numpy as np

from models.data.order import Numbers, Order
from models.recipe import Recipe


class PhasedOrder:
    """As `Order`: place in the training -> set and sample."""

    def __init__(self, recipe: Recipe, sizes: Mapping[str, int]) -> None:
        """`sizes`: samples of every set. Raises `DataError` where `Order` does."""
        self.seed = recipe.seed
        self.names = tuple(sorted(recipe.sets))
        self._starts: list[int] = []
        self._orders: list[Order] = []
        self._first: list[int] = []
        for number, phase in enumerate(recipe.phases):
            start = -(-recipe.bounds(number)[0] // recipe.batch) * recipe.batch
            self._starts.append(start)
            self._orders.append(Order(sizes, phase.mixture or recipe.data.mixture, recipe.seed))
            self._first.append(0 if phase.mixture is None else start)

    def span(self, start: int, stop: int) -> tuple[Numbers, Numbers]:
        """int64 (stop - start,) each: the numbers of the sets in `names`, and of the samples in these."""
        found: list[tuple[Numbers, Numbers]] = []
        while True:
            phase = self._phase(start)
            end = min([stop, *self._starts[phase + 1 : phase + 2]])
            order, first = self._orders[phase], self._first[phase]
            sets, samples = order.span(start - first, end - first)
            found.append((np.array([self.names.index(name) for name in order.names], np.int64)[sets], samples))
            if end == stop:
                return np.concatenate([sets for sets, _ in found]), np.concatenate([samples for _, samples in found])
            start = end

    def instead(self, place: int, attempt: int) -> tuple[str, int]:
        """What takes the place of a sample that cannot be used, of the same set."""
        phase = self._phase(place)
        return self._orders[phase].instead(place - self._first[phase], attempt)

    def _phase(self, place: int) -> int:
        return bisect_right(self._starts, place) - 1


Places = Order | PhasedOrder
