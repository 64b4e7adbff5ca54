"""BERT: hidden tokens guessed from both sides, and whether a text goes on with another (Devlin et al. 2019).

model = Bert({"model_type": "bert", "hidden_size": 128, ...}, tokenizer=tokenizer)
features = model(batch)        # of `models.data.sentence_pairs`; objectives: MaskedTokens and NextSentence
model.export(Path("model"))    # BertForPreTraining, BertForMaskedLM and AutoModel load it
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import BertForPreTraining

from models.towers.single import built
from models.trainable import Batch, Features, Trainable


class Bert(Trainable):
    """`masked_logits` (n, m, vocabulary) and `masked_labels` (n, m) of the hidden tokens, `next_logits` (n, 2) and
    `next_labels` (n,). Of tokens that are not to be guessed there are no logits, which saves most of that product."""

    def __init__(
        self, config: Mapping[str, Any] | None = None, pretrained: str | None = None, tokenizer: Any = None
    ) -> None:
        """`config`: keys of transformers' BertConfig, and `model_type: bert`. `pretrained`: a folder or a hub id,
        instead. Raises `ValueError`."""
        super().__init__()
        self.model = built(BertForPreTraining, config, pretrained, tokenizer)
        self.tokenizer = tokenizer

    @property
    def context(self) -> int:
        """Tokens of a pair that there are places for."""
        return int(self.model.config.max_position_embeddings)

    def encode(self, batch: Batch) -> Features:
        length = batch["input_ids"].shape[1]
        if length > self.context:
            raise ValueError(f"pairs of {length} tokens; BERT has {self.context} places; lower texts.context")
        read = self.model.bert(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            token_type_ids=batch["token_type_ids"],
        )
        hidden_nld = read.last_hidden_state
        places_nm = batch["masked_places"].clamp(max=length - 1)  # to measure their work, pairs are cut short
        guessed_nmd = hidden_nld.gather(1, places_nm[..., None].expand(-1, -1, hidden_nld.shape[-1]))
        return {
            "masked_logits": self.model.cls.predictions(guessed_nmd),
            "masked_labels": batch["masked_labels"],
            "next_logits": self.model.cls.seq_relationship(read.pooler_output),
            "next_labels": batch["next_labels"],
        }

    def export(self, folder: Path) -> None:
        """Config and safetensors, and the tokenizer where one was given."""
        self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
