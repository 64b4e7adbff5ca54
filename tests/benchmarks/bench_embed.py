"""What the engine leaves of a model's speed: images per second through a node, against decoding and the model alone.

The accelerator is simulated: its forward pass is a sleep, which gives the processor away as a GPU's does.
"""

from __future__ import annotations

import io
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from PIL import Image
from transformers import AutoModel, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models.towers.dual_encoder import DualEncoder
from pipeline import Dag, run
from pipeline.rows import Decoder, PartRows, ahead, cut
from pipeline.stage import PIXELS, Column, Device
from pipeline.store import Store
from pipeline.worker import Call
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
"""Images per second of the simulated accelerator: slower, and faster, than two threads decode."""
SLOW_IMAGES = 192
TURNS = 5
TEXT = """
dag: embeddings
nodes:
  urls: {{steps: [{{tests.toys.Numbers: {{rows: {rows}, parts: 1}}}}]}}
  pool: {{from: urls, steps: [tests.benchmarks.pictures.Pictures]}}
  embedded:
    from: pool
    workers: {{batch_rows: {batch_rows}}}
    steps: [{{stages.embed.ImageEmbeddings: {{weights: {weights}}}}}]
"""


class OnDevice(Inline):
    """One worker in this process, with threads that decode."""

    def __init__(self, store: Store, threads: int) -> None:
        super().__init__(store)
        self.device = Device(threads=threads)

    def run(self, node: Any, calls: Any, total_rows: int, done_rows: int) -> Any:
        hints = {"device": self.device, "batch_rows": node.workers.batch_rows}
        told: list[Call] = [
            replace(call, task=replace(call.task, hints={**call.task.hints, **hints})) for call in calls
        ]
        return super().run(node, told, total_rows, done_rows)


def measure() -> list[Figure]:
    folder = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    try:
        return [*simulated(folder / "simulated"), on_the_processor(folder / "processor")]
    finally:
        shutil.rmtree(folder)


def simulated(folder: Path) -> list[Figure]:
    """The same images at several speeds of the model; what is resized is what CLIP sees, 224 px."""
    node = Embedding(folder, IMAGES, THREADS, saved(folder / "clip", layers=1, hidden=32))
    encoder = encoders._loaded(str(folder / "clip"), "float32", "cpu")
    width, figures = encoder.width, []
    rates: dict[int, list[tuple[float, float]]] = {speed: [] for speed in SPEEDS}
    for _ in range(TURNS):
        for speed in SPEEDS:

            def sleep(pixel_values: Any, speed: int = speed) -> Any:
                time.sleep(len(pixel_values) / speed)
                return SimpleNamespace(pooler_output=torch.ones(len(pixel_values), width))

            encoder._model.get_image_features = sleep
            rates[speed].append((rate(node.decode_alone, IMAGES), rate(node.run, IMAGES)))
    for speed, pairs in rates.items():
        shares = [100 * engine / min(decode, speed) for decode, engine in pairs]
        decode, engine = (statistics.median(side) for side in zip(*pairs, strict=True))
        note = f"{engine:,.0f} images/s; {decode:,.0f} read, decoded, resized, normalised alone, {THREADS} threads"
        name = f"embedding, of the slower of the processor and {speed:,} images/s on an accelerator"
        figures.append(Figure(name, statistics.median(shares), "%", at_least=90, note=note))
    return figures


def on_the_processor(folder: Path) -> Figure:
    """A tower of a real shape, on one thread, against the loop that one would write with transformers alone."""
    torch.set_num_threads(1)
    weights = saved(folder / "clip", layers=6, hidden=384)
    node = Embedding(folder, SLOW_IMAGES, 1, weights)
    model, processor = AutoModel.from_pretrained(weights).eval(), CLIPImageProcessorPil()
    jpegs = [jpeg(256, row % MOTIFS) for row in range(SLOW_IMAGES)]

    @torch.inference_mode()
    def bare() -> None:
        for start in range(0, SLOW_IMAGES, 64):
            images = [Image.open(io.BytesIO(data)).convert("RGB") for data in jpegs[start : start + 64]]
            model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output.numpy()

    shares = []
    for turn in range(TURNS):
        sides = {work: rate(work, SLOW_IMAGES) for work in ((bare, node.run), (node.run, bare))[turn % 2]}
        shares.append((sides[node.run] / sides[bare], sides[node.run], sides[bare]))
    share, engine, plain = statistics.median_low(shares)
    note = f"{engine:.1f} images/s against {plain:.1f}, one thread, 6 layers of 384 at 224 px, patches of 32 px"
    return Figure(
        "embedding on the processor, of a bare transformers loop",
        100 * share,
        "%",
        at_least=90,
        note=note,
    )


class Embedding:
    """A pool of one part, and the node over it, which is done anew at every `run`."""

    def __init__(self, folder: Path, rows: int, threads: int, weights: Path) -> None:
        self.store, self.rows, self.threads = Store(str(folder / "root")), rows, threads
        self.dag = Dag.parse(TEXT.format(rows=rows, batch_rows=BATCH_ROWS, weights=weights))
        self.encoder = DualEncoder.load(weights, "cpu", "float32")
        executor = OnDevice(self.store, threads)
        self.pool = run(self.dag, self.store.root, until="pool", executor=executor).generations["pool"]
        self.run()

    def run(self) -> None:
        shutil.rmtree(Path(self.store.root) / "embedded", ignore_errors=True)
        result = run(self.dag, self.store.root, executor=OnDevice(self.store, self.threads))
        assert sum(result.generations["embedded"].statuses.values()) == self.rows

    def decode_alone(self) -> None:
        """Everything before the model, with the same threads and nothing to wait for."""
        (record,) = self.pool.records
        rows = PartRows.load(self.store, {"pool": (record,)}, [Column(PIXELS, "pool", "image", None)])
        decoder = Decoder(self.store, rows, Device(threads=self.threads))
        prepare = self.encoder.preprocessing.prepare
        for _, pictures in ahead(decoder, cut(np.arange(self.rows), BATCH_ROWS)):
            images = list(decoder._threads.map(prepare, pictures() or [])) if decoder._threads else []
            for start in range(0, len(images), 64):
                self.encoder._image_inputs(images[start : start + 64])
        decoder.close()


def saved(folder: Path, layers: int, hidden: int) -> Path:
    """A random CLIP that sees 224 px in patches of 32."""
    shape = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": 4}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 600}
    vision = shape | {"num_hidden_layers": layers, "image_size": 224, "patch_size": 32}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)).save_pretrained(folder)
    tiny.tokenizer("clip").save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return folder


def rate(work: Callable[[], object], images: int) -> float:
    """Images per second."""
    start = time.perf_counter()
    work()
    return images / (time.perf_counter() - start)
