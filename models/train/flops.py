"""How much of what a processor could do went into the model (MFU, Chowdhery et al. 2022, appendix B).

Counted is the work that learning needs: what is frozen has no backward pass, patches that were dropped and padding
cost nothing, and what is computed twice (activation checkpointing, cached features) counts once. So it is measured
instead of derived: the operations of one step on two rows, at three lengths of their texts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.trainable import Batch, Trainable

MASK = "attention_mask"
TILES = "tiles"
LEARNT = "learnt"
SEEN = ("pixel_values", TILES, "image_sizes", "image_places")
"""Columns of images that stand in a text, any number in each."""
PEAKS: Sequence[tuple[str, float, float]] = (
    ("G?B200", 2250, 75),
    ("G?H200", 989, 67),
    ("H100 PCIe", 756, 51),
    ("H100", 989, 67),
    ("A100", 312, 19.5),
    ("L40S", 362, 91.6),
    ("L4", 121, 30.3),
    ("A10G", 70, 35),
    ("A10", 125, 31.2),
    ("RTX 4090", 165, 82.6),
    ("V100", 125, 15.7),
    ("T4", 65, 8.1),
)
"""A pattern of the name, and 10^12 operations a second without sparsity, from the vendor's data sheets: in bfloat16
(float16 where there is none) on tensor cores, and in float32; the first that is a word of the device's name counts."""


@dataclass(frozen=True)
class Work:
    """Operations of one sample's forward and backward pass: constant + linear · tokens + square · tokens², `tile` for
    each tile of its images, and `answer` for each token that is said to be learnt."""

    constant: float
    linear: float = 0.0
    square: float = 0.0
    tile: float = 0.0
    answer: float = 0.0

    def of(self, batch: Batch) -> float:
        """Operations that the rows of a batch are worth; texts without a mask are taken as they are."""
        rows = len(next(iter(batch.values())))
        if MASK not in batch:
            return rows * self.constant
        lengths = batch[MASK].sum(-1).double()
        texts = rows / max(1, lengths.numel())  # of several texts a sample, each is worth its share
        seen = self.tile * float(batch[TILES].sum()) if TILES in batch else 0.0
        seen += self.answer * float(batch[LEARNT].sum()) if LEARNT in batch else 0.0
        return rows * self.constant + texts * float((self.linear * lengths + self.square * lengths**2).sum()) + seen


def measure(model: Trainable, batch: Batch) -> Work:
    """Count what two rows take, on the model's device and as it trains now; leaves no gradients behind.

    To be called before the model is spread, compiled, or made to compute anything twice.
    """
    rows = {name: column[:2] for name, column in batch.items()}
    if TILES in rows:
        texts = {name: column for name, column in rows.items() if name not in SEEN}
        seen = float(rows[TILES].sum())
        more = _operations(model, rows) - _operations(model, texts) if seen else 0.0
        return replace(measure(model, texts), tile=more / max(seen, 1))
    if LEARNT in rows and (learnt := float(rows[LEARNT].sum())):
        silent = {**rows, LEARNT: torch.zeros_like(rows[LEARNT])}
        more = _operations(model, rows) - _operations(model, silent)
        return replace(measure(model, silent), answer=more / learnt)
    if MASK in rows:  # as long as they can be, for a model may leave padding out
        rows[MASK] = torch.ones_like(rows[MASK])
    count = len(next(iter(rows.values())))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    if MASK not in rows or rows[MASK].shape[-1] < 4:
        found = Work(_operations(model, rows) / count)
    else:
        longest = rows[MASK].shape[-1]
        lengths = [longest, longest // 2, longest // 4]
        operations = [_operations(model, _shortened(rows, length)) / count for length in lengths]
        square, linear, constant = np.polyfit(lengths, operations, 2)
        found = Work(float(constant), float(linear), float(square))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return found


def peak(device: torch.device, bfloat16: bool) -> float:
    """Operations a second: by the data sheet, or measured with a product of two matrices where none is at hand."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, half, full in PEAKS:
            if re.search(rf"\b{known}\b", name):
                return (half if bfloat16 else full) * 1e12
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.ones(side, side, dtype=torch.bfloat16 if bfloat16 else torch.float32, device=device)
    fastest = float("inf")
    for _ in range(4):  # the first one warms up
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * side**3 / fastest


def _shortened(rows: Batch, length: int) -> Batch:
    texts = rows[MASK].shape
    return {name: column[..., :length] if column.shape == texts else column for name, column in rows.items()}


def _operations(model: Trainable, rows: Batch) -> float:
    counter = FlopCounterMode(display=False)
    with (
        torch.random.fork_rng(),
        sdpa_kernel(SDPBackend.MATH),
        counter,
    ):  # of which every product is counted
        features = model(rows)
        outcome = [value.float().sum() for value in features.values() if value.requires_grad]
        if outcome:
            torch.autograd.backward(torch.stack(outcome).sum())
    for parameter in model.parameters():
        parameter.grad = None
    return float(counter.get_total_flops())
