"""A copy of some modules that follows them slowly: the momentum encoder of MoCo, ALBEF and BLIP.

slow = SlowCopy({"vision_model": tower}, 0.995); slow.vision_model(pixels); slow.follow(model)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from models.train.ema import local


class SlowCopy(nn.Module):
    """copy <- momentum · copy + (1 − momentum) · original after every step (He et al. 2020, equation 2).

    Its weights are buffers: they have no gradient, no optimizer sees them, and checkpoints hold them.
    """

    def __init__(self, modules: Mapping[str, nn.Module], momentum: float) -> None:
        """Of equal weights at the start. Raises `ValueError` for a momentum that is no share."""
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum = {momentum}: expected a share, 0 to 1")
        self.momentum = momentum
        for name, module in modules.items():
            self.add_module(name, _without_parameters(copy.deepcopy(module)))

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """`model` has the originals under the names that they were given here."""
        new = {name: _whole(weight.detach()) for name, weight in model.named_parameters(remove_duplicate=False)}
        old = {name: buffer for name, buffer in self.named_buffers() if name in new}
        torch._foreach_lerp_(list(old.values()), [new[name] for name in old], 1 - self.momentum)


def _without_parameters(module: nn.Module) -> nn.Module:
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, weight.detach())
    return module


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of it, where each process holds a shard."""
    whole: torch.Tensor = local(tensor.full_tensor()) if hasattr(tensor, "full_tensor") else tensor
    return whole
