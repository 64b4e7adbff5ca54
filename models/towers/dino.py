"""An image tower that learns from images alone: views of one image shall look alike to it and to a slow copy of it.

model = Dino({"model_type": "vit", "hidden_size": 384, ...})
features = model(batch)        # of `models.data.crops`; objective: models.objectives.dino.SelfDistillation
model.export(Path("model"))    # ViTModel and AutoModel load the slow copy's tower

DINO, Caron et al. 2021; figures that are not in the paper are those of the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import ViTModel

from models.towers.single import built
from models.towers.slow_copy import SlowCopy
from models.trainable import Batch, Features, Trainable


class Dino(Trainable):
    """`student` (n, views, prototypes) of all views and `teacher` (n, 2, prototypes) of the two large ones: what each
    view has of each prototype, before any softmax."""

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        pretrained: str | None = None,
        prototypes: int = 65_536,
        hidden: int = 2048,
        bottleneck: int = 256,
        momentum: float = 0.996,
        held: float = 0.0,
    ) -> None:
        """`config`: keys of transformers' ViTConfig, and `model_type: vit`. `pretrained`: a folder or hub id, instead.

        `hidden`, `bottleneck`: widths within the head. `momentum`: of the slow copy at the start; a cosine makes it 1
        in the end. `held`: share of the training in which the prototypes stay as they are. Raises `ValueError`.
        """
        super().__init__()
        self.backbone = built(ViTModel, config, pretrained, add_pooling_layer=False)
        self.head = Head(self.backbone.config.hidden_size, hidden, bottleneck, prototypes)
        self.teacher = SlowCopy({"backbone": self.backbone, "head": self.head}, momentum)
        self._momentum, self._held = momentum, held

    def encode(self, batch: Batch) -> Features:
        views = [batch[name] for name in ("pixel_values", "small_pixel_values") if name in batch]
        tokens = torch.cat([_seen(self.backbone, some) for some in views], dim=1)
        self.teacher.eval()  # it has no parameters, by which the trainer would know
        with torch.no_grad():
            seen = _seen(self.teacher.get_submodule("backbone"), batch["pixel_values"])
            taught = self.teacher.get_submodule("head")(seen)
        return {"student": self.head(tokens, moves=self.done >= self._held), "teacher": taught}

    def after_step(self) -> None:
        self.teacher.momentum = 1 - (1 - self._momentum) * (math.cos(math.pi * self.done) + 1) / 2
        self.teacher.follow(self)

    def export(self, folder: Path) -> None:
        """Config and safetensors of the slow copy's tower, which is the better one (the paper's section 5.2)."""
        copied = ViTModel(self.backbone.config, add_pooling_layer=False)
        copied.load_state_dict(self.teacher.get_submodule("backbone").state_dict())
        copied.save_pretrained(folder)


class Head(nn.Module):
    """Three layers to a bottleneck, of length one, and its cosines with the prototypes: a layer with weight
    normalisation (Salimans & Kingma 2016) whose gains stay 1."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        widths = [width, hidden, hidden, bottleneck]
        self.layers = nn.Sequential()
        for number, (wide, next_wide) in enumerate(pairwise(widths)):
            if number:
                self.layers.append(nn.GELU())
            layer = nn.Linear(wide, next_wide)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
            self.layers.append(layer)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, rows: torch.Tensor, moves: bool = True) -> torch.Tensor:
        """(…, prototypes) of (…, width). `moves`: whether the prototypes have a gradient."""
        prototypes = self.prototypes if moves else self.prototypes.detach()
        unit = functional.normalize(self.layers(rows), dim=-1)
        return functional.linear(unit, functional.normalize(prototypes, dim=-1).to(unit.dtype))


def _seen(backbone: nn.Module, views_nvchw: torch.Tensor) -> torch.Tensor:
    """(n, views, width): the class token of each view, of any side that whole patches fill."""
    read = backbone(pixel_values=views_nvchw.flatten(0, 1), interpolate_pos_encoding=True)
    return torch.unflatten(read.last_hidden_state[:, 0], 0, views_nvchw.shape[:2])
