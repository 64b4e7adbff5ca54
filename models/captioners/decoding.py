"""How captions are decoded, and what a captioner gives: plain values that a stage and a command line share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Method = Literal["nucleus", "beam"]


class Written(NamedTuple):
    """One caption that a captioner wrote."""

    text: str
    score: float | None
    """The mean logarithm of the probability that the model gave its tokens, its end included; None where unknown."""


@dataclass(frozen=True)
class Decoding:
    """Nucleus sampling (Holtzman et al. 2020) or beam search, as BLIP compares them (Li et al. 2022, section 4.3)."""

    method: Method = "nucleus"
    candidates: int = 1
    """Captions of an image; of a beam search, the best so many."""
    top_p: float = 0.9
    """Of nucleus sampling: the least probability that the tokens to draw from have together."""
    temperature: float = 1.0
    beams: int = 3
    most_tokens: int = 30
    least_tokens: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `ValueError` for what cannot be decoded."""
        if self.method == "beam" and self.beams < self.candidates:
            raise ValueError(f"beams = {self.beams}: less than the {self.candidates} candidates; raise it to as many")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p:g}: expected more than 0 and at most 1, such as 0.9")
        if self.temperature <= 0:
            raise ValueError(f"temperature = {self.temperature:g}: expected more than 0; 1 leaves the model as it is")
        if not 1 <= self.least_tokens <= self.most_tokens:
            raise ValueError(f"least_tokens = {self.least_tokens}: expected 1 to most_tokens = {self.most_tokens}")
