"""Figures of some steps as one row of the curve."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

Row = dict[str, float]


class Meter:
    """Adds up what steps say; `row` gives the means, and begins anew."""

    def __init__(self, weights: Mapping[str, float], batch: int, peak: float | None) -> None:
        """`weights`: of every loss, by the objective's name. `peak`: operations a second of all processes together."""
        self._weights, self._batch, self._peak = weights, batch, peak
        self._begin()

    def _begin(self) -> None:
        self._start = time.perf_counter()
        self._steps, self._sums, self._norm = 0, dict.fromkeys(self._weights, 0.0), 0.0
        self._tokens = self._operations = 0.0
        self.waited = 0.0
        """Seconds spent waiting for data."""

    def loss(self, losses: Sequence[float]) -> float:
        """The weighted sum."""
        return sum(weight * loss for weight, loss in zip(self._weights.values(), losses, strict=True))

    def add(self, losses: Sequence[float], norm: float, tokens: float, operations: float) -> None:
        """Of one step, over all processes."""
        self._steps += 1
        self._sums = {name: total + loss for (name, total), loss in zip(self._sums.items(), losses, strict=True)}
        self._norm += norm
        self._tokens += tokens
        self._operations += operations

    def row(self, learning_rate: float) -> tuple[Row, float] | None:
        """Means since the row before, and the seconds that they took; None where there was no step."""
        if not self._steps:
            return None
        seconds = time.perf_counter() - self._start
        losses = {name: total / self._steps for name, total in self._sums.items()}
        row = {
            "loss": self.loss(list(losses.values())),
            **(losses if len(losses) > 1 else {}),
            "learning_rate": learning_rate,
            "gradient_norm": self._norm / self._steps,
            "samples_per_second": self._steps * self._batch / seconds,
            "tokens_per_second": self._tokens / seconds,
            "waiting": self.waited / seconds,
        }
        if self._peak is not None:
            row["mfu"] = self._operations / seconds / self._peak
        self._begin()
        return row, seconds
