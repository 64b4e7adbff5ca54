"""What the trainer trains: a dual encoder that first says what stands in images, and then which captions are true."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AlignModel

from models.trainable import Batch, Features, Loss, Objective, Scalars, Trainable
from tests.benchmarks.stand_in.lessons import CLASSES, GROUNDS
from tests.benchmarks.stand_in.towers import TRUNK, new_model, save

ALIKE = 128
"""Captions that are padded together."""


class Student(Trainable):
    """Of a batch with `pixel_values` it tells what is there; of one with `seen`, which captions are true of it."""

    def __init__(self, tokenizer: Any, pretrained: str | None = None) -> None:
        """`pretrained`: the folder of one that sees."""
        super().__init__()
        self.tokenizer = tokenizer
        self.model = AlignModel.from_pretrained(pretrained) if pretrained else new_model(len(tokenizer))
        self.of_cells = torch.nn.Linear(TRUNK, sum(CLASSES.values()))
        self.of_grounds = torch.nn.Linear(TRUNK, sum(GROUNDS.values()))
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = torch.nn.Parameter(torch.tensor(0.0))

    def encode(self, batch: Batch) -> Features:
        return self._looked(batch) if "pixel_values" in batch else self._read(batch)

    def trunk(self, images_nhwc: torch.Tensor) -> torch.Tensor:
        """(images, `TRUNK`, 3, 3) of uint8 (images, side, side, 3): what all blocks but the last see."""
        values = images_nhwc.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        found: torch.Tensor = self.model.vision_model.embeddings(values)
        for block in self.model.vision_model.encoder.blocks[:-1]:
            found = block(found)
        return found

    def _looked(self, batch: Batch) -> Features:
        """Every question in `CLASSES`, (images, cells, answers), and in `GROUNDS`, (images, answers)."""
        seen_ncyx = self.trunk(batch["pixel_values"])
        of_cells_nka = self.of_cells(seen_ncyx.flatten(2).transpose(1, 2))
        of_grounds_na = self.of_grounds(seen_ncyx.mean((2, 3)))
        return _answered(of_cells_nka, batch["cells"], CLASSES) | _answered(of_grounds_na, batch["ground"], GROUNDS)

    def _read(self, batch: Batch) -> Features:
        """Unit rows `image` (images, width) and `text` (images, captions, width), and which of these are `true` of
        which images (images, captions, images)."""
        image_nd = self.model.vision_model.encoder.blocks[-1](batch["seen"].float()).mean((2, 3))
        ids_ntl, mask_ntl = batch["input_ids"], batch["attention_mask"]
        text_cd = self.model.text_projection(self._states(ids_ntl.flatten(0, 1), mask_ntl.flatten(0, 1)))
        text_ntd = functional.normalize(text_cd, dim=1).view(*ids_ntl.shape[:2], -1)
        return {"image": functional.normalize(image_nd, dim=1), "text": text_ntd, "true": batch["true"]}

    def _states(self, ids_cl: torch.Tensor, mask_cl: torch.Tensor) -> torch.Tensor:
        """(captions, hidden) before they are projected. What is as long goes together: padding costs, too."""
        lengths_c = mask_cl.sum(1)
        order, found = lengths_c.argsort(), []
        for rows in torch.split(order, ALIKE):
            longest = int(lengths_c[rows].max())
            found.append(self.model.text_model(ids_cl[rows, :longest], mask_cl[rows, :longest])[0][:, 0])
        return torch.cat(found)[order.argsort()]

    def scalars(self) -> Scalars:
        return {"logit_scale": self.logit_scale, "logit_bias": self.logit_bias}

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        self.model.temperature.fill_(float((-self.logit_scale).exp()))
        save(self.model, self.tokenizer, folder)


class Truth(Objective):
    """Of every caption: is it true of the image that it was made for, and if so, of which images of the batch?

    The first is the loss of a pair in SigLIP (Zhai et al. 2023), for scores must compare across captions; the second
    is InfoNCE with several right answers.
    """

    joint = True

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        true_ntm = features["true"]
        logits_ntm = scalars["logit_scale"].exp() * features["text"] @ features["image"].T
        true_nt, own_nt = (matrix.diagonal(dim1=0, dim2=2).T for matrix in (true_ntm, logits_ntm))
        own_nt = own_nt + scalars["logit_bias"]
        pairs = functional.binary_cross_entropy_with_logits(own_nt, true_nt.float(), reduction="sum")
        logits_cm = logits_ntm[true_nt]
        hits_c = logits_cm.masked_fill(~true_ntm[true_nt], -math.inf).logsumexp(1)
        return Loss(pairs + (logits_cm.logsumexp(1) - hits_c).sum(), pairs.new_tensor(own_nt.numel()))


def _answered(said: torch.Tensor, true: torch.Tensor, questions: Mapping[str, int]) -> Features:
    """Of every question, by its name, its part of all answers (…, answers), and of what is true (…, questions)."""
    logits = dict(zip(questions, torch.split(said, list(questions.values()), dim=-1), strict=True))
    return logits | {f"true {name}": labels for name, labels in zip(questions, true.unbind(-1), strict=True)}
