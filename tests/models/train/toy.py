"""A system small enough to be trained in a blink: two towers of two layers, over numbers drawn from a place."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from models.objectives.contrastive import Sigmoid
from models.recipe import Recipe
from models.train.parallel import Place
from models.train.source import Loader, Source
from models.trainable import Batch, Features, Loss, Objective, Scalars, Trainable

WIDTH, LENGTH, WORDS = 8, 10, 32
LOOKS = torch.randn(WORDS, WIDTH, generator=torch.Generator().manual_seed(9))
"""What each word looks like: an image is the mean of those of its text."""


class Layer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm, self.linear, self.dropout = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        changes: torch.Tensor = self.dropout(functional.gelu(self.linear(self.norm(rows))))
        return rows + changes


class Toy(Trainable):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.steps: torch.Tensor
        self.embeddings = nn.Embedding(WORDS, WIDTH)
        self.image = nn.ModuleList(Layer(dropout) for _ in range(2))
        self.text = nn.ModuleList(Layer(dropout) for _ in range(2))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.patch_dropout = 0.0

    def encode(self, batch: Batch) -> Features:
        images_nd, tokens_nld = batch["x"], self.embeddings(batch["input_ids"])
        for layer in self.image:
            images_nd = layer(images_nd)
        for layer in self.text:
            tokens_nld = layer(tokens_nld)
        mask_nl = batch["attention_mask"]
        texts_nd = (tokens_nld * mask_nl[..., None]).sum(1) / mask_nl.sum(1, keepdim=True)
        return {
            "image": functional.normalize(images_nd.float(), dim=-1),
            "text": functional.normalize(texts_nd.float(), dim=-1),
            "tokens": tokens_nld,
            "labels": batch["input_ids"].roll(-1, 1).masked_fill(mask_nl == 0, -100),
        }

    def scalars(self) -> Scalars:
        return {"logit_scale": self.logit_scale}

    @torch.no_grad()
    def after_step(self) -> None:
        self.logit_scale.clamp_(max=math.log(100))
        self.steps += 1

    def export(self, folder: Path) -> None:
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "toy"}))


class WithStatistics(Toy):
    """Its image tower normalises by the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.BatchNorm1d(WIDTH)

    def encode(self, batch: Batch) -> Features:
        return super().encode({**batch, "x": self.normed(batch["x"])})


class Cut(Toy):
    """It is not shown what is padding in all rows, and tells what it was shown."""

    shown: ClassVar[list[int]] = []

    def places(self, batch: Batch) -> Mapping[str, int]:
        return dict.fromkeys(("input_ids", "attention_mask"), int(batch["attention_mask"].sum(1).max()))

    def encode(self, batch: Batch) -> Features:
        assert bool(batch["attention_mask"].any(0).all())
        self.shown.append(batch["input_ids"].shape[1])
        features = super().encode(batch)
        return {name: features[name] for name in ("image", "text")}


class Slowed(Toy):
    """Takes what it needs for slow features, and gives them where it is not 0; none in a tower that is frozen."""

    optional = frozenset({"image_m", "text_m"})

    def __init__(self, momentum: float = 0.0) -> None:
        super().__init__()
        self._momentum = momentum

    def encode(self, batch: Batch) -> Features:
        features = super().encode(batch)
        if self._momentum and self.image.training:
            features |= {f"{name}_m": features[name].detach() for name in ("image", "text")}
        return features


class Centred(Toy):
    """Its `momentum` is of something else, as that of DINO's tower is, and of images alone."""

    optional = frozenset({"image_m"})

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()


class Plain(Toy):
    """It has no patches that could be dropped."""

    def __init__(self) -> None:
        super().__init__()
        del self.patch_dropout


class Refused(Toy):
    """Cannot be built."""

    def __init__(self) -> None:
        raise ValueError("this cannot be")


class NextToken(Objective):
    """Separable, and of as many tokens as the masks say; its head is a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.head = nn.Parameter(torch.randn(WIDTH, WORDS, generator=generator) / 3)

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        logits, labels = (features["tokens"] @ self.head).flatten(0, 1), features["labels"].flatten()
        total = functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
        return Loss(total, (labels >= 0).sum())


class Unlucky(NextToken):
    """Its loss is no number wherever the word 31 comes up."""

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        loss = super().forward(features, scalars)
        return Loss(loss.total * torch.where((features["labels"] == WORDS - 1).any(), float("nan"), 1.0), loss.count)


class Biased(Sigmoid):
    """Of a model that has no bias of its own."""

    def needs(self) -> frozenset[str]:
        return frozenset({"logit_scale"})

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        return super().forward(features, {**scalars, "logit_bias": torch.tensor(-2.0)})


class Jumping(NextToken):
    """Its loss jumps wherever the word 31 comes up."""

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        loss = super().forward(features, scalars)
        return Loss(loss.total * torch.where((features["labels"] == WORDS - 1).any(), 100.0, 1.0), loss.count)


def row(position: int, unlucky: frozenset[int] = frozenset()) -> Batch:
    """What the sample at a place of the order looks like."""
    dice = torch.Generator().manual_seed(position % 500)
    words = torch.randint(0, WORDS - 1, (LENGTH,), generator=dice)
    mask = (torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (1,), generator=dice)).long()
    image = LOOKS[words][mask.bool()].mean(0) + 0.1 * torch.randn(WIDTH, generator=dice)
    if position in unlucky:
        words[:] = WORDS - 1
    return {"x": image, "input_ids": words, "attention_mask": mask}


def rows(start: int, count: int, unlucky: frozenset[int] = frozenset()) -> Batch:
    found = [row(position, unlucky) for position in range(start, start + count)]
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}


class Rows:
    def __init__(self, source: ToySource, start: int) -> None:
        self.skipped: Counter[str] = Counter()
        self._source, self._start = source, start

    def __iter__(self) -> Iterator[Batch]:
        source, position = self._source, self._start
        share = source.batch // source.place.world
        while True:
            source.seen.append(position)
            self.skipped["damaged"] += 1
            yield rows(position + source.place.rank * share, share, source.unlucky)
            position += source.batch

    def close(self) -> None:
        self._source.closed += 1


class ToySource(Source):
    """Keeps the places at which batches began."""

    def __init__(self, batch: int, place: Place, unlucky: frozenset[int] = frozenset()) -> None:
        self.batch, self.place, self.unlucky = batch, place, unlucky
        self.seen: list[int] = []
        self.closed = 0

    def open(self, start: int) -> Loader:
        return Rows(self, start)

    def keys(self, start: int, end: int) -> list[str]:
        return [f"sample-{position}" for position in range(start, end)]


def recipe(**changes: Any) -> Recipe:
    """Of 20 steps of 12 samples; `changes` replace whole keys."""
    return Recipe.model_validate(
        {
            "name": "toy",
            "about": "two towers over drawn numbers",
            "model": {"tests.models.train.toy.Toy": {"dropout": 0.1}},
            "objectives": ["models.objectives.contrastive.InfoNCE"],
            "samples": 240,
            "batch": 12,
            "optimizer": {"learning_rate": 1e-2},
            "precision": "float32",
            "checkpoint_every": 60,
            **changes,
        }
    )
