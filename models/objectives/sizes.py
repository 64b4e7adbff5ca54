"""The sizes of features that objectives are built for, which only the model's config decides."""

from __future__ import annotations


def wrong_size(parameter: str, said: int, feature: str, found: int) -> ValueError:
    """What to raise where rows of a feature have not as many numbers as an objective's parameter says."""
    told = f"{parameter} = {said}: the model gives {feature!r} of {found} numbers"
    return ValueError(f"{told}; set {parameter} to {found}")
