"""Watches the loss: a number that is none, or a jump, means that a batch or a learning rate was bad.

IDEFICS (Laurençon et al. 2023, appendix A.1.3) rolled back to a checkpoint and skipped some data; so does `then: skip`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

WINDOW = 100
"""Steps over which the running mean forgets."""
FIRST = 20
"""Steps before a jump can be told from a beginning."""
NAMED = 3
"""Samples that an error names; the others stand in a file."""
NOISE = 0.05, 0.01
"""Share of the mean, and loss, that a standard deviation is taken for at least: where all is learned, it is near 0."""


class TrainingError(RuntimeError):
    """A training that cannot go on: one line that names the step and the samples."""


class Trouble(Exception):
    """A step that must not count."""

    def __init__(self, position: int, what: str) -> None:
        super().__init__(what)
        self.position = position


def named(keys: Sequence[str], path: str) -> str:
    """The first samples of a batch, and the file that names them all."""
    first = ", ".join(keys[:NAMED])
    return first if len(keys) <= NAMED else f"{first} and {len(keys) - NAMED} more, in {path}"


@dataclass
class Guard:
    """Running mean and variance of the loss."""

    mean: float = 0.0
    variance: float = 0.0
    steps: int = 0
    phase: int = 0
    """Of the recipe; another one begins anew."""

    def trouble(self, loss: float, norm: float, spike: float) -> str | None:
        """What is wrong with a step of this loss and this norm of the gradient; a good one enters the running mean."""
        if not math.isfinite(loss):
            return f"loss = {loss}"
        if not math.isfinite(norm):
            return f"gradient norm = {norm}"
        deviation = max(math.sqrt(self.variance), NOISE[0] * abs(self.mean), NOISE[1])
        if self.steps >= FIRST and loss > self.mean + spike * deviation:
            return f"loss = {loss:.4g}, a jump of {(loss - self.mean) / deviation:.0f} deviations from {self.mean:.4g}"
        self.steps += 1
        share = 1 / min(self.steps, WINDOW)
        away = loss - self.mean
        self.mean += share * away
        self.variance = (1 - share) * (self.variance + share * away * away)
        return None

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return asdict(self)
