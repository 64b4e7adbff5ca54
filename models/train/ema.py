"""An exponential moving average of the weights (Polyak & Juditsky 1992), which is then what is exported."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor


class Average:
    """value <- decay · value + (1 − decay) · weight after every step; it starts as the weights it is given."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def step(self, parameters: Mapping[str, nn.Parameter]) -> None:
        old = [local(value) for value in self.values.values()]
        new = [local(parameters[name].detach()) for name in self.values]
        torch._foreach_lerp_(old, new, 1 - self.decay)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What of a tensor lies on this process: all of it, or its shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
