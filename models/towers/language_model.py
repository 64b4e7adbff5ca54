"""A language model that learns to go on with a text: LLaMA, and whatever else transformers calls causal.

model = CausalLanguageModel({"model_type": "llama", "hidden_size": 128, ...}, tokenizer=tokenizer)
loss = NextToken()(model({"input_ids": ..., "attention_mask": ...}), {})
model.export(Path("model"))                  # AutoModelForCausalLM loads it, and generates
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoModelForCausalLM

from models.objectives.language import NOT_LEARNT
from models.towers.packing import Packing
from models.towers.single import built
from models.trainable import Batch, Features, Trainable


class CausalLanguageModel(Trainable):
    """`logits` (n, length, vocabulary) and `labels` (n, length): the next token of a text, and -100 after its last."""

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        pretrained: str | None = None,
        pack: bool = True,
        tokenizer: Any = None,
    ) -> None:
        """`config`: as transformers writes it, with its `model_type`. `pretrained`: a folder or a hub id, instead.

        `pack`: work on several texts in one row, so that padding costs nothing; for models that know a token's place
        by `position_ids` alone, such as Llama, Mistral and Qwen. Raises `ValueError`.
        """
        super().__init__()
        self.model = built(AutoModelForCausalLM, config, pretrained, tokenizer)
        self.tokenizer = tokenizer
        self._pack = pack

    @property
    def context(self) -> int:
        """Tokens of a text that there are places for."""
        return int(self.model.config.max_position_embeddings)

    def encode(self, batch: Batch) -> Features:
        ids_nl, mask_nl = batch["input_ids"], batch["attention_mask"]
        if ids_nl.shape[1] > self.context:
            raise ValueError(
                f"texts of {ids_nl.shape[1]} tokens; the model has {self.context} places; lower texts.context"
            )
        if self._pack:
            packing = Packing(mask_nl)
            logits = packing.unpack(self.model(input_ids=packing.pack(ids_nl), **packing.arguments).logits)
        else:
            logits = self.model(input_ids=ids_nl, attention_mask=mask_nl, use_cache=False).logits
        return {"logits": logits, "labels": following(ids_nl, mask_nl)}

    def export(self, folder: Path) -> None:
        """Config and safetensors, and the tokenizer where one was given."""
        self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def following(ids_nl: torch.Tensor, mask_nl: torch.Tensor) -> torch.Tensor:
    """int64 (n, length): the token after each, and -100 where the text ends or there is none."""
    labels_nl = torch.full_like(ids_nl, NOT_LEARNT)
    follows = (mask_nl[:, 1:] * mask_nl[:, :-1]).bool()
    labels_nl[:, :-1] = ids_nl[:, 1:].masked_fill(~follows, NOT_LEARNT)
    return labels_nl
