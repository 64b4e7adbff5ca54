"""An image tower that learns classes: ViT (Dosovitskiy et al. 2021), and what else transformers classifies images with.

model = VisionClassifier({"model_type": "vit", "hidden_size": 96, ...}, classes=["circle", "square"])
model.export(Path("model"))    # AutoModelForImageClassification loads it, with the names; AutoModel the tower alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoModelForImageClassification

from models.towers import timm
from models.towers.single import built
from models.trainable import Batch, Features, Trainable


class VisionClassifier(Trainable):
    """`logits` (n, classes) and `labels` (n,), of the batch's `pixel_values` and `classes`."""

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        pretrained: str | None = None,
        classes: int | Sequence[str] = 1000,
    ) -> None:
        """`config`: as transformers writes it, with its `model_type`. `pretrained`: a folder or a hub id of one
        that was trained on the same classes, instead. `classes`: their names, or how many. Raises `ValueError`."""
        super().__init__()
        names = [str(number) for number in range(classes)] if isinstance(classes, int) else list(classes)
        if config is not None:
            named = {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}
            config = {**config, **named}
        self.model = built(AutoModelForImageClassification, config, pretrained)
        self._classes = int(self.model.config.num_labels)
        if self._classes != len(names):
            raise ValueError(f"pretrained = {pretrained!r} knows {self._classes} classes; the recipe has {len(names)}")

    @property
    def images(self) -> dict[str, Any]:
        """As of `TwoTowers`."""
        config = self.model.config
        return timm.trained_on(config.to_dict()) if config.model_type == timm.KIND else {}

    def encode(self, batch: Batch) -> Features:
        labels_n = batch["classes"]
        if labels_n.device.type == "cpu" and int(labels_n.max()) >= self._classes:  # a GPU would have to be waited for
            raise ValueError(f"a sample of class {int(labels_n.max())}; the model knows {self._classes}: set `classes`")
        return {"logits": self.model(pixel_values=batch["pixel_values"]).logits, "labels": labels_n}

    def export(self, folder: Path) -> None:
        """Config, with the names of the classes, and safetensors."""
        self.model.save_pretrained(folder)
