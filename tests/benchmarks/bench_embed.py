"""What the engine leaves of a model's speed: images per second through a node, of what decoding and model do alone.

All three run in the same process, with the same threads, in turns, and the medians of the shares count. Decoding alone
is everything before the model: read, verified, decoded, resized. The model alone is the stage's own function, images
ready. The accelerator is simulated: it takes the images as bytes and sleeps, which gives the processor away as a GPU's
forward pass does. What needs a GPU is measured where torch sees one.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from PIL import Image
from transformers import AutoModel, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models.towers.dual_encoder import Dtype, DualEncoder
from pipeline import Dag, run
from pipeline.rows import Decoder, Images, PartRows, RowBatch, ahead, cut
from pipeline.stage import PIXELS, Column, Device, Prepare
from pipeline.store import Store
from pipeline.worker import Call
from stages.embed import ImageEmbeddings
from stages.kit import encoders
from tests.benchmarks.figures import Figure
from tests.benchmarks.pictures import MOTIFS, jpeg
from tests.inline import Inline
from tests.models.towers import tiny

THREADS = 2
BATCH_ROWS = 64
"""A part of the real size has 40 batches of 256: of as few images as here, the first batch would weigh too much."""
IMAGES = 1536
SPEEDS = (250, 1000)
"""Images per second of the simulated accelerator: slower, and about as fast as two threads decode, or faster."""
SLOW_IMAGES = 96
GPU_IMAGES = 16_384
TURNS = 5
TOWERS = {
    "ViT-B/32": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 32},
    "ViT-L/14": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14},
}
TEXT = """
dag: embeddings
nodes:
  urls: {{steps: [{{tests.toys.Numbers: {{rows: {rows}, parts: 1}}}}]}}
  pool: {{from: urls, steps: [tests.benchmarks.pictures.Pictures]}}
  embedded:
    from: pool
    workers: {{batch_rows: {batch_rows}}}
    steps: [{{stages.embed.ImageEmbeddings: {{weights: {weights}, batch: {batch}}}}}]
"""


def measure() -> list[Figure]:
    folder = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    try:
        return [
            *simulated(folder / "simulated"),
            *on_the_processor(folder / "processor"),
            *(on_a_gpu(folder / name.replace("/", "-"), name) for name in TOWERS),
        ]
    finally:
        shutil.rmtree(folder)


def simulated(folder: Path) -> list[Figure]:
    """The same images at several speeds of the model; what is resized is what CLIP sees, 224 px."""
    weights = saved(folder / "clip", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=32)
    node = Embedding(folder, IMAGES, weights, Device(threads=THREADS))
    width = encoders._loaded(str(weights), "float32", "cpu").width
    sides: dict[int, list[tuple[float, ...]]] = {speed: [] for speed in SPEEDS}
    for _ in range(TURNS):
        for speed in SPEEDS:
            slept = 0

            def sleep(_: CLIPModel, pixel_values: torch.Tensor, speed: int = speed) -> Any:
                nonlocal slept
                slept += len(pixel_values)
                time.sleep(len(pixel_values) / speed)
                return SimpleNamespace(pooler_output=torch.ones(len(pixel_values), width))

            # Of the classes, for the engine loads a model of its own out of the root's resources.
            with patch.object(CLIPModel, "get_image_features", sleep), patch.object(DualEncoder, "_image_inputs", raw):
                sides[speed].append(tuple(rate(work, IMAGES) for work in (node.decode, node.forward, node.run)))
            assert slept == 2 * IMAGES
    return [share(f"embedding on an accelerator of {speed:,} images/s", found) for speed, found in sides.items()]


def raw(_: DualEncoder, images: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Bytes, as an accelerator takes them."""
    return {"pixel_values": torch.from_numpy(np.stack(images))}


def on_the_processor(folder: Path) -> list[Figure]:
    """ViT-B/32 with random weights, against the loop that one would write with transformers alone."""
    torch.set_num_threads(THREADS)
    weights = saved(folder / "clip", **TOWERS["ViT-B/32"])
    node = Embedding(folder, SLOW_IMAGES, weights, Device(threads=THREADS))
    model, processor = AutoModel.from_pretrained(weights).eval(), CLIPImageProcessorPil()
    jpegs = [jpeg(256, row % MOTIFS) for row in range(SLOW_IMAGES)]

    @torch.inference_mode()
    def bare() -> None:
        for start in range(0, SLOW_IMAGES, BATCH_ROWS):
            images = [Image.open(io.BytesIO(data)).convert("RGB") for data in jpegs[start : start + BATCH_ROWS]]
            model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output.numpy()

    works = (node.decode, node.forward, node.run, bare)
    sides = []
    for turn in range(TURNS):
        found = {work: rate(work, SLOW_IMAGES) for work in works[:: 1 if turn % 2 else -1]}
        sides.append(tuple(found[work] for work in works))
    against = statistics.median(engine / plain for _, _, engine, plain in sides)
    plain = statistics.median(side[3] for side in sides)
    return [
        share(f"ViT-B/32 on {THREADS} cores", [side[:3] for side in sides]),
        Figure(
            f"ViT-B/32 on {THREADS} cores, of a bare transformers loop",
            100 * against,
            "%",
            at_least=90,
            note=f"{plain:.1f} images/s in the loop, which decodes and resizes one after the other",
        ),
        Figure("the same of clip-retrieval", None, "%", note="2.45 wants numpy < 2, pyarrow < 16: not beside sluice"),
        *(on_one_dtype(weights, dtype) for dtype in ("float32", "bfloat16")),
    ]


