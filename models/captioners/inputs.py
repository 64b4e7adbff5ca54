"""Images and prompts as a captioner's model takes them.

BLIP, which sluice trains itself, gets its images from `models.towers.preprocess`, in the threads that decode; what
others want (tiles, image tokens between the words, chat templates) their own processor in transformers knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoProcessor, AutoTokenizer

from models.data.chat_parts import take_parts, wants_special_tokens
from models.towers.preprocess import Pixels, Preprocessing

ASKED = {"florence2": "<CAPTION>"}
"""Prompts that models without a chat template were trained on."""
ASKED_IN_CHAT = "Describe the image in one short sentence."


class Inputs(Protocol):
    """What stands between images with prompts and a model."""

    tokenizer: Any
    preprocessing: Preprocessing | None
    """What may be made of every image by itself beforehand; None: they are wanted whole."""
    pads: bool
    """Whether prompts of several lengths may stand in one batch."""
    cut: int
    """Tokens at the end of `input_ids` that the model takes off again."""

    def size(self, prompt: str | None) -> int:
        """How long a prompt is, in tokens: those of one batch should be alike."""

    def __call__(self, images: Sequence[Pixels], prompts: Sequence[str | None]) -> dict[str, torch.Tensor]:
        """What `generate` takes."""


class BlipInputs:
    """Of BLIP: a square image, and the beginning of a caption that the model goes on with."""

    pads = False
    cut = 1

    def __init__(self, folder: Path) -> None:
        self.preprocessing: Preprocessing | None = Preprocessing.load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    def size(self, prompt: str | None) -> int:
        return 0 if prompt is None else len(self.tokenizer(prompt)["input_ids"])

    def __call__(self, images: Sequence[Pixels], prompts: Sequence[str | None]) -> dict[str, torch.Tensor]:
        """Prompts of one batch are of one length: nothing is padded."""
        assert self.preprocessing is not None
        pixels_nhwc = self.preprocessing.normalise(torch.from_numpy(np.stack(images)))
        found = {"pixel_values": pixels_nhwc.permute(0, 3, 1, 2)}
        texts = [prompt for prompt in prompts if prompt is not None]
        if texts:  # the end of a text is cut off again by BLIP's own `generate`
            found["input_ids"] = torch.tensor(self.tokenizer(texts)["input_ids"])
            found["attention_mask"] = torch.ones_like(found["input_ids"])
        return found


class ProcessorInputs:
    """Of every other model: by its processor."""

    preprocessing: Preprocessing | None = None
    pads = True
    cut = 0

    def __init__(self, folder: Path, kind: str) -> None:
        loads: Any = AutoProcessor
        self._processor = loads.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.tokenizer = self._processor.tokenizer
        self.tokenizer.padding_side = "left"  # a decoder goes on where the prompt ends
        self._chats = getattr(self._processor, "chat_template", None) is not None
        if self._chats:
            take_parts(self._processor)
        self._asked = ASKED_IN_CHAT if self._chats else ASKED.get(kind)

    def size(self, prompt: str | None) -> int:
        return len(prompt or "")

    def __call__(self, images: Sequence[Pixels], prompts: Sequence[str | None]) -> dict[str, torch.Tensor]:
        texts = [self._text(prompt if prompt is not None else self._asked) for prompt in prompts]
        told: dict[str, Any] = {"images": [[image] for image in images] if self._chats else list(images)}
        if any(text is not None for text in texts):
            told |= {"text": [text or "" for text in texts], "padding": True}
            if self._chats:
                told["add_special_tokens"] = wants_special_tokens(self.tokenizer, told["text"][0])
        found = self._processor(**told, return_tensors="pt")
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}

    def _text(self, prompt: str | None) -> str | None:
        if prompt is None or not self._chats:
            return prompt
        asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt.strip()}]}]
        return str(self._processor.apply_chat_template(asked, add_generation_prompt=True))
