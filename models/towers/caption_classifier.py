"""An image tower whose classes are the tokens of captions: SuperClass (Huang et al. 2024), which needs no text tower.

model = CaptionClassifier({"model_type": "vit", "hidden_size": 96, ...}, tokenizer=tokenizer)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from models.objectives.language import NOT_LEARNT
from models.towers.vit import VisionClassifier
from models.trainable import Batch, Features


class CaptionClassifier(VisionClassifier):
    """`logits` (n, tokens), and `labels` (n, length): the tokens of a sample's captions, -100 in place of special ones.

    Exported as `VisionClassifier` is: the names of the classes are the tokens.
    """

    def __init__(
        self, config: Mapping[str, Any] | None = None, pretrained: str | None = None, tokenizer: Any = None
    ) -> None:
        """`config`, `pretrained`: as of `VisionClassifier`. `tokenizer`: of the captions. Raises `ValueError`."""
        if tokenizer is None:
            raise ValueError("tokens are what is learnt: expected a tokenizer, and data.kind: pairs")
        super().__init__(config, pretrained, tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
        self.special: torch.Tensor
        self.register_buffer("special", torch.tensor(sorted(set(tokenizer.all_special_ids))), persistent=False)

    def encode(self, batch: Batch) -> Features:
        tokens = batch["input_ids"].flatten(1)
        said = batch["attention_mask"].flatten(1).bool() & ~torch.isin(tokens, self.special)
        logits = self.model(pixel_values=batch["pixel_values"]).logits
        return {"logits": logits, "labels": tokens.masked_fill(~said, NOT_LEARNT)}
