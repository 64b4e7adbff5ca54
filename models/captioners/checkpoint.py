"""What a model folder is known by: a hash of the files that decide what the model does."""

from __future__ import annotations

from hashlib import blake2b, sha256
from pathlib import Path

PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""Shape, weights, tokenizer, chat template."""
TOLD = frozenset({"training.json"})
"""Files that tell how it came to be: they differ from run to run, and the model does not."""
BLOCK = 1 << 22


def content_hash(folder: Path) -> str:
    """32 hex characters: the same for the same weights, wherever they lie. Raises `ValueError` where there are none."""
    files = sorted({file for pattern in PATTERNS for file in folder.glob(pattern) if file.name not in TOLD})
    if not any(file.suffix == ".safetensors" for file in files):
        raise ValueError(f"{folder} holds no *.safetensors; save the model with save_pretrained first")
    total = blake2b(digest_size=16)
    for file in files:
        sha = sha256()
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                sha.update(block)
        total.update(f"{file.name}\0{sha.hexdigest()}\0".encode())
    return total.hexdigest()
