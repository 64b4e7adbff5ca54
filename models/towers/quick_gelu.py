"""OpenAI CLIP's activation x · σ(1.702 x) (Hendrycks and Gimpel 2016, section 2), as PyTorch's SiLU computes it.

Written out, as transformers has it, it keeps two tensors for the backward pass where this keeps one: those of the
MLPs, four times as wide as the tower, are the largest that a step holds. In bfloat16 it is rounded three times, as that
is, but also where σ is 1.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import QuickGELUActivation

STEEPNESS = 1.702


class QuickGELU(nn.Module):
    """The same shape and dtype; no weights."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.silu(STEEPNESS * rows) / STEEPNESS


def put_into(model: nn.Module) -> None:
    """In the place of every one of transformers'."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuickGELUActivation):
            model.set_submodule(name, QuickGELU())
