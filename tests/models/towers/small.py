"""Shipped recipes at their tiny size, with a tokenizer of a few lines and a batch of random images."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import torch
from torch.nn import functional

from models.data.tokenizer import Encoder, trained
from models.recipe import Recipe
from models.towers.two_towers import TwoTowers
from models.train import optimizer
from models.trainable import Objective

WORDS = ("red", "blue", "green", "circle", "square", "cat", "dog", "sat", "on", "the", "left", "of", "two", "small")
ROWS = 8


@cache
def captions(count: int) -> list[str]:
    dice = Random(0)
    return [" ".join(dice.choices(WORDS, k=dice.randint(3, 8))) for _ in range(count)]


@cache
def words(vocabulary: int, context: int) -> Any:
    return trained(captions(300), vocabulary, context)


def model(recipe: Recipe) -> TwoTowers:
    """Random, the same every time."""
    torch.manual_seed(0)
    built: TwoTowers = recipe.model.build(tokenizer=words(recipe.data.texts.vocabulary, recipe.data.texts.context))
    return built


def batch(recipe: Recipe, rows: int = ROWS) -> dict[str, torch.Tensor]:
    """What a collator would make of `rows` random images and as many captions as the recipe asks for."""
    side, texts, count = recipe.data.images.side, recipe.data.texts, recipe.data.captions
    ids, mask = Encoder(words(texts.vocabulary, texts.context), texts.context)(captions(rows * count))
    shape = (rows, texts.context) if count == 1 else (rows, count, texts.context)
    pixels = torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(0))
    tokens = {"input_ids": ids.reshape(shape), "attention_mask": mask.reshape(shape)}
    found = {"pixel_values": pixels, **tokens, "position": torch.arange(rows)}
    if recipe.data.kind == "pairs_and_views":
        found["view_pixel_values"] = pixels[:, None] + 0.1 * torch.randn(rows, recipe.data.crops.count, 3, side, side)
    if recipe.data.kind == "pairs_and_teacher":
        shape = (rows, recipe.data.teacher.width)
        found["teacher_image"] = functional.normalize(torch.randn(*shape), dim=1)
        found["teacher_text"] = found["teacher_image"]  # of one who is sure of every pair
    return found


def fit(recipe: Recipe, towers: TwoTowers, steps: int) -> tuple[float, float, float]:
    """The loss on one batch, in the recipe's first phase, at first and after `steps` of AdamW.

    And how often, in the end, the caption that is nearest to an image is its own.
    """
    rows = batch(recipe)
    objectives: list[tuple[Objective, float]] = [(term.objective.build(), term.weight) for term in recipe.objectives]
    towers.patch_dropout = recipe.phases[0].patch_dropout
    optimizer.enter(towers, dict(towers.named_parameters()), recipe.phases[0])
    learned = [parameter for parameter in towers.parameters() if parameter.requires_grad]
    own = [parameter for objective, _ in objectives for parameter in objective.parameters()]
    adam = torch.optim.AdamW([*learned, *own], lr=2e-3, betas=(0.9, 0.95), weight_decay=0)
    losses = []
    for _ in range(steps):
        features, scalars = towers(rows), towers.scalars()
        found = [(objective(features, scalars), weight) for objective, weight in objectives]
        loss = torch.stack([weight * one.total / one.count for one, weight in found]).sum()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        missing = [name for name, own in towers.named_parameters() if own.requires_grad and own.grad is None]
        assert not missing, "DistributedDataParallel would wait for their gradients"
        adam.step()
        towers.after_step()
        losses.append(loss.item())
    texts = features["text"].reshape(ROWS, -1, features["text"].shape[-1])[:, 0]
    nearest = (features["image"] @ texts.T).argmax(dim=1)
    return losses[0], losses[-1], (nearest == torch.arange(ROWS)).float().mean().item()
