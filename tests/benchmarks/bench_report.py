"""How long `sluice report` takes, and what it holds, on a run of ten million pairs: `make bench ARGS=report`.

The runs are synthetic: a pool with pictures, scores, groups of copies and a selection with the usual rules, written
once under bench/report and kept.
"""

from __future__ import annotations

import io
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.attempt import Attempt
from pipeline.records import Generation, Record, Run
from pipeline.rules import Rules
from pipeline.stage import CAPTIONS, Column, Task
from pipeline.store import Store
from tests.benchmarks.bench_sql import hexes
from tests.benchmarks.figures import Figure
from tests.benchmarks.peaks import peaks

PAIRS = 10_000
"""In a part."""
FEW, MANY = 100, 1000
"""Parts of the two runs."""
GOAL_S = 60.0
PICTURES = 16
"""Different ones in a part."""
STATUSES = np.array(["success", "http_404", "timeout", "not_an_image"])
RULES = [
    {"downloaded": "status = 'success'"},
    {"large": "least(width, height) >= 200"},
    {"slim": "greatest(width, height) <= 3 * least(width, height)"},
    {"worded": "words BETWEEN 3 AND 75"},
    {"aligned": "clip_score >= 0.28"},
    {"beautiful": "aesthetic > 4.5"},
]
ROOT = Path("bench/report")


def measure() -> list[Figure]:
    few, many = of_a_run(FEW), of_a_run(MANY)
    pairs = MANY * PAIRS
    return [
        Figure(f"a report of {pairs:,} pairs", many[0], "s", at_most=GOAL_S, note=f"{len(RULES)} rules, with pictures"),
        Figure(f"peak memory, {FEW * PAIRS:,} pairs", few[1], "MiB"),
        Figure(f"peak memory, {pairs:,} pairs", many[1], "MiB", at_most=3000),
        Figure("its growth with ten times the pairs", many[1] / few[1], "×"),
        Figure("the page", many[2], "MB", at_most=10),
    ]


def of_a_run(parts: int) -> tuple[float, float, float]:
    """(seconds, MiB, MB of the page) of a report, in a process of its own."""
    root = ROOT / f"{parts}"
    build(root, parts)
    page = ROOT / f"{parts}.html"
    command = [sys.executable, "-m", "pipeline.cli", "report", str(root), "--out", str(page)]
    start = time.perf_counter()
    memory = peaks(command, lambda pid, name: "report" if "pipeline.cli" in name else None, ROOT / "said")["report"]
    return time.perf_counter() - start, memory, page.stat().st_size / 1e6


def build(root: Path, parts: int) -> None:
    """Write the run, unless it is there."""
    store = Store(str(root))
    if next(store.runs(), None) is not None:
        return
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        records = list(processes.map(partial(write_part, str(root)), range(parts), chunksize=8))
    above: dict[str, str] = {}
    for place, node in enumerate(("pool", "scores", "copies", "kept")):
        parameters = {"rules": RULES} if node == "kept" else {}
        generation = Generation(
            node=node,
            number=0,
            key="",
            identity={"steps": [{"stage": f"bench.{node}", "revision": 1, "parameters": parameters}]},
            inputs=dict(above),
            records=tuple(found[place] for found in records),
        )
        above[node] = store.seal(generation).content_hash
    store.add_run(Run(id="", dag="bench", text="", generations=dict.fromkeys(above, 1)))


def write_part(root: str, part: int) -> list[Record]:
    """The records of one part of the four nodes."""
    store, rng, name = Store(root), np.random.default_rng(part), f"000-{part:05d}"
    uid, tar = hexes(rng, PAIRS), [jpeg(rng) for _ in range(PICTURES)]
    starts, shas = np.cumsum([0, *map(len, tar)]), [sha256(data).hexdigest() for data in tar]
    status = rng.choice(STATUSES, PAIRS, p=[0.8, 0.1, 0.05, 0.05])
    gone, which = status != "success", rng.integers(0, PICTURES, PAIRS)
    image = {
        "uid": uid,
        "url": pa.array([f"https://host{row % 997}.example/{part}/{row}.jpg?x={row}" for row in range(PAIRS)]),
        "status": pa.array(status),
        "sha256": pa.array(hexes(rng, PAIRS), mask=gone),
        "width": pa.array(rng.gamma(4, 120, PAIRS).astype(np.int32) + 16, mask=gone),
        "height": pa.array(rng.gamma(4, 100, PAIRS).astype(np.int32) + 16, mask=gone),
        "offset": pa.array(starts[which], pa.int64(), mask=gone),
        "nbytes": pa.array([len(tar[one]) for one in which], pa.int64(), mask=gone),
        "stored_sha256": pa.array([shas[one] for one in which], mask=gone),
        "captions": pa.array(np.ones(PAIRS), pa.int32()),
    }
    pairs = {"uid": uid, "caption_id": hexes(rng, PAIRS)}
    captions = pa.array([f"a picture of thing {row} in place {part}" for row in range(PAIRS)])
    scores = {
        "clip_score": pa.array(rng.normal(0.26, 0.06, PAIRS).astype(np.float32), mask=gone),
        "aesthetic": pa.array(rng.normal(5, 0.8, PAIRS).astype(np.float32), mask=gone),
        "words": pa.array(rng.geometric(0.1, PAIRS), pa.int32()),
    }
    copy = rng.random(PAIRS) < 0.2
    groups = {
        "uid": uid,
        "duplicate_group": pa.array(np.where(copy, np.asarray(uid)[np.arange(PAIRS) // 5 * 5], np.asarray(uid))),
        "similarity": pa.array(rng.uniform(0.9, 1, PAIRS).astype(np.float32), mask=~copy),
    }
    judged = {f"pool.{c}": image[c] for c in ("status", "width", "height")}
    judged |= {f"scores.{c}": values for c, values in scores.items()}
    columns = [Column(c.partition(".")[2], c.partition(".")[0], "caption", v.type) for c, v in judged.items()]
    dropped_by = Rules(RULES).bind(columns).judge(pa.table({**pairs, **judged}))
    tables = {
        "pool": {"image": image, "caption": {**pairs, "caption": captions}},
        "scores": {"caption": {**pairs, **scores}},
        "copies": {"image": groups},
        "kept": {"caption": {**pairs, "kept": dropped_by.is_null(), "dropped_by": dropped_by}},
    }
    records = []
    for node, kinds in tables.items():
        with Attempt(store, node, "parts", Task(name), name) as attempt:
            for kind, found in kinds.items():
                fields = [CAPTIONS if c == CAPTIONS.name else pa.field(c, v.type) for c, v in found.items()]
                attempt.write(kind, pa.table(list(found.values()), schema=pa.schema(fields)))
            if node == "pool":
                attempt.write_bytes("tar", "tar", b"".join(tar))
            attempt.note(funnel=Rules(RULES).funnel(dropped_by) if node == "kept" else [], seconds=1.0)
            attempt.count({"ok": PAIRS})
            records.append(attempt.commit())
    return records


def jpeg(rng: np.random.Generator) -> bytes:
    """A picture of 256 × 192 pixels: soft noise."""
    small = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(small).resize((256, 192), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=80)
    return sink.getvalue()
