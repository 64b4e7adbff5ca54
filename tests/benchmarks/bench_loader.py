"""Samples a second out of shards: against webdataset's loader, and against what the codec alone can do.

A sample is a JPEG of 256 px with a caption and a JSON. Without decoding, both give the bytes of shuffled samples in one
process. With it, both crop, resize to 224 px and find tokens, on two cores: two decoders here, and webdataset in two
workers of torch's DataLoader; the first eight batches, which go into new memory, are not counted. The headers of tars
without an index are read before, once, and timed apart. The codec alone decodes and resizes what lies in memory, in two
processes: some images decoded and then all of them resized, as here, or one after another. All in turns, each in a
process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from models.data.collate import Collate, Room
from models.data.images import training_crop
from models.data.loader import Loader
from models.data.order import Order
from models.data.pairs import Pair, Pairs, captions_of, drawn, image_id
from models.data.shards import Sample, Samples
from models.data.tokenizer import trained
from models.recipe import Data
from models.trainable import Batch
from stages.kit.tar import TarWriter
from tests.benchmarks.bench_shards import sample
from tests.benchmarks.figures import Figure
from tests.benchmarks.pictures import jpeg

SHARDS, PER_SHARD, TURNS = 8, 1024, 5
MOTIFS = 64
CORES = 2
BATCH = 256
FIRST = 8
"""Batches that are not counted."""
TOGETHER = 16
"""Images that the codec alone decodes before it resizes them, where it is fastest."""
SAMPLES = SHARDS * PER_SHARD
DATA = Data()


def measure() -> list[Figure]:
    torch.set_num_threads(1)
    pictures = [jpeg(256, seed) for seed in range(MOTIFS)]
    samples = [sample(number, pictures[number % MOTIFS]) for number in range(SAMPLES)]
    pairs = Pairs(DATA, trained((text for _, _, text, _ in samples), 1000, DATA.texts.context))
    folder = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    try:
        for shard in range(SHARDS):
            write(samples[shard * PER_SHARD : (shard + 1) * PER_SHARD], folder / f"{shard:05d}.tar")
        started = time.perf_counter()
        shards = Samples.open(folder)
        scanned = SAMPLES / (time.perf_counter() - started)
        contestants: dict[str, Callable[[], float]] = {
            "bytes": lambda: loaded(shards, Bytes(), threads=1),
            "webdataset's bytes": lambda: bytes_by_webdataset(folder),
            "decoded": lambda: loaded(shards, pairs, decoders=CORES),
            "in threads": lambda: loaded(shards, pairs, threads=CORES + 1),
            "webdataset's decoded": lambda: decoded_by_webdataset(folder, pairs),
            "codec": lambda: decoded_alone(pictures, TOGETHER),
            "codec, one by one": lambda: decoded_alone(pictures, 1),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(TURNS):
            for name, run in contestants.items():
                rates[name].append(in_a_process(run))
    finally:
        shutil.rmtree(folder)
    rate = {name: statistics.median(found) for name, found in rates.items()}
    plain, decoded = rate["webdataset's bytes"], rate["webdataset's decoded"]
    codec, one_by_one = rate["codec"], rate["codec, one by one"]
    return [
        Figure("samples/s whose headers are read", scanned, "1/s", note="once a training, where tars have no index"),
        Figure("samples/s without decoding", rate["bytes"], "1/s", note=f"shuffled, {len(pictures[0]) / 1000:.0f} KB"),
        Figure("against webdataset", rate["bytes"] / plain, "×", at_least=3, note=f"{plain:,.0f} by its reader"),
        Figure("samples/s decoded", rate["decoded"], "1/s", note=f"256 px to 224, {CORES} cores, with tokens"),
        Figure("the same, against webdataset", rate["decoded"] / decoded, "×", at_least=1, note=f"{decoded:,.0f}"),
        Figure("of the codec's ceiling", 100 * rate["decoded"] / codec, "%", at_least=90, note=f"{codec:,.0f} alone"),
        Figure("of the codec one by one", 100 * rate["decoded"] / one_by_one, "%", note=f"{one_by_one:,.0f} alone"),
        Figure("samples/s decoded in threads", rate["in threads"], "1/s", note="`parallel.decoders` 0, the default"),
    ]


def in_a_process(run: Callable[[], float]) -> float:
    """What it gives where nothing ran before it, whose memory it would get."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(run()))
    process.start()
    sender.close()
    try:
        return float(receiver.recv())
    finally:
        process.join()


