"""Reading: the last block and the text tower learn which captions are true of which images; the trunk stays as it is.

In every batch the images have true captions and false ones, which differ in what a mismatch of the small local web
differs in. The loss of a pair is that of SigLIP (Zhai et al. 2023), for scores must compare across captions; beside it
stands InfoNCE from every true caption to the images of the batch, and what captions say of every shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AlignVisionModel

from infra.miniweb.captions import caption
from infra.miniweb.scenes import SHAPES, Scene
from models.data.order import dice
from models.trainable import Batch, Features, Loss, Objective, Scalars, Trainable
from tests.benchmarks.stand_in.drawn import Drawn, Rows, answered
from tests.benchmarks.stand_in.lessons import CLAIMS, claimed, false_caption, truth
from tests.benchmarks.stand_in.towers import new_model, save

ALIKE = 128
"""Texts that are padded together."""


class Reader(Trainable):
    """What reads, and what the trunk sees for it."""

    def __init__(self, sight: str, tokenizer: Any) -> None:
        """`sight`: the folder of a vision tower with a trunk that sees."""
        super().__init__()
        self.tokenizer, self.model = tokenizer, new_model(len(tokenizer))
        self.model.vision_model = AlignVisionModel.from_pretrained(sight)
        self.last = self.model.vision_model.encoder.blocks[-1]
        self.spelling = torch.nn.Linear(self.model.config.text_config.hidden_size, len(SHAPES) * sum(CLAIMS.values()))
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = torch.nn.Parameter(torch.tensor(0.0))
        self.model.requires_grad_(False)
        for part in (self.last, self.model.text_model, self.model.text_projection):
            part.requires_grad_(True)

    def encode(self, batch: Batch) -> Features:
        """Unit rows `image` (images, width) and `text` (images, captions, width), which are `true` of which images of
        the batch (images, captions, images), and every question in `CLAIMS`, (images, captions, shapes, answers)."""
        image_nd = functional.normalize(self.last(batch["seen"].float()).mean((2, 3)), dim=1)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        read_nth = self._states(ids.flatten(0, 1), mask.flatten(0, 1)).unflatten(0, ids.shape[:2])
        text_ntd = functional.normalize(self.model.text_projection(read_nth), dim=2)
        said_ntsa = self.spelling(read_nth).unflatten(2, (len(SHAPES), -1))
        found = {"image": image_nd, "text": text_ntd, "true": batch["true"]}
        return found | answered(said_ntsa, batch["claims"], CLAIMS)

    def _states(self, ids_cl: torch.Tensor, mask_cl: torch.Tensor) -> torch.Tensor:
        """(captions, hidden) before they are projected. What is as long goes together: padding costs as much as text."""
        lengths_c = mask_cl.sum(1)
        order = lengths_c.argsort()
        found = []
        for rows in order.split(ALIKE):
            longest = int(lengths_c[rows].max())
            found.append(self.model.text_model(ids_cl[rows, :longest], mask_cl[rows, :longest])[0][:, 0])
        return torch.cat(found)[order.argsort()]

    def scalars(self) -> Scalars:
        return {"logit_scale": self.logit_scale, "logit_bias": self.logit_bias}

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        self.model.temperature.fill_(float((-self.logit_scale).exp()))
        save(self.model, self.tokenizer, folder)


class Own(Objective):
    """Is a caption true of the image that it was made for? The cross-entropy of SigLIP over such pairs."""

    joint = True

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        cosines_nt = torch.einsum("nd,ntd->nt", features["image"], features["text"])
        logits_nt = scalars["logit_scale"].exp() * cosines_nt + scalars["logit_bias"]
        total = functional.binary_cross_entropy_with_logits(logits_nt, _own(features).float(), reduction="sum")
        return Loss(total, total.new_tensor(logits_nt.numel()))


class Among(Objective):
    """Of which images of the batch is a caption true, that is true of its own? InfoNCE with several right answers."""

    joint = True

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        true_cn = features["true"][_own(features)]
        logits_cn = scalars["logit_scale"].exp() * features["text"][_own(features)] @ features["image"].T
        hits_c = logits_cn.masked_fill(~true_cn, -math.inf).logsumexp(1)
        total = (logits_cn.logsumexp(1) - hits_c).sum()
        return Loss(total, total.new_tensor(len(true_cn)))


def _own(features: Features) -> torch.Tensor:
    """bool (images, captions): of those that were made for an image, which are true of it."""
    return features["true"].diagonal(dim1=0, dim2=2).T


class Captions(Drawn):
    """What the trunk sees of images, and of each as many true captions as false ones."""

    def __init__(self, seen_ncyx: torch.Tensor, scenes: Sequence[Scene], tokenizer: Any, batch: int, each: int) -> None:
        super().__init__(scenes, batch)
        self.tokenizer = tokenizer
        self._seen_ncyx, self._each = seen_ncyx, each

    def made(self, rows: Rows, place: int) -> Batch:
        scenes = [self.scenes[row] for row in rows]
        captions = [
            tell(scene, chance)
            for scene, chance in ((scene, dice(0, place + number, 0)) for number, scene in enumerate(scenes))
            for tell in (caption, false_caption)
            for _ in range(self._each)
        ]
        texts = [told.text for told in captions]
        columns = {
            **self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt"),
            "true": torch.from_numpy(truth(captions, scenes)),
            "claims": torch.from_numpy(np.stack([claimed(told) for told in captions])),
        }
        grouped = {name: column.unflatten(0, (len(scenes), -1)) for name, column in columns.items()}
        return {"seen": self._seen_ncyx[rows], **grouped}
