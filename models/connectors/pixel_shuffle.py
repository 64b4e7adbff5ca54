"""Fewer and wider vectors for a tile: neighbours in a square become one (Shi et al. 2016, backwards).

InternVL (Chen et al. 2024, section 3.1) makes one of 2 x 2, so that a tile of 448 px takes 256 tokens instead of 1024.
"""

from __future__ import annotations

import math

import torch
from torch import nn


def shuffled(features_npd: torch.Tensor, side: int) -> torch.Tensor:
    """(n, patches / side², width · side²), of squares of `side` x `side` patches, line by line within each.

    `features_npd` are the patches of a square image, line by line. Raises `ValueError` where they are not, or where
    `side` does not divide its edge.
    """
    count, patches, width = features_npd.shape
    edge = math.isqrt(patches)
    if edge * edge != patches or edge % side:
        raise ValueError(f"{patches} patches are no squares of {side} x {side}; leave the class token out")
    cells = features_npd.reshape(count, edge // side, side, edge // side, side, width)
    return cells.transpose(2, 3).reshape(count, patches // side**2, width * side**2)


class PixelShuffle(nn.Module):
    """(n, patches, width of the tower) -> (n, patches / side², width of the language model)."""

    def __init__(self, seen: int, said: int, side: int = 2) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(seen * side**2)
        self.linear_1 = nn.Linear(seen * side**2, said)
        self.linear_2 = nn.Linear(said, said)

    def forward(self, features_npd: torch.Tensor) -> torch.Tensor:
        rows = self.norm(shuffled(features_npd, self.side))
        projected: torch.Tensor = self.linear_2(nn.functional.gelu(self.linear_1(rows)))
        return projected