def write(samples: Sequence[tuple[str, bytes, str, dict[str, Any]]], path: Path) -> None:
    with path.open("wb") as stream:
        writer = TarWriter(stream)
        for key, picture, caption, facts in samples:
            captions = {"captions": [{"text": caption, "source": "web"}]}
            text = json.dumps(facts | captions).encode()
            writer.add([(f"{key}.jpg", picture), (f"{key}.txt", caption.encode()), (f"{key}.json", text)])
        writer.finish()


class Bytes(Collate[int]):
    """Takes samples as they are, and keeps none, as nothing is kept of webdataset's."""

    def row(self, sample: Sample, dice: Random, room: Room, at: int) -> int:
        return len(sample.members["jpg"])

    def batch(self, rows: Sequence[int]) -> Batch:
        return {"nbytes": torch.tensor(rows)}


def loaded(samples: Samples, collate: Collate[Any], threads: int | None = None, decoders: int = 0) -> float:
    """Samples a second, of all once; by many threads or processes, without the first batches."""
    order = Order({"shards": len(samples)}, {"shards": 1}, seed=1)
    uncounted = 0 if threads == 1 else FIRST * BATCH
    started = time.perf_counter()
    with Loader({"shards": samples}, order, collate, BATCH, threads=threads, decoders=decoders) as loader:
        for found in range(0, SAMPLES, BATCH):
            if found == uncounted:
                started = time.perf_counter()
            next(loader)
        return (SAMPLES - uncounted) / (time.perf_counter() - started)


def bytes_by_webdataset(folder: Path) -> float:
    started = time.perf_counter()
    found = sum(1 for _ in webdataset_of(folder))
    return checked(found) / (time.perf_counter() - started)


def decoded_by_webdataset(folder: Path, pairs: Pairs) -> float:
    dice = Random(1)

    def prepared(sample: dict[str, Any]) -> tuple[torch.Tensor, Pair]:
        read = Sample(sample["__key__"], {name: sample[name] for name in ("jpg", "txt", "json")})
        pair = Pair(drawn(captions_of(read), 1, dice), image_id(read.members["jpg"]))
        return training_crop(read, DATA.images, dice).resized(), pair

    def collated(rows: Sequence[tuple[torch.Tensor, Pair]]) -> Batch:
        return {"pixel_values": torch.stack([row[0] for row in rows]), **pairs.batch([row[1] for row in rows])}

    pipeline = webdataset_of(folder).map(prepared).batched(BATCH, collation_fn=collated)
    loader = torch.utils.data.DataLoader(
        pipeline, batch_size=None, num_workers=CORES, multiprocessing_context="fork", worker_init_fn=one_thread
    )
    found, started = 0, 0.0
    for batch in loader:
        found += len(batch["pixel_values"])
        if found == FIRST * BATCH:
            started = time.perf_counter()
    return (checked(found) - FIRST * BATCH) / (time.perf_counter() - started)


def webdataset_of(folder: Path) -> Any:
    """Shuffled as its documentation has it: the shards, and samples among a thousand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset

        shards = f"{folder}/{{00000..{SHARDS - 1:05d}}}.tar"
        return webdataset.WebDataset(
            shards, shardshuffle=SHARDS, workersplitter=webdataset.split_by_worker, seed=1
        ).shuffle(1000)


def checked(found: int) -> int:
    if found != SAMPLES:
        raise RuntimeError(f"webdataset gave {found} samples of {SAMPLES}")
    return found


def one_thread(_: int) -> None:
    torch.set_num_threads(1)


def decoded_alone(pictures: Sequence[bytes], together: int) -> float:
    """What as many processes as there are cores decode together, without reading, captions or batches: so many, and
    then these are resized."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(CORES + 1)

    def decode() -> None:
        torch.set_num_threads(1)
        members = [Sample(str(number), {"jpg": data}) for number, data in enumerate(pictures)]
        dice = Random(1)
        ready.wait()
        room = torch.empty(BATCH, 3, DATA.images.side, DATA.images.side, dtype=torch.uint8)
        for first in range(0, SAMPLES // CORES, together):
            numbers = range(first, first + together)
            crops = [training_crop(members[number % MOTIFS], DATA.images, dice) for number in numbers]
            for number in numbers:
                room[number % BATCH] = crops.pop().resized()
        ready.wait()

    processes = [context.Process(target=decode) for _ in range(CORES)]
    for process in processes:
        process.start()
    ready.wait()
    started = time.perf_counter()
    ready.wait()
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    return SAMPLES / seconds
