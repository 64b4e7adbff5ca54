"""What the loop in `models.train` trains: a model that turns a batch into features, and objectives over features.

A model never computes a loss and an objective never sees an image, so that every objective is the same function of the
features on one process and on many, with the whole batch at once or with cached features (GradCache).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import nn

Batch = Mapping[str, torch.Tensor]
"""What a collator made of some samples: `pixel_values` (n, 3, side, side), `input_ids` and `attention_mask`, both
(n, length) or (n, k, length) with k captions a sample, …; row i of every tensor belongs to sample i. `position` (n,)
int64 is a sample's place in the order of the whole training: what a model draws at random for a sample, it draws from
that, so that another number of processes or a second pass (GradCache) draws the same. `image_id` (n,) int64, of pairs,
is the same for copies of one file, whatever crops they were shown in."""
Features = dict[str, torch.Tensor]
"""What a model made of a batch: `image` (n, d), `text` (n, d), …; row i of every tensor belongs to sample i. Of a
language model, `logits` (n, length, vocabulary) and `labels` (n, length) int64: the token that each place is to be
followed by, which the model has shifted already, and -100 where nothing is to be learnt; or (tokens, vocabulary) and
(tokens), those of all samples one after the other."""
Scalars = Mapping[str, torch.Tensor]
"""Learned numbers that objectives use and towers do not: `logit_scale` (its logarithm), `logit_bias`."""


class Loss(NamedTuple):
    """A loss as a sum and what it is the sum over, so that means stay exact over micro-batches and processes."""

    total: torch.Tensor
    """() with gradient: the sum over the rows (or tokens) of this process."""
    count: torch.Tensor  # type: ignore[assignment]  # not what tuples call count
    """(): how many rows (or tokens) that were."""


class Trainable(nn.Module, ABC):
    """A model with what a training needs to know of it. `encode` never reads what `scalars` returns."""

    done: float = 0.0
    """Share of the training that lies behind, 0 to 1, as the loop says before every step: for what changes with it."""
    optional: frozenset[str] = frozenset()
    """Features that it gives only where a setting asks for them: of the data, or a parameter of its own."""

    @abstractmethod
    def encode(self, batch: Batch) -> Features: ...

    def forward(self, batch: Batch) -> Features:
        """`encode`, by the call on which wrappers hang their hooks."""
        return self.encode(batch)

    def places(self, batch: Batch) -> Mapping[str, int]:
        """Of columns (…, length) that it need not see whole, how many of the first places. Features have the same shape
        and, with their gradients, the same values, but for rounding and where dropout falls. Asked of every piece of a
        batch, where the loader put it, so that no GPU is waited for."""
        return {}

    def scalars(self) -> Scalars:
        return {}

    def after_step(self) -> None:
        """What holds the parameters in bounds, such as `logit_scale` at most ln 100."""

    def check_branches(self, length: int) -> None:
        """Whether texts of so many tokens can be read in branches (`models.data.rounds`). Raises `ValueError`."""
        raise ValueError(f"{type(self).__name__} has no branches; leave data.texts.turns out")

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write config and safetensors as transformers' `from_pretrained` loads them."""


class Objective(nn.Module, ABC):
    """One term of the loss, a function of features and scalars; may have parameters and buffers of its own."""

    joint: ClassVar[bool] = False
    """Whether it compares the rows of the whole global batch, so that it must see all features at once."""
    remedy: ClassVar[str] = ""
    """The setting that makes a model give what it reads, of models for which that is `optional`."""
    done: float = 0.0
    """As of `Trainable`."""

    def reads(self) -> frozenset[str]:
        """The names of the features that it reads; a model that does not give one is refused before the training."""
        return frozenset()

    def needs(self) -> frozenset[str]:
        """The names of the scalars that it reads; a model without one of them is refused before the training."""
        return frozenset()

    @abstractmethod
    def forward(self, features: Features, scalars: Scalars) -> Loss:
        """This process's share. Where torch.distributed runs, a joint objective gathers the others' rows itself."""

    def after_step(self) -> None:
        """What moves once a step and not by a gradient, such as a queue or a centre."""

    def export(self, folder: Path) -> None:  # most learn nothing
        """Write what it learned and an evaluation may need, beside the model."""
