"""An image tower that sees only some of its patches while it trains (FLIP, Li et al. 2023, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from models.splitmix import mixed


class PatchDropout:
    """A hook on a tower's embeddings: behind them only some patches are left, others for every image.

    Which ones those are depends on the image's place in the order of the training alone. So a step that is done again,
    on more processes or in two passes (GradCache), sees the same.
    """

    def __init__(self, embeddings: nn.Module) -> None:
        """`embeddings` gives (n, tokens, d), patches last. Raises `ValueError` where it knows no `num_patches`."""
        self.share = 0.0
        self.positions_n: torch.Tensor | None = None
        found: list[Any] = [module.num_patches for module in embeddings.modules() if hasattr(module, "num_patches")]
        if not found:
            raise ValueError(f"{type(embeddings).__name__} has no patches to drop; take a ViT, or patch_dropout 0")
        self._patches = int(found[0])
        embeddings.register_forward_hook(self)

    def __call__(self, embeddings: nn.Module, arguments: Any, tokens_nld: torch.Tensor) -> torch.Tensor:
        if self.share == 0 or not embeddings.training:
            return tokens_nld
        if self.positions_n is None:
            raise ValueError("patch dropout draws from `position`, which the batch lacks: (n,) int64, a sample's place")
        left = max(1, round((1 - self.share) * self._patches))
        first = tokens_nld.shape[1] - self._patches  # the class token, where there is one, always stays
        kept_nl = drawn(self.positions_n, self._patches)[:, :left].sort().values + first
        kept_nld = tokens_nld.gather(1, kept_nl[..., None].expand(-1, -1, tokens_nld.shape[2]))
        return torch.cat([tokens_nld[:, :first], kept_nld], dim=1)


def drawn(positions_n: torch.Tensor, patches: int) -> torch.Tensor:
    """int64 (n, patches): their numbers in an order that is random and always the same for a position."""
    places = torch.arange(patches, device=positions_n.device)
    return mixed(mixed(positions_n)[:, None] + places).argsort(dim=1, stable=True)
