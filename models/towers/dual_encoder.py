"""Images and texts into one space, by any dual encoder that transformers knows.

encoder = DualEncoder.load(Path("clip-vit-base-patch32"), "cpu", "float32")
encoder.embed_images([image_hwc], batch=64) @ encoder.embed_texts(["a photo of a cat"], batch=256).T
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

import models.without_torchvision  # isort: skip
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging

import models.towers.clip_resnet  # noqa: F401  # its model type
from models.towers.halving import Halving
from models.towers.preprocess import Pixels, Preprocessing

Dtype = Literal["float32", "float16", "bfloat16"]
Rows = npt.NDArray[np.float32]

WHOLE_CONTEXT = ("siglip", "siglip2")
"""Model types whose text is read at its last place, so that every text must be padded to the whole context."""
CONTEXTS = {"align": 64, "chinese_clip": 52}
"""Tokens that these were trained on; their configs name the 512 places that BERT came with."""


def embedding_width(folder: Path) -> int:
    """The width of a model's embeddings, from its config alone.

    Raises `ValueError` where the folder holds no dual encoder.
    """
    said = json.loads((folder / "config.json").read_text())
    if "projection_dim" in said:  # without the seconds that transformers takes to load
        return int(said["projection_dim"])
    config = _config(folder)
    return int(getattr(config, "projection_dim", None) or config.vision_config.hidden_size)


def _config(folder: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no model that transformers knows: {str(error).splitlines()[0]}") from None
    if not (hasattr(config, "text_config") and hasattr(config, "vision_config")):
        raise ValueError(f"{folder} holds a {config.model_type!r}, which has no text and vision tower; name a CLIP")
    return config


class DualEncoder:
    """Unit rows for images and for texts, in batches that halve where memory runs out."""

    def __init__(self, model: Any, tokenizer: Any, preprocessing: Preprocessing, width: int) -> None:
        self.preprocessing = preprocessing
        self.width = width
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        kind, places = model.config.model_type, model.config.text_config.max_position_embeddings
        self._padding = "max_length" if kind in WHOLE_CONTEXT else "longest"
        self.context = min(CONTEXTS.get(kind, places), places, tokenizer.model_max_length)
        self._room: dict[str, int] = {}

    @classmethod
    def load(cls, folder: Path, device: str, dtype: Dtype) -> DualEncoder:
        """From a folder that `save_pretrained` wrote: config, safetensors, tokenizer, image processor.

        Raises `ValueError` for a model without two towers, for weights that lack a tensor, for files that are missing.
        """
        _config(folder)
        preprocessing, width = Preprocessing.load(folder), embedding_width(folder)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            model, found = AutoModel.from_pretrained(
                folder, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        except (OSError, ImportError) as error:
            raise ValueError(f"{folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
        absent = sorted(found["missing_keys"])
        if absent:  # transformers would go on with random numbers in their place
            raise ValueError(f"{folder} lacks {len(absent)} tensors, {absent[0]} among them; save the model again")
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise ValueError(f"{folder} holds a {type(model).__name__}, which does not embed images and texts")
        return cls(model.to(device), tokenizer, preprocessing, width)

    @property
    def logit_scale(self) -> float:
        """What a cosine is multiplied with in the model's loss."""
        if hasattr(self._model, "temperature"):  # ALIGN divides
            return 1 / float(self._model.temperature)
        return float(self._model.logit_scale.float().exp())

    @property
    def logit_bias(self) -> float | None:
        """What is added then, in a model that was trained with a sigmoid loss; None in one with a softmax."""
        bias = getattr(self._model, "logit_bias", getattr(self._model.config, "logit_bias", None))
        return None if bias is None else float(bias)

    def embed_images(self, images: Sequence[Pixels], batch: int, threads: Executor | None = None) -> Rows:
        """float32 (images, width), unit rows, of uint8 (height, width, 3) each, at most `batch` at once.

        With `threads`, the images of the next batches are resized while the model works on one.
        """
        if threads is None:
            return self.embed_prepared([self.preprocessing(image) for image in images], batch)
        coming = [threads.submit(self.preprocessing, image) for image in images]
        return self._embed(len(images), batch, lambda start, end: [one.result() for one in coming[start:end]])

    def embed_prepared(self, images: Sequence[Pixels], batch: int) -> Rows:
        """The same of images that `preprocessing` made."""
        return self._embed(len(images), batch, lambda start, end: images[start:end])

    def _embed(self, count: int, batch: int, images: Callable[[int, int], Sequence[Pixels]]) -> Rows:
        def embed(start: int, end: int) -> torch.Tensor:
            return self._unit(self._model.get_image_features, self._image_inputs(images(start, end)))

        return self._batched("images", count, batch, embed)

    def embed_texts(self, texts: Sequence[str], batch: int) -> Rows:
        """float32 (texts, width), unit rows; what is longer than `context` tokens is cut."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # so that little is padded

        def embed(start: int, end: int) -> torch.Tensor:
            inputs = self._tokenizer(
                [texts[row] for row in order[start:end]],
                padding=self._padding,
                truncation=True,
                max_length=self.context,
                return_tensors="pt",
            )
            return self._unit(self._model.get_text_features, inputs.to(self._model.device))

        sorted_rows = self._batched("texts", len(texts), batch, embed)
        rows = np.empty_like(sorted_rows)
        rows[order] = sorted_rows
        return rows

    def _image_inputs(self, images: Sequence[Pixels]) -> dict[str, torch.Tensor]:
        model, prepare = self._model, self.preprocessing
        if not prepare.patches:
            images_nhwc = torch.from_numpy(np.stack(images))
            if model.device.type == "cuda":  # pinned, so that the next batch is stacked while the GPU works on this one
                images_nhwc = images_nhwc.pin_memory()
            images_nhwc = images_nhwc.to(model.device, non_blocking=True)
            return {"pixel_values": prepare.normalise(images_nhwc).permute(0, 3, 1, 2).to(model.dtype)}
        side = prepare.patch
        patches = torch.zeros(len(images), prepare.patches, side * side * 3, device=model.device)
        mask = torch.zeros(len(images), prepare.patches, dtype=torch.int32, device=model.device)
        shapes = torch.tensor([[image.shape[0] // side, image.shape[1] // side] for image in images])
        for row, (image, (high, wide)) in enumerate(zip(images, shapes.tolist(), strict=True)):
            values = prepare.normalise(torch.tensor(image, device=model.device))
            cells = values.reshape(high, side, wide, side, 3).transpose(1, 2).reshape(high * wide, -1)
            patches[row, : high * wide], mask[row, : high * wide] = cells, 1
        return {"pixel_values": patches.to(model.dtype), "pixel_attention_mask": mask, "spatial_shapes": shapes}

    @torch.inference_mode()
    def _unit(self, features: Callable[..., Any], inputs: Any) -> torch.Tensor:
        rows: torch.Tensor = features(**inputs).pooler_output
        if rows.shape[-1] != self.width:
            raise ValueError(f"embeddings of width {rows.shape[-1]}; the model's config promises {self.width}")
        return torch.nn.functional.normalize(rows.float(), dim=-1)

    def _batched(self, what: str, count: int, batch: int, embed: Callable[[int, int], torch.Tensor]) -> Rows:
        """All rows; a size at which memory ran out is not tried again."""
        most = min(batch, self._room.get(what, batch))
        halving = Halving(most, embed)
        batches = list(halving(count))
        if halving.rows < most:
            self._room[what] = halving.rows
        # One copy from the device, at the end: it need not wait after every batch.
        rows: Rows = torch.cat(batches).cpu().numpy() if batches else np.zeros((0, self.width), np.float32)
        if not np.isfinite(rows).all():
            raise FloatingPointError(f"{self._model.dtype} cannot hold this model's numbers; take bfloat16 or float32")
        return rows
