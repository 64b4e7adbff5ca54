"""The learning rate as a function of samples seen, so that it does not depend on processes or micro-batches."""

from __future__ import annotations

import math

from models.recipe import Schedule


def rate(schedule: Schedule, seen: int, batch: int, total: int) -> float:
    """Share of the learning rate for the step that sees the samples `seen` to `seen + batch` of a phase of `total`.

    Warmup counts the step itself, so that the first one moves something; the rest does not, so that the last one does
    too. Both as in open_clip's `scheduler.py`, with samples for steps.
    """
    if seen < schedule.warmup:
        return min(1.0, (seen + batch) / schedule.warmup)
    floor = schedule.floor
    if schedule.kind == "cosine":
        done = min(1.0, (seen - schedule.warmup) / max(1, total - schedule.warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
    if schedule.kind == "wsd":
        start = total * (1 - schedule.decay)
        return 1.0 if seen <= start else max(floor, 1 - (1 - floor) * (seen - start) / (total - start))
    return 1.0
