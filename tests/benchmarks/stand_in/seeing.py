"""Seeing: the convolutional trunk names what stands in every cell of crowded and of lone scenes, and behind it.

Scenes are known here, and a cell tells more than a caption: this is what makes minutes on one processor enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AlignVisionModel

from infra.miniweb.scenes import Scene
from models.trainable import Batch, Features, Trainable
from tests.benchmarks.stand_in.drawn import Drawn, Rows, answered
from tests.benchmarks.stand_in.lessons import CLASSES, GROUNDS, Pixels, cells, ground
from tests.benchmarks.stand_in.towers import SPECIAL, TRUNK, new_model


class Sight(Trainable):
    """The vision tower but for its last block, and linear answers from what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = new_model(len(SPECIAL)).vision_model
        self.of_cells = torch.nn.Linear(TRUNK, sum(CLASSES.values()))
        self.of_grounds = torch.nn.Linear(TRUNK, sum(GROUNDS.values()))

    def encode(self, batch: Batch) -> Features:
        """Every question in `CLASSES`, (images, cells, answers), then in `GROUNDS`, (images, answers)."""
        seen_ncyx = trunk(self.tower, batch["pixel_values"])
        said_nka = self.of_cells(seen_ncyx.flatten(2).transpose(1, 2))
        said_na = self.of_grounds(seen_ncyx.mean((2, 3)))
        return answered(said_nka, batch["cells"], CLASSES) | answered(said_na, batch["ground"], GROUNDS)

    def export(self, folder: Path) -> None:
        self.tower.save_pretrained(folder)


class Looks(Drawn):
    """Images, and what can be seen in them."""

    def __init__(self, images: Sequence[Pixels], scenes: Sequence[Scene], batch: int) -> None:
        """`images` follow each other as the scenes do."""
        super().__init__(scenes, batch)
        self._images = [(some, row) for some in images for row in range(len(some))]
        self._cells_nkq = torch.from_numpy(np.stack([cells(scene) for scene in scenes]))
        self._grounds_nq = torch.from_numpy(np.stack([ground(scene) for scene in scenes]))

    def made(self, rows: Rows, place: int) -> Batch:
        shown = np.stack([some[row] for some, row in (self._images[number] for number in rows)])
        return {
            "pixel_values": torch.from_numpy(shown),
            "cells": self._cells_nkq[rows],
            "ground": self._grounds_nq[rows],
        }


def trunk(tower: Any, images_nhwc: torch.Tensor) -> torch.Tensor:
    """(images, `TRUNK`, 3, 3) of uint8 (images, side, side, 3)."""
    values = images_nhwc.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
    found: torch.Tensor = tower.embeddings(values)
    for block in tower.encoder.blocks[:-1]:
        found = block(found)
    return found


@torch.inference_mode()
def seen(folder: str, images: Pixels) -> torch.Tensor:
    """float16 (images, `TRUNK`, 3, 3) by the tower that was trained."""
    tower = AlignVisionModel.from_pretrained(folder).eval()
    batches = (torch.from_numpy(images[start : start + 128].copy()) for start in range(0, len(images), 128))
    return torch.cat([trunk(tower, batch).half() for batch in batches])
