"""Images as vectors, and as classes, by an image tower that knows no texts: what ViT and DINO leave.

encoder = ImageEncoder.load(Path("dino/model"), "cpu", "float32")
rows_nd = encoder.embed_prepared([encoder.preprocessing(image_hwc)], batch=64)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoModel, AutoModelForImageClassification
from transformers.utils import logging

from models.towers import timm
from models.towers.dual_encoder import Dtype, Rows
from models.towers.halving import Halving
from models.towers.preprocess import Pixels, Preprocessing

POOLED = ("vit", "deit")
"""Towers that would be given a pooler, with which few are saved, for nobody reads what it makes."""


def class_names(folder: Path) -> tuple[str, ...]:
    """Those of a classifier in their order; none for a tower alone."""
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not any(str(part).endswith("ForImageClassification") for part in said.get("architectures") or ()):
        return ()
    if "label_names" in said:  # as timm's are saved
        return tuple(said["label_names"])
    return tuple(name for _, name in sorted(said["id2label"].items(), key=lambda item: int(item[0])))


class ImageEncoder:
    """The class token of the last layer, or what a model of timm's pools, as a unit row, in batches that halve where
    memory runs out."""

    def __init__(self, model: Any, preprocessing: Preprocessing, classes: Sequence[str]) -> None:
        self.preprocessing, self.classes = preprocessing, tuple(classes)
        self._model = model.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, device: str, dtype: Dtype) -> ImageEncoder:
        """From a folder that `save_pretrained` wrote. Raises `ValueError` for weights that lack a tensor."""
        classes, preprocessing = class_names(folder), Preprocessing.load(folder)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        kind: Any = AutoModelForImageClassification if classes else AutoModel
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        more = {"add_pooling_layer": False} if not classes and said.get("model_type") in POOLED else {}
        try:
            model, found = kind.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
                **more,
            )
        except (OSError, ImportError) as error:
            raise ValueError(f"{folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
        if absent := sorted(found["missing_keys"]):  # transformers would go on with random numbers in their place
            raise ValueError(f"{folder} lacks {len(absent)} tensors, {absent[0]} among them; save the model again")
        return cls(model.to(device), preprocessing, classes)

    def embed_prepared(self, images: Sequence[Pixels], batch: int) -> Rows:
        """float32 (images, width), unit rows, of uint8 images that `preprocessing` made."""
        tower = getattr(self._model, self._model.base_model_prefix, self._model)

        def embed(pixels_nchw: torch.Tensor) -> torch.Tensor:
            if self._model.config.model_type == timm.KIND:
                pooled_nd = tower.forward_head(tower.forward_features(pixels_nchw), pre_logits=True)
                return functional.normalize(pooled_nd.float(), dim=-1)
            tokens_nld = tower(pixel_values=pixels_nchw).last_hidden_state
            return functional.normalize(tokens_nld[:, 0].float(), dim=-1)

        return self._batched(images, batch, embed)

    def scores_prepared(self, images: Sequence[Pixels], batch: int) -> Rows:
        """float32 (images, classes): the logits of a classifier."""
        return self._batched(images, batch, lambda pixels_nchw: self._model(pixel_values=pixels_nchw).logits.float())

    def _batched(self, images: Sequence[Pixels], batch: int, make: Callable[[torch.Tensor], torch.Tensor]) -> Rows:
        def some(start: int, end: int) -> torch.Tensor:
            pixels_nhwc = torch.from_numpy(np.stack(images[start:end])).to(self._model.device)
            pixels_nchw = self.preprocessing.normalise(pixels_nhwc).permute(0, 3, 1, 2)
            with torch.inference_mode():
                return make(pixels_nchw.to(self._model.dtype))

        rows: Rows = torch.cat(list(Halving(batch, some)(len(images)))).cpu().numpy()
        if not np.isfinite(rows).all():
            raise FloatingPointError(f"{self._model.dtype} cannot hold this model's numbers; take bfloat16 or float32")
        return rows
