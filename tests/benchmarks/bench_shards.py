"""Writing samples into tars: against webdataset's ShardWriter, and against copying the same bytes.

A sample is a JPEG of 256 px (20 KB), a JSON and a caption; all three write the same samples to the same disk, in turns.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.download.archive import SampleWriter
from stages.kit.tar import TarWriter
from tests.benchmarks.figures import Figure
from tests.benchmarks.pictures import jpeg

SAMPLES, TURNS = 20_000, 5
MOTIFS = 64
Sample = tuple[str, bytes, str, dict[str, Any]]


def measure() -> list[Figure]:
    folder = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    pictures = [jpeg(256, seed) for seed in range(MOTIFS)]
    samples = [sample(number, pictures[number % MOTIFS]) for number in range(SAMPLES)]
    writers: dict[str, Callable[[Path], None]] = {
        "pool": lambda path: into_a_pool(samples, path),
        "shard": lambda path: into_a_shard(samples, path),
        "webdataset": lambda path: by_webdataset(samples, path),
        "cp": lambda path: copied(folder / "source.tar", path),
    }
    try:
        into_a_pool(samples, folder / "source.tar")
        seconds: dict[str, list[float]] = {name: [] for name in writers}
        for _ in range(TURNS):
            for name, write in writers.items():
                target = folder / name
                started = time.perf_counter()
                write(target)
                seconds[name].append(time.perf_counter() - started)
                shutil.rmtree(target) if target.is_dir() else target.unlink()
    finally:
        shutil.rmtree(folder)
    rate = {name: SAMPLES / statistics.median(times) for name, times in seconds.items()}
    note = f"{rate['webdataset']:,.0f} by ShardWriter; {SAMPLES:,} samples of {len(pictures[0]) / 1000:.0f} KB"
    return [
        Figure("samples/s into a pool's tar", rate["pool"], "1/s"),
        Figure("samples/s into a final shard", rate["shard"], "1/s"),
        Figure("pool's tar against ShardWriter", rate["pool"] / rate["webdataset"], "×", at_least=3, note=note),
        Figure("final shard against ShardWriter", rate["shard"] / rate["webdataset"], "×", at_least=3, note=note),
        Figure("pool's tar as a share of `cp`", 100 * rate["pool"] / rate["cp"], "%", note="of the same bytes"),
        Figure("final shard as a share of `cp`", 100 * rate["shard"] / rate["cp"], "%", note="of the same bytes"),
    ]


def sample(number: int, picture: bytes) -> Sample:
    """Key, image, caption and what a pool's JSON says."""
    key, caption = f"{number:032x}", f"a picture of noise and gradients, the {number}th of many"
    facts = {
        "uid": key, "url": f"https://images.example.org/{number % 97}/{number}.jpg", "caption": caption, "key": key,
        "status": "success", "error_message": None, "width": 256, "height": 256, "original_width": 1200,
        "original_height": 1200, "exif": None, "sha256": f"{number:064x}",
    }  # fmt: skip
    return key, picture, caption, facts


def into_a_pool(samples: list[Sample], path: Path) -> None:
    with path.open("wb") as stream:
        writer = SampleWriter(stream)
        for key, picture, caption, facts in samples:
            writer.write(key, picture, "jpg", caption, facts)
        writer.finish()


def into_a_shard(samples: list[Sample], path: Path) -> None:
    """As `stages.shard.WebDataset` has it: the JSON came as text from the phase before."""
    texts = [str(facts) for *_, facts in samples[:MOTIFS]]
    with path.open("wb") as stream:
        writer = TarWriter(stream)
        for number, (key, picture, caption, _) in enumerate(samples):
            text = texts[number % MOTIFS]
            writer.add([(f"{key}.jpg", picture), (f"{key}.txt", caption.encode()), (f"{key}.json", text.encode())])
        writer.finish()


def by_webdataset(samples: list[Sample], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset

        folder.mkdir()
        with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=SAMPLES, maxsize=1e12, verbose=0) as writer:
            for key, picture, caption, facts in samples:
                writer.write({"__key__": key, "jpg": picture, "txt": caption, "json": facts})


def copied(source: Path, path: Path) -> None:
    subprocess.run(["cp", str(source), str(path)], check=True)
