"""One step of a toy model, on one process and on several: what the losses and their gradients are.

Images and texts are rows of two matrices times the toy's weights, so that the weights' gradients hold those of every
row, and an error in any of them shows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

from models.objectives.caption_tokens import CaptionTokens
from models.objectives.classes import MaskedTokens
from models.objectives.contrastive import HardNegativeNCE, InfoNCE, Sigmoid
from models.objectives.dino import SelfDistillation
from models.objectives.distillation import SimilarityDistillation
from models.objectives.language import NextToken
from models.objectives.simclr import SimCLR
from models.objectives.text_conditioned import TextConditioned
from models.trainable import Features, Objective
from tests.models import gloo

ROWS, INPUTS, WIDTH, CAPTIONS, PATCHES, LENGTH = 12, 5, 8, 3, 4, 6
DTYPES = (torch.float32, torch.float64)
Gradients = dict[str, torch.Tensor]
CASES: dict[str, Callable[[], Objective]] = {
    "InfoNCE": InfoNCE,
    "InfoNCE, smoothed": partial(InfoNCE, smoothing=0.1),
    "InfoNCE, fixed temperature": partial(InfoNCE, temperature=0.1),
    "InfoNCE, other features": partial(InfoNCE, left="text", right="other"),
    "HardNegativeNCE": partial(HardNegativeNCE, alpha=0.7, beta=0.5),
    "Sigmoid": Sigmoid,
    "Sigmoid, captions": Sigmoid,
    "TextConditioned": partial(TextConditioned, width=WIDTH, heads=2),
    "TextConditioned, captions": partial(TextConditioned, width=WIDTH, heads=2),
    "SimCLR": partial(SimCLR, WIDTH, hidden=16, out=4, temperature=0.5),
    "SimilarityDistillation": partial(SimilarityDistillation, temperature=0.5),
    "SelfDistillation": partial(SelfDistillation, WIDTH),
    "NextToken": NextToken,
    "MaskedTokens": MaskedTokens,
    "CaptionTokens": partial(CaptionTokens, WIDTH),
}


def step(case: str, dtype: torch.dtype, rank: int = 0, world: int = 1) -> Gradients:
    """The mean loss, and the gradient of everything learned, added up over the processes."""
    torch.manual_seed(0)
    texts = (ROWS, CAPTIONS) if case.endswith("captions") else (ROWS,)
    shapes = {"image": (ROWS,), "text": texts, "other": (ROWS,), "patches": (ROWS, PATCHES)}
    shapes |= {"views": (ROWS, 2)}
    shapes |= {"student": (ROWS, 4), "teacher": (ROWS, 2), "logits": (ROWS, LENGTH), "masked_logits": (ROWS, LENGTH)}
    inputs = {name: torch.randn(*shape, INPUTS, dtype=dtype) for name, shape in shapes.items()}
    weights = {name: torch.randn(INPUTS, WIDTH, dtype=dtype, requires_grad=True) for name in inputs}
    learned = {"logit_scale": 1.2, "logit_bias": -2.0}
    scalars = {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in learned.items()}
    objective = CASES[case]().to(dtype)
    own = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    features: Features = {name: functional.normalize(inputs[name][own] @ weights[name], dim=-1) for name in inputs}
    features["position"] = 1000 + torch.arange(ROWS)[own]
    # Rows of other lengths: each process has another number of tokens.
    labels = (torch.arange(ROWS * LENGTH) % WIDTH).view(ROWS, LENGTH)
    labels[torch.arange(LENGTH) > torch.arange(ROWS)[:, None] // 2] = -100
    features |= {"labels": labels[own], "masked_labels": labels[own]}
    features |= {"teacher_image": inputs["patches"][own, 0], "teacher_text": inputs["other"][own]}
    found: Gradients = {}
    if isinstance(objective, SelfDistillation | CaptionTokens):  # a step before, by which centre and counts move
        if isinstance(objective, CaptionTokens):
            features["logits"] = features["image"]
        objective(features, scalars)
        objective.after_step()
        found |= dict(objective.named_buffers())
    loss = objective(features, scalars)
    count = _added(loss.count.clone())
    (loss.total / count).backward()
    leaves = {**weights, **scalars, **dict(objective.named_parameters())}
    found |= {name: _added(leaf.grad) for name, leaf in leaves.items() if leaf.grad is not None}
    return found | {"loss": _added(loss.total.detach()) / count}


def together(world: int, folder: Path) -> dict[tuple[str, torch.dtype], Gradients]:
    """What every case gives on `world` processes, all started once."""
    found: dict[tuple[str, torch.dtype], Gradients] = gloo.together(_worker, world, folder)
    return found


def _worker(rank: int, world: int, folder: Path) -> dict[Any, Any]:
    return {(case, dtype): step(case, dtype, rank, world) for case in CASES for dtype in (torch.float32, torch.float64)}


def _added(tensor: torch.Tensor) -> torch.Tensor:
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
