"""Every patch by itself into the language model's width: a linear map, or two with a non-linearity between."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers.activations import ACT2FN


class Linear(nn.Linear):
    """(…, patches, width of the tower) -> (…, patches, width of the language model): LLaVA (Liu et al. 2023a)."""

    def __init__(self, seen: int, said: int) -> None:
        super().__init__(seen, said)


class Mlp(nn.Module):
    """The same with a hidden layer of the language model's width: LLaVA-1.5 (Liu et al. 2023b, section 3.2).

    Its parameters are called as transformers' `LlavaMultiModalProjector` calls them.
    """

    def __init__(self, seen: int, said: int, activation: str = "gelu") -> None:
        super().__init__()
        self.linear_1 = nn.Linear(seen, said)
        self.act: Any = ACT2FN[activation]
        self.linear_2 = nn.Linear(said, said)

    def forward(self, features_npd: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.linear_2(self.act(self.linear_1(features_npd)))
        return projected
