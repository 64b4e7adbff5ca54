"""open_clip's own CLIP and loss, out of the folder `.open_clip` that `.ci/run` makes, without the rest of it."""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import models.without_torchvision  # isort: skip  # noqa: F401
import transformers  # noqa: F401  # before the empty torchvision, which it would ask for its version

FOLDER = Path(os.environ.get("OPEN_CLIP", Path(__file__).parents[2] / ".open_clip")) / "open_clip"
EMPTY = ("torchvision", "torchvision.ops", "torchvision.ops.misc")
"""What its modules import, and a CLIP with a ViT does not use."""


def model(
    side: int, patch: int, width: int, layers: int, heads: int, context: int, words: int, quick_gelu: bool
) -> nn.Module:
    """Random, with two towers of the same width, which is that of the embeddings, too."""
    package, tall = _module("model"), {"layers": layers, "width": width}
    seen = package.CLIPVisionCfg(**tall, head_width=width // heads, patch_size=patch, image_size=side)
    said = package.CLIPTextCfg(**tall, context_length=context, vocab_size=words, heads=heads)
    made: nn.Module = package.CLIP(width, seen, said, quick_gelu=quick_gelu, output_dict=True)
    return made


def loss() -> nn.Module:
    made: nn.Module = _module("loss").ClipLoss()
    return made


def _module(name: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for empty in EMPTY:
            patch.setitem(sys.modules, empty, types.ModuleType(empty))
        sys.modules[EMPTY[-1]].FrozenBatchNorm2d = nn.BatchNorm2d  # type: ignore[attr-defined]
        package = types.ModuleType("open_clip")  # without its __init__, which imports what transforms images
        package.__path__ = [str(FOLDER)]
        patch.setitem(sys.modules, "open_clip", package)
        return importlib.import_module(f"open_clip.{name}")