def on_one_dtype(weights: Path, dtype: Dtype) -> Figure:
    encoder = DualEncoder.load(weights, "cpu", dtype)
    images = [np.zeros((224, 224, 3), np.uint8)] * 16
    found = statistics.median(rate(lambda: encoder.embed_prepared(images, 16), 16) for _ in range(3))
    return Figure(f"ViT-B/32 on {THREADS} cores in {dtype}, model alone", found, "images/s")


def on_a_gpu(folder: Path, name: str) -> Figure:
    """Through the engine, of what the model alone does with images that lie in the GPU's memory."""
    what = f"{name} on a GPU, of the model's own ceiling"
    if not torch.cuda.is_available():
        return Figure(what, None, "%", at_least=90, note="torch sees no GPU here")
    weights = saved(folder / "clip", **TOWERS[name])
    device = Device("cuda", os.cpu_count() or 1)
    node = Embedding(folder, GPU_IMAGES, weights, device, batch_rows=512, batch=256)
    images_nchw = torch.zeros(256, 3, 224, 224, device="cuda", dtype=torch.float16)
    model = encoders._loaded(str(weights), "float16", "cuda")._model

    @torch.inference_mode()
    def ceiling() -> None:
        for _ in range(GPU_IMAGES // 256):
            model.get_image_features(images_nchw)
        torch.cuda.synchronize()

    ceiling()
    sides = [tuple(rate(work, GPU_IMAGES) for work in (ceiling, node.run, node.decode)) for _ in range(TURNS)]
    most, engine, decode = (statistics.median(side) for side in zip(*sides, strict=True))
    note = f"{engine:,.0f} of {most:,.0f} images/s; {decode:,.0f} decoded alone by {device.threads} threads"
    return Figure(what, 100 * statistics.median(side[1] / side[0] for side in sides), "%", at_least=90, note=note)


def share(what: str, sides: Sequence[tuple[float, ...]]) -> Figure:
    """Of (decode, forward, engine) in images/s, once a turn."""
    decode, forward, engine = (statistics.median(side) for side in zip(*sides, strict=True))
    shares = [100 * side[2] / min(side[:2]) for side in sides]
    note = f"{engine:,.1f} images/s; decoding alone {decode:,.0f}, the model alone {forward:,.1f}, {THREADS} threads"
    return Figure(
        f"{what}, of the slower of decoding and model", statistics.median(shares), "%", at_least=90, note=note
    )


class Embedding:
    """A pool of one part, and the node over it, which is done anew at every `run`."""

    def __init__(
        self, folder: Path, rows: int, weights: Path, device: Device, batch_rows: int = BATCH_ROWS, batch: int = 64
    ) -> None:
        self.store, self.rows, self.device, self.batch_rows = Store(str(folder / "root")), rows, device, batch_rows
        self.dag = Dag.parse(TEXT.format(rows=rows, batch_rows=batch_rows, weights=weights, batch=batch))
        stage = ImageEmbeddings(weights=str(weights), batch=batch)
        self.function, self.prepare = stage.open(device), stage.prepares(device)
        executor = OnDevice(self.store, device)
        self.pool = run(self.dag, self.store.root, until="pool", executor=executor).generations["pool"]
        self.ready = [self.prepare(np.asarray(Image.open(io.BytesIO(jpeg(256, motif))))) for motif in range(MOTIFS)]
        self.run()

    def run(self) -> None:
        """The node, from the plan to the seal."""
        shutil.rmtree(Path(self.store.root) / "embedded", ignore_errors=True)
        result = run(self.dag, self.store.root, executor=OnDevice(self.store, self.device))
        assert sum(result.generations["embedded"].statuses.values()) == self.rows

    def decode(self) -> None:
        """Everything before the model, with the same threads and nothing to wait for."""
        (record,) = self.pool.records
        rows = PartRows.load(self.store, {"pool": (record,)}, [Column(PIXELS, "pool", "image", pa.null())])
        decoder = Decoder(self.store, rows, self.device, [self.prepare])
        for _, pictures in ahead(decoder, cut(np.arange(self.rows), self.batch_rows)):
            pictures()
        decoder.close()

    def forward(self) -> None:
        """The model alone, in batches of the same size, of images that are ready."""
        for rows in cut(np.arange(self.rows), self.batch_rows):
            images: dict[Prepare | None, Images] = {self.prepare: [self.ready[row % MOTIFS] for row in rows]}
            self.function(RowBatch(pa.table({}), None, images))


class OnDevice(Inline):
    """One worker in this process, with threads that decode."""

    def __init__(self, store: Store, device: Device) -> None:
        super().__init__(store)
        self.device = device

    def run(self, node: Any, calls: Any, total_rows: int, done_rows: int) -> Any:
        hints = {"device": self.device, "batch_rows": node.workers.batch_rows}
        told: list[Call] = [
            replace(call, task=replace(call.task, hints={**call.task.hints, **hints})) for call in calls
        ]
        return super().run(node, told, total_rows, done_rows)


def saved(folder: Path, **shape: int) -> Path:
    """A random CLIP that sees 224 px."""
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 600}
    vision = {**shape, "intermediate_size": 4 * shape["hidden_size"], "image_size": 224}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)).save_pretrained(folder)
    tiny.tokenizer("clip").save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return folder


def rate(work: Callable[[], object], images: int) -> float:
    """Images per second."""
    start = time.perf_counter()
    work()
    return images / (time.perf_counter() - start)
