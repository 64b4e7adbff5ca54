"""How surprised a language model is by texts that it did not learn: perplexity, and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.data.shards import Damaged, DataError, Samples
from models.data.tokenizer import Tokens
from models.evaluate.metric import Metric, Values
from models.evaluate.sets import EvaluationSet, SetError
from models.objectives.language import NOT_LEARNT
from models.towers.dual_encoder import Dtype
from models.towers.language_model import following

TASK = "language_modelling"
PERPLEXITY, BITS = "perplexity", "bits_per_byte"


class Reader:
    """A causal language model that says how likely a text is."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model.eval().requires_grad_(False)
        self._tokens = Tokens(tokenizer)
        self._context = int(model.config.max_position_embeddings)

    @classmethod
    def load(cls, folder: Path, device: str, dtype: Dtype) -> Reader:
        """Raises `ValueError` for a folder that cannot be loaded, or lacks tensors."""
        options = {"local_files_only": True, "trust_remote_code": False}
        kind: Any = AutoModelForCausalLM
        try:
            model, found = kind.from_pretrained(
                folder, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        except (OSError, ImportError) as error:
            raise ValueError(f"{folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
        if absent := sorted(found["missing_keys"]):
            raise ValueError(f"{folder} lacks {len(absent)} tensors, {absent[0]} among them; save the model again")
        return cls(model.to(device), tokenizer)

    @property
    def vocabulary(self) -> int:
        return int(self._model.config.vocab_size)

    def surprise(self, texts: Sequence[str], batch: int) -> tuple[Values, Values]:
        """float64 (texts,) each: minus the logarithm of how likely a text is, and how many tokens that is a sum over.

        A text of more tokens than the model has places for is cut into pieces, which know nothing of each other; the
        first token of a piece is given, as the start is.
        """
        pieces = [(row, piece) for row, text in enumerate(texts) for piece in self._pieces(text)]
        pieces.sort(key=lambda piece: -len(piece[1]))  # so that little is padded
        nats, counts = np.zeros(len(texts)), np.zeros(len(texts))
        for start in range(0, len(pieces), batch):
            some = pieces[start : start + batch]
            rows = np.array([row for row, _ in some])
            padded = self._tokens.padded([piece for _, piece in some], len(some[0][1]))
            found_nl, learnt_nl = self._losses({name: each.to(self._model.device) for name, each in padded.items()})
            np.add.at(nats, rows, found_nl.double().sum(1).cpu().numpy())
            np.add.at(counts, rows, learnt_nl.sum(1).cpu().numpy())
        return nats, counts

    def _pieces(self, text: str) -> Iterator[list[int]]:
        tokens = self._tokens(text)
        count = -(-len(tokens) // self._context)
        for number in range(count):
            yield tokens[len(tokens) * number // count : len(tokens) * (number + 1) // count]

    @torch.inference_mode()
    def _losses(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits_nlv = self._model(**batch, use_cache=False).logits.float()
        labels_nl = following(batch["input_ids"], batch["attention_mask"])
        losses = functional.cross_entropy(
            logits_nlv.transpose(1, 2), labels_nl, ignore_index=NOT_LEARNT, reduction="none"
        )
        return losses, labels_nl != NOT_LEARNT


def scores(name: str, reader: Reader, texts: Sequence[str], batch: int) -> Iterator[Metric]:
    """Over all tokens of all texts, each counting once; texts are the samples. Raises `SetError` without a token."""
    nats, counts = reader.surprise(texts, batch)
    total = counts.sum()
    if not total:
        raise SetError(f"set {name}: no text has a token to be told from what is before it; expected longer ones")
    sizes = np.array([len(text.encode()) for text in texts], np.float64)
    mean, error = _ratio(nats, counts)
    ways = math.log(reader.vocabulary)
    yield Metric(
        name, TASK, PERPLEXITY, math.exp(mean), error and math.exp(mean) * error, float(reader.vocabulary), len(texts)
    )
    bits, error = _ratio(nats / math.log(2), sizes)
    yield Metric(name, TASK, BITS, bits, error, float(total * ways / math.log(2) / sizes.sum()), len(texts))


def _ratio(sums: Values, counts: Values) -> tuple[float, float | None]:
    """Of two sums, and its standard error over samples that both belong to."""
    ratio, samples = float(sums.sum() / counts.sum()), len(sums)
    if samples < 2:
        return ratio, None
    residuals = sums - ratio * counts
    return ratio, float(math.sqrt(samples / (samples - 1) * (residuals**2).sum()) / counts.sum())


def texts_of(one: EvaluationSet) -> list[str]:
    """Every `.txt` of a set of texts, every line of those of `retrieval`. Raises `SetError`."""
    try:
        samples = Samples.open([f"{one.folder}/test/{number}.tar" for number in range(one.shards["test"])])
        found = [sample.members.get("txt", b"").decode("utf-8", "replace") for sample in samples]
    except (DataError, Damaged) as error:
        raise SetError(f"set {one.name}: {error}; fetch the set again") from None
    lines = found if one.kind == "texts" else [line for text in found for line in text.splitlines()]
    return [text for text in lines if text.strip()]
