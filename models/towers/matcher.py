"""Whether a text is of an image, by BLIP's heads: ITM looks at both together, ITC compares two vectors.

matcher = Matcher.load(Path("blip-itm-base"), "cpu", "float32")
matcher.scores([image_hwc], ["a cat", "a dog"], np.array([0, 0]), batch=64)  # (2, 2): probability, cosine
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoConfig, AutoTokenizer, BlipForImageTextRetrieval

from models.towers.blip_tokens import for_matching
from models.towers.blip_weights import whole
from models.towers.dual_encoder import Dtype, Rows
from models.towers.halving import Halving
from models.towers.preprocess import Pixels, Preprocessing

Places = npt.NDArray[np.int64]


class Matcher:
    """Scores of pairs, in batches that halve where memory runs out."""

    def __init__(self, model: Any, tokenizer: Any, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self.context = min(int(model.config.text_config.max_position_embeddings), int(tokenizer.model_max_length))

    @classmethod
    def load(cls, folder: Path, device: str, dtype: Dtype) -> Matcher:
        """From a folder that `save_pretrained` wrote: config, safetensors, tokenizer, image processor.

        Raises `ValueError` for a model of another kind, for weights that lack a tensor, for files that are missing.
        """
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            kind = AutoConfig.from_pretrained(folder, **options).model_type
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{folder} holds no model that transformers knows: {str(error).splitlines()[0]}") from None
        if kind != "blip":
            raise ValueError(f"{folder} holds a {kind!r}, which matches no images and texts; name a BLIP")
        preprocessing = Preprocessing.load(folder)
        model = whole(BlipForImageTextRetrieval, folder, getattr(torch, dtype))
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        except (OSError, ImportError) as error:
            raise ValueError(f"{folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
        return cls(model.to(device), tokenizer, preprocessing)

    def embed_prepared(self, images: Sequence[Pixels], batch: int) -> Rows:
        """float32 (images, width), unit rows for ITC, of images that `preprocessing` made."""
        pieces = Halving(batch, lambda start, end: self._looked(images[start:end])[1])(len(images))
        found: Rows = torch.cat(list(pieces)).cpu().numpy()
        return found

    def embed_texts(self, texts: Sequence[str], batch: int) -> Rows:
        """float32 (texts, width), unit rows for ITC."""
        pieces = Halving(batch, lambda start, end: self._read(self._tokens(texts[start:end])))(len(texts))
        found: Rows = torch.cat(list(pieces)).cpu().numpy()
        return found

    def scores(self, images: Sequence[Pixels], texts: Sequence[str], image_of: Places, batch: int) -> Rows:
        """float32 (texts, 2): probability by ITM and cosine by ITC of every text and its image, `images[image_of]`.

        `images` are as `preprocessing` made them. What is longer than `context` tokens is cut. What the tower makes of
        the images is held for `batch` of them at once: of 5,000 it would be 9 GB.
        """
        found: Rows = np.empty((len(texts), 2), np.float32)
        by_image = np.argsort(image_of, kind="stable")
        first, room = 0, batch
        for seen_nsd, unit_nd in Halving(batch, lambda start, end: self._looked(images[start:end]))(len(images)):
            start, end = np.searchsorted(image_of, [first, first + len(seen_nsd)], sorter=by_image)
            own = by_image[start:end]
            if len(own):
                told = [texts[row] for row in own]
                found[own], room = self._scored(seen_nsd, unit_nd, told, image_of[own] - first, room)
            first += len(seen_nsd)
            del seen_nsd, unit_nd  # before the next ones are made
        if not np.isfinite(found).all():
            raise FloatingPointError(f"{self._model.dtype} cannot hold this model's numbers; take bfloat16 or float32")
        return found

    def _scored(
        self, seen_nsd: torch.Tensor, unit_nd: torch.Tensor, texts: Sequence[str], image_of: Places, batch: int
    ) -> tuple[Rows, int]:
        """`scores` of texts whose images were looked at, and how many fit into memory at once."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # so that little is padded

        def compare(start: int, end: int) -> torch.Tensor:
            rows = order[start:end]
            places = torch.from_numpy(image_of[rows]).to(seen_nsd.device)
            return self._compared([texts[row] for row in rows], seen_nsd[places], unit_nd[places])

        comparing = Halving(batch, compare)
        found: Rows = np.empty((len(texts), 2), np.float32)
        found[order] = torch.cat(list(comparing(len(texts)))).cpu().numpy()
        return found, comparing.rows

    @torch.inference_mode()
    def _looked(self, images: Sequence[Pixels]) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, places, width) of every image, and (n, d) unit rows."""
        model = self._model
        pixels_nhwc = self.preprocessing.normalise(torch.from_numpy(np.stack(images)).to(model.device))
        seen_nsd = model.vision_model(pixels_nhwc.permute(0, 3, 1, 2).to(model.dtype)).last_hidden_state
        return seen_nsd, normalize(model.vision_proj(seen_nsd[:, 0]).float(), dim=-1)

    @torch.inference_mode()
    def _compared(self, texts: Sequence[str], seen_nsd: torch.Tensor, unit_nd: torch.Tensor) -> torch.Tensor:
        """float32 (n, 2)."""
        model, given = self._model, self._tokens(texts)
        text_nd = self._read(given)
        given["input_ids"] = for_matching(given["input_ids"], self._tokenizer)
        seen_mask = torch.ones(seen_nsd.shape[:2], dtype=torch.long, device=model.device)
        both = model.text_encoder(**given, encoder_hidden_states=seen_nsd, encoder_attention_mask=seen_mask)
        matched_n = model.itm_head(both.last_hidden_state[:, 0]).float().softmax(1)[:, 1]
        return torch.stack([matched_n, (text_nd * unit_nd).sum(1)], 1)

    def _tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        said = self._tokenizer(
            list(texts), padding="longest", truncation=True, max_length=self.context, return_tensors="pt"
        )
        return {name: said[name].to(self._model.device) for name in ("input_ids", "attention_mask")}

    @torch.inference_mode()
    def _read(self, given: dict[str, torch.Tensor]) -> torch.Tensor:
        """float32 (n, d), unit rows."""
        alone = self._model.text_encoder(**given)
        return normalize(self._model.text_proj(alone.last_hidden_state[:, 0]).float(), dim=-1)
