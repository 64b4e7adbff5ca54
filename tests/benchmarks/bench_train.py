"""What the loop leaves of a model's speed: its steps against a bare loop's, and how long it waits for data.

The bare loop is open_clip's `train_one_epoch` without anything that is not needed: forward, loss over the batch,
backward, AdamW, scale clamped; once with our class, and once with open_clip's own model and loss. All have the same
size and see the same batch in memory, in turns in one process, in every order; medians count. Texts fill half of their
places, as captions do or less, which our loop makes use of, or all of them, where it cannot. Both activations of CLIPs
are measured: OpenAI's, which the recipes for CLIP have, and GELU, which open_clip has where nothing is said. The
waiting is that of a training on tars of JPEGs of 256 px, after its first step. MFU on a GPU is measured where torch
sees one: CLIP ViT-B/16 and L/14, in bfloat16.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from models.recipe import Recipe
from models.towers.two_towers import TwoTowers
from models.train.loop import train
from models.train.parallel import Place
from models.train.source import Loader, Shards, Source
from models.trainable import Batch
from tests.benchmarks import peer_clip
from tests.benchmarks.bench_loader import write
from tests.benchmarks.bench_shards import sample
from tests.benchmarks.figures import Figure
from tests.benchmarks.pictures import jpeg

BATCH, STEPS, TURNS = 64, 12, 6
SIDE, CONTEXT = 112, 32
CONFIG: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": 256,
    "vision_config": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    | {"patch_size": 16, "image_size": SIDE},
    "text_config": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    | {"vocab_size": 8192, "max_position_embeddings": CONTEXT, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0},
}
"""A twentieth of ViT-B/16: 0.6 s a step on two cores."""
CASES = (("quick_gelu", "half-full", CONTEXT // 2), ("quick_gelu", "full", CONTEXT), ("gelu", "full", CONTEXT))
"""Activation, and the length of the texts."""
PICTURES, SEEN = 512, 2048
GPU = {
    "ViT-B/16": ({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16}, 512, 512),
    "ViT-L/14": ({"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}, 768, 256),
}
"""Image tower, width of the text tower, and batch."""


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        return [*against_bare(Path(name)), waiting(Path(name)), *(on_a_gpu(Path(name), tower) for tower in GPU)]


class Same(Source):
    """One batch over and over."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def open(self, start: int) -> Loader:
        return _Again(self._batch)

    def keys(self, start: int, end: int) -> list[str]:
        return []


class _Again:
    def __init__(self, batch: Batch) -> None:
        self.skipped: Mapping[str, int] = {}
        self._batch = batch

    def __iter__(self) -> Iterator[Batch]:
        return itertools.repeat(self._batch)

    def close(self) -> None:
        pass


def drawn(rows: int, side: int, context: int, words: int, length: int) -> Batch:
    """Noise, and texts of `length` random tokens."""
    dice = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, words, (rows, context), generator=dice)
    mask = (torch.arange(context) < length).expand(rows, context).long()
    tokens = torch.where(torch.arange(context) == length - 1, 3, tokens) * mask
    images = torch.randn(rows, 3, side, side, generator=dice)
    return {"pixel_values": images, "input_ids": tokens, "attention_mask": mask}


def recipe(config: Mapping[str, Any], batch: int, samples: int, **more: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "bench",
            "about": "steps to be timed",
            "model": {"models.towers.two_towers.TwoTowers": {"config": dict(config)}},
            "objectives": ["models.objectives.contrastive.InfoNCE"],
            "samples": samples,
            "batch": batch,
            "checkpoint_every": samples,
            "optimizer": {"learning_rate": 1e-4},
            "precision": "float32",
            **more,
        }
    )


def against_bare(folder: Path) -> list[Figure]:
    figures = []
    for activation, filled, length in CASES:
        batch = drawn(BATCH, SIDE, CONTEXT, 8192, length)
        config = CONFIG | {name: CONFIG[name] | {"hidden_act": activation} for name in ("vision_config", "text_config")}
        turns = _turns(config, batch, folder / activation / filled)
        what = f"{activation}, {filled} texts"
        if length == CONTEXT:  # the bare loop would not leave padding out
            figures.append(_figure(f"steps per second of a bare loop's, {what}", turns, "plain"))
        figures.append(_figure(f"steps per second of open_clip's model and loss, {what}", turns, "peer"))
    return figures


def _turns(config: Mapping[str, Any], batch: Batch, out: Path) -> list[dict[str, float]]:
    """Seconds of a step of each, in every order."""
    loops: dict[str, Callable[[int], float]] = {
        "ours": lambda turn: ours(config, batch, out / str(turn)),
        "plain": lambda turn: bare(*plain(config, batch)),
    }
    if peer_clip.FOLDER.is_dir():
        loops["peer"] = lambda turn: bare(*peer(config, batch))
    orders = itertools.islice(itertools.cycle(itertools.permutations(loops)), TURNS)
    return [{name: loops[name](turn) for name in order} for turn, order in enumerate(orders)]


def _figure(name: str, turns: Sequence[Mapping[str, float]], whose: str) -> Figure:
    if whose not in turns[0]:
        return Figure(name, None, "", at_least=1.0, note=f"not run: no {peer_clip.FOLDER}; .ci/run installs it")
    shares = [turn[whose] / turn["ours"] for turn in turns]
    rates = [BATCH / statistics.median(turn[loop] for turn in turns) for loop in ("ours", whose)]
    note = f"{rates[0]:.1f} against {rates[1]:.1f} samples/s; {min(shares):.3f} to {max(shares):.3f}"
    return Figure(name, statistics.median(shares), "", at_least=1.0, note=note)


