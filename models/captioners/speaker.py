"""A causal language model that answers texts, out of a folder that transformers loads.

speaker = Speaker.load(Path("llama"), "cpu", "float32")
speaker.answer(["What is two and two?"], most_tokens=32)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

Dtype = Literal["float32", "float16", "bfloat16"]


class Speaker:
    """Answers in batches, with the likeliest token always. Prompts are chats where the tokenizer has a template."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model.eval().requires_grad_(False), tokenizer
        tokenizer.padding_side = "left"  # a decoder goes on where the prompt ends
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @classmethod
    def load(cls, folder: Path, device: str, dtype: Dtype) -> Speaker:
        """Raises `ValueError` for what is no causal language model."""
        options = {"local_files_only": True, "trust_remote_code": False}
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), use_safetensors=True, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        except (OSError, ImportError, ValueError, KeyError) as error:
            told = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{folder} holds no language model: {told}") from None
        whole: Any = model
        return cls(whole.to(device), tokenizer)

    @torch.inference_mode()
    def answer(self, texts: Sequence[str], most_tokens: int, batch: int = 8) -> list[str | None]:
        """What the model goes on with after each text, or answers to it; None where the text fills all its places.

        At most `batch` are asked at once, and only such as have room for equally many tokens: an answer is no shorter
        for its neighbours.
        """
        chats = getattr(self._tokenizer, "chat_template", None) is not None
        prompts = [self._asked(text) for text in texts] if chats else list(texts)
        tokens = [self._tokenizer(prompt, add_special_tokens=not chats)["input_ids"] for prompt in prompts]
        places = int(self._model.config.max_position_embeddings)

        def room(row: int) -> int:
            return min(most_tokens, places - len(tokens[row]))

        order = sorted((row for row in range(len(tokens)) if room(row) > 0), key=lambda row: len(tokens[row]))
        found: list[str | None] = [None] * len(prompts)
        for most, group in groupby(order, room):
            alike = list(group)
            for start in range(0, len(alike), batch):
                rows = alike[start : start + batch]
                given = self._tokenizer.pad({"input_ids": [tokens[row] for row in rows]}, return_tensors="pt")
                given = given.to(self._model.device)
                written = self._model.generate(
                    input_ids=given["input_ids"],
                    attention_mask=given["attention_mask"],
                    max_new_tokens=most,
                    do_sample=False,
                    pad_token_id=self._tokenizer.pad_token_id,
                )
                answers = written[:, given["input_ids"].shape[1] :]
                for row, text in zip(
                    rows, self._tokenizer.batch_decode(answers, skip_special_tokens=True), strict=True
                ):
                    found[row] = text.strip()
        return found

    def _asked(self, text: str) -> str:
        said = [{"role": "user", "content": text}]
        return str(self._tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
