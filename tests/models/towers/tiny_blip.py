"""BLIP of a few thousand weights, and numbers to train it on: the same for a place in the order, on any process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from models.objectives.language import NextToken
from models.objectives.matching import Matching
from models.objectives.momentum import MomentumContrast
from models.recipe import Recipe
from models.towers.blip import Blip
from models.train.parallel import Place
from models.train.source import Loader, Source
from models.trainable import Batch, Objective

SIDE, LENGTH, WORDS, WIDTH = 16, 9, 40, 8
PAD, END, START = 0, 1, 2
LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"bos_token_id": START, "eos_token_id": END, "sep_token_id": END, "pad_token_id": PAD}
CONFIG: dict[str, Any] = {
    "image_text_hidden_size": WIDTH,
    "vision_config": {**LAYERS, "image_size": SIDE, "patch_size": 8},
    "text_config": {**LAYERS, "max_position_embeddings": LENGTH, "vocab_size": WORDS, **SPECIAL},
}
QUEUE = 16


def model(spread: float = 0.3, **given: Any) -> Blip:
    """Random, the same every time; with the weights of the authors' start a tower this small tells nothing apart."""
    torch.manual_seed(0)
    found = Blip(**{"config": CONFIG, **given})
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, spread)
        for name, weight in found.named_parameters(remove_duplicate=False):
            if found.slow is not None and name in (copies := dict(found.slow.named_buffers())):
                copies[name].copy_(weight)
    return found


def objectives() -> list[Objective]:
    return [MomentumContrast(WIDTH, QUEUE, alpha=0.4, ramp=100), Matching(), NextToken(smoothing=0.1)]


def row(position: int) -> Batch:
    """What the sample at a place looks like; its caption says how bright the image is, and of which of 4 kinds."""
    dice = torch.Generator().manual_seed(position % 200)
    kind = torch.randint(0, 4, (1,), generator=dice)
    length = int(torch.randint(3, LENGTH - 1, (1,), generator=dice))
    words = torch.cat([4 + kind, torch.randint(8, WORDS, (length - 1,), generator=dice)])
    ids = torch.full((LENGTH,), PAD)
    ids[0], ids[1 : length + 1], ids[length + 1] = START, words, END
    image = torch.randn(3, SIDE, SIDE, generator=dice) + 2 * torch.sin((1.0 + kind) * torch.arange(SIDE))
    return {"pixel_values": image, "input_ids": ids, "attention_mask": (torch.arange(LENGTH) < length + 2).long()}


def rows(start: int, count: int) -> dict[str, torch.Tensor]:
    found = [row(position) for position in range(start, start + count)]
    batch = {name: torch.stack([one[name] for one in found]) for name in found[0]}
    return {**batch, "position": torch.arange(start, start + count)}


class Rows:
    def __init__(self, source: BlipSource, start: int) -> None:
        self.skipped: Counter[str] = Counter()
        self._source, self._start = source, start

    def __iter__(self) -> Iterator[Batch]:
        position, place = self._start, self._source.place
        share = self._source.batch // place.world
        while True:
            yield rows(position + place.rank * share, share)
            position += self._source.batch

    def close(self) -> None:
        pass


class BlipSource(Source):
    def __init__(self, batch: int, place: Place) -> None:
        self.batch, self.place = batch, place

    def open(self, start: int) -> Loader:
        return Rows(self, start)

    def keys(self, start: int, end: int) -> list[str]:
        return [f"sample-{position}" for position in range(start, end)]


def recipe(**changes: Any) -> Recipe:
    """Of 10 steps of 12 samples; `changes` replace whole keys."""
    momentum = {"width": WIDTH, "queue": QUEUE, "alpha": 0.4, "ramp": 48}
    return Recipe.model_validate(
        {
            "name": "blip",
            "about": "BLIP over drawn numbers",
            "model": {"models.towers.blip.Blip": {"config": CONFIG, "momentum": 0.8}},
            "objectives": [
                {"models.objectives.momentum.MomentumContrast": momentum},
                "models.objectives.matching.Matching",
                {"models.objectives.language.NextToken": {"smoothing": 0.1}},
            ],
            "samples": 120,
            "batch": 12,
            "data": {"texts": {"context": LENGTH}},
            "optimizer": {"learning_rate": 1e-2},
            "precision": "float32",
            "checkpoint_every": 36,
            **changes,
        }
    )