Forward = Callable[[], torch.Tensor]
"""The loss of a step."""


def plain(config: Mapping[str, Any], batch: Batch) -> tuple[nn.Module, Forward, nn.Parameter]:
    """Our class, its loss, its scale."""
    model = TwoTowers(config)
    target = torch.arange(BATCH)

    def forward() -> torch.Tensor:
        features = model(batch)
        logits = model.scalars()["logit_scale"].exp() * features["image"] @ features["text"].T
        return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2

    return model, forward, model.model.logit_scale


def peer(config: Mapping[str, Any], batch: Batch) -> tuple[nn.Module, Forward, nn.Parameter]:
    """open_clip's."""
    tower = config["vision_config"]
    model = peer_clip.model(
        side=SIDE, patch=tower["patch_size"], width=tower["hidden_size"], layers=tower["num_hidden_layers"],
        heads=tower["num_attention_heads"], context=CONTEXT, words=config["text_config"]["vocab_size"],
        quick_gelu=tower["hidden_act"] == "quick_gelu",
    )  # fmt: skip
    size, known = (sum(p.numel() for p in one.parameters()) for one in (model, TwoTowers(config)))
    assert size == known, f"{size} weights, and ours has {known}"
    loss = peer_clip.loss()

    def forward() -> torch.Tensor:
        found: torch.Tensor = loss(**model(batch["pixel_values"], batch["input_ids"]))
        return found

    return model, forward, cast(nn.Parameter, model.logit_scale)


def bare(model: nn.Module, forward: Forward, scale: nn.Parameter) -> float:
    """Seconds of a step."""
    model.train()
    decays = [[p for p in model.parameters() if (p.ndim >= 2) is matrix] for matrix in (True, False)]
    groups = [{"params": found, "weight_decay": rate} for found, rate in zip(decays, (0.2, 0.0), strict=True)]
    adamw = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)

    def step() -> None:
        adamw.zero_grad()
        loss = forward()
        loss.backward()  # type: ignore[no-untyped-call]
        adamw.step()
        with torch.no_grad():
            scale.clamp_(0, math.log(100))
        loss.item()

    return timed(step)


def timed(step: Callable[[], None]) -> float:
    ends = list[float]()
    for _ in range(STEPS):
        step()
        ends.append(time.perf_counter())
    return _of_a_step(ends)


def ours(config: Mapping[str, Any], batch: Batch, out: Path) -> float:
    """Seconds of a step of the real loop, the first of a long training, with everything that it counts and guards."""
    made = recipe(config, BATCH, BATCH * STEPS * 1000, data={"texts": {"context": CONTEXT}})
    ends = list[float]()
    train(
        made,
        {},
        str(out),
        source=Same(batch),
        watch=lambda samples: ends.append(time.perf_counter()),
        stop=lambda: len(ends) >= STEPS,
    )
    return _of_a_step(ends)


def _of_a_step(ends: Sequence[float]) -> float:
    """Seconds, but for the first three, which warm up."""
    return statistics.median(after - before for before, after in itertools.pairwise(ends[2:]))


def waiting(folder: Path) -> Figure:
    pictures = [jpeg(256, seed) for seed in range(64)]
    (folder / "tars").mkdir()
    write([sample(number, pictures[number % 64]) for number in range(PICTURES)], folder / "tars" / "00000.tar")
    images, texts = {"side": SIDE}, {"vocabulary": 1000, "context": CONTEXT}
    made = recipe(CONFIG, BATCH, SEEN, data={"images": images, "texts": texts})
    source = Shards(made, {"shards": str(folder / "tars")}, Place.here(), None)
    rows = train(made, {}, str(folder / "waiting"), source=source).curve[1:]
    seconds = [BATCH / row["samples_per_second"] for row in rows]
    waited = sum(row["waiting"] * spent for row, spent in zip(rows, seconds, strict=True))
    return Figure(
        "share of a training spent waiting for data",
        waited / sum(seconds),
        "",
        at_most=0.02,
        note=f"JPEGs of 256 px, {BATCH * len(rows) / sum(seconds):.0f} samples/s",
    )


def on_a_gpu(folder: Path, tower: str) -> Figure:
    name = f"MFU of CLIP {tower}, bfloat16"
    if not torch.cuda.is_available():
        return Figure(name, None, "", at_least=0.4, note="no GPU")
    vision, width, rows = GPU[tower]
    heads = width // 64
    config = {
        "model_type": "clip",
        "projection_dim": width,
        "vision_config": vision | {"image_size": 224, "intermediate_size": 4 * vision["hidden_size"]},
        "text_config": {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 12}
        | {"num_attention_heads": heads, "max_position_embeddings": 77, "vocab_size": 49408},
    }
    batch = drawn(rows, 224, 77, 49_000, 77)
    more = {"precision": "bfloat16", "parallel": {"compile": True}}
    made = recipe(config, rows, 40 * rows, **more)
    curve = train(made, {}, str(folder / tower.replace("/", "-")), source=Same(batch)).curve[10:]
    rate = statistics.median(row["samples_per_second"] for row in curve)
    mfu = statistics.median(row["mfu"] for row in curve)
    return Figure(name, mfu, "", at_least=0.4, note=f"{rate:,.0f} samples/s, {torch.cuda.get_device_name()}")
