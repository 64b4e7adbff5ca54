"""Weights that a parameter names: a folder of safetensors on any fsspec store, or a model of the Hugging Face hub.

A folder is known by the digests of its files, a model of the hub by its commit. Nothing here knows what a model is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import SluiceError

PATTERNS = ("*.json", "*.jinja", "*.safetensors", "*.txt", "*.model")
"""The files of a model that are read: its shape, weights, tokenizer and template of chats. Others, pickles among them,
never are."""
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def weight_files(weights: str, parameter: str) -> list[str] | None:
    """The files of a folder of weights, in order of name; None where the hub has them.

    Raises `SluiceError` for a folder that is none, or that holds no safetensors.
    """
    fs, path = _opened(weights, parameter)
    if not fs.isdir(path):
        if HUB_ID.fullmatch(weights):
            return None
        raise SluiceError(
            f"{parameter}: no folder {weights!r} (from {os.getcwd()}); name one, or a hub model as org/name@commit"
        )
    names = sorted({str(found) for pattern in PATTERNS for found in fs.glob(f"{path.rstrip('/')}/{pattern}")})
    if not any(name.endswith(".safetensors") for name in names):
        raise SluiceError(f"{parameter}: {weights!r} holds no *.safetensors; save the model with save_pretrained first")
    return names if isinstance(fs, LocalFileSystem) else [fs.unstrip_protocol(name) for name in names]


def pinned(weights: str, parameter: str) -> str:
    """`org/name@commit` of a model of the hub, whatever branch or tag it was named by; none means `main`.

    Raises `SluiceError` where neither the hub nor its cache on this machine knows it.
    """
    name, _, revision = weights.partition("@")
    if COMMIT.fullmatch(revision):
        return weights
    return f"{name}@{from_hub(weights, parameter, ('config.json',)).name}"


def from_hub(weights: str, parameter: str, patterns: tuple[str, ...] = PATTERNS) -> Path:
    """The folder in the hub's cache on this machine that holds these files of `org/name@revision`, named by its commit.

    What is missing is downloaded. Raises `SluiceError` where that fails.
    """
    from huggingface_hub import snapshot_download  # half a second that a DAG without models does not pay

    name, _, revision = weights.partition("@")
    try:
        return Path(str(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns))))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SluiceError(
            f"{parameter}: {weights!r} is neither a folder nor a model that the hub gives ({reason}); check the name"
        ) from None


def _opened(weights: str, parameter: str) -> tuple[Any, str]:
    try:
        fs, path = fsspec.core.url_to_fs(weights)
    except (ValueError, ImportError) as error:
        raise SluiceError(f"{parameter}: {weights!r}: {error}; name a folder, or a URL such as s3://…") from None
    return fs, str(path)
