"""Captioners and filters of random weights, small enough to load in a moment."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from models.data.images import save_preprocessor
from models.data.tokenizer import trained
from models.recipe import Images

SIDE = 16
CONTEXT = 16
TEXTS = ("a red circle on a blue square", "two green stars and a cat", "the cat sat on the mat", "a large box")


@cache
def tokenizer() -> Any:
    return trained(TEXTS * 4, 300, CONTEXT)


def config() -> BlipConfig:
    own, words = tokenizer(), {"hidden_size": 32, "intermediate_size": 64}
    ends = {"bos_token_id": own.bos_token_id, "eos_token_id": own.eos_token_id, "sep_token_id": own.eos_token_id}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**words, **layers, **ends, "vocab_size": len(own), "pad_token_id": own.pad_token_id}
    text |= {"max_position_embeddings": 32, "encoder_hidden_size": 32, "initializer_range": 0.3}
    vision = {**words, **layers, "image_size": SIDE, "patch_size": 8, "initializer_range": 0.3}
    return BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)


def captioner(folder: Path, seed: int = 0) -> Path:
    return _saved(BlipForConditionalGeneration, folder, seed)


def matcher(folder: Path, seed: int = 0) -> Path:
    return _saved(BlipForImageTextRetrieval, folder, seed)


def _saved(kind: Any, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    kind(config()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    save_preprocessor(Images(side=SIDE), folder)
    return folder
