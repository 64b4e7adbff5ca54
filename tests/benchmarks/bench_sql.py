"""How long a question to a large run takes, from a cold process: `python -m tests.benchmarks.bench_sql [--parts 1000]`.

The run is synthetic: a pool, scores and a selection of 10,000 pairs a part, written once under `--root` and kept.
"""

import argparse
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.attempt import Attempt
from pipeline.records import Generation, Record, Run
from pipeline.stage import CAPTIONS, Task
from pipeline.store import Store

PAIRS = 10_000
GOAL_S = 5.0
STATUSES = np.array(["success", "http_404", "timeout", "not_an_image"])
RULES = np.array(["downloaded", "large", "aligned", None], dtype=object)
QUESTIONS = {
    "funnel of all pairs": "SELECT dropped_by, status, count(*), avg(clip_score) FROM samples GROUP BY ALL",
    "captions only": "SELECT dropped_by, avg(clip_score) FROM samples GROUP BY ALL",
    "one table": "SELECT status, count(*) FROM pool GROUP BY ALL",
    "drops": "FROM drops",
    "one uid of a node": "SELECT * FROM pool WHERE uid = (SELECT max(uid) FROM pool)",
    "best ten": "SELECT uid, url, clip_score FROM samples WHERE kept ORDER BY clip_score DESC LIMIT 10",
}
ASK = """
import sys, time
start = time.perf_counter()
from pipeline.catalog import Catalog
imported = time.perf_counter()
catalog = Catalog(sys.argv[1])
opened = time.perf_counter()
rows = catalog.sql(sys.argv[2]).num_rows
print(imported - start, opened - imported, time.perf_counter() - opened, rows)
"""


def hexes(rng: np.random.Generator, count: int) -> pa.Array:
    """128-bit keys, as hex."""
    digits = rng.bytes(16 * count).hex()
    return pa.array([digits[32 * row : 32 * row + 32] for row in range(count)])


def write_part(root: str, several: bool, part: int) -> list[Record]:
    """The records of one part of the three nodes. `several`: one image in a hundred has a second caption."""
    store, rng, name = Store(root), np.random.default_rng(part), f"000-{part:05d}"
    images = PAIRS - PAIRS // 100 if several else PAIRS
    of_pair = np.sort(np.concatenate([np.arange(images), np.arange(PAIRS - images) * 99]))
    uid = hexes(rng, images)
    pairs = {"uid": uid.take(pa.array(of_pair)), "caption_id": hexes(rng, PAIRS)}
    dropped_by = pa.array(rng.choice(RULES, PAIRS, p=[0.2, 0.3, 0.2, 0.3]), pa.string())
    image = {
        "uid": uid,
        "url": pa.array([f"https://host{row % 97}.example/{part}/{row}.jpg" for row in range(images)]),
        "status": pa.array(rng.choice(STATUSES, images, p=[0.8, 0.1, 0.05, 0.05])),
        "width": pa.array(rng.integers(50, 2000, images), pa.int32()),
        "height": pa.array(rng.integers(50, 2000, images), pa.int32()),
        "sha256": hexes(rng, images),
        "captions": pa.array(np.bincount(of_pair, minlength=images), pa.int32()),
    }
    captions = pa.array([f"a picture of thing {row} in place {part}" for row in range(PAIRS)])
    tables = {
        "pool": {"image": image, "caption": {**pairs, "caption": captions, "source": pa.array(["web"] * PAIRS)}},
        "scores": {"caption": {**pairs, "clip_score": pa.array(rng.random(PAIRS, dtype=np.float32))}},
        "kept": {"caption": {**pairs, "kept": dropped_by.is_null(), "dropped_by": dropped_by}},
    }
    records = []
    for node, kinds in tables.items():
        with Attempt(store, node, "parts", Task(name), name) as attempt:
            for kind, columns in kinds.items():
                fields = [CAPTIONS if c == CAPTIONS.name else pa.field(c, v.type) for c, v in columns.items()]
                attempt.write(kind, pa.table(list(columns.values()), schema=pa.schema(fields)))
            attempt.note(funnel=[{"rule": rule} for rule in RULES[:-1]] if node == "kept" else [])
            records.append(attempt.commit())
    return records


def build(root: Path, parts: int, several: bool) -> None:
    """Write the run, unless it is there."""
    store = Store(str(root))
    if next(store.runs(), None) is not None:
        return
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        records = list(processes.map(partial(write_part, str(root), several), range(parts), chunksize=8))
    above: dict[str, str] = {}
    for place, node in enumerate(("pool", "scores", "kept")):
        mine = tuple(found[place] for found in records)
        generation = Generation(node=node, number=0, key="", identity={}, inputs=dict(above), records=mine)
        above[node] = store.seal(generation).content_hash
    store.add_run(Run(id="", dag="bench", text="", generations=dict.fromkeys(above, 1)))


def ask(root: Path, question: str) -> tuple[float, float, float, int]:
    """Seconds to import, to open the catalogue and to answer, in a process of its own, and the rows of the answer."""
    command = [sys.executable, "-c", ASK, str(root), question]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(words[0]), float(words[1]), float(words[2]), int(words[3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=1000)
    parser.add_argument("--root", type=Path, default=Path("bench/sql"))
    arguments = parser.parse_args()
    slowest = 0.0
    for several in (False, True):
        root = arguments.root / f"{arguments.parts}-{'several' if several else 'one'}"
        build(root, arguments.parts, several)
        shape = "one image in 100 has two captions" if several else "every image has one caption"
        print(f"\n{arguments.parts * PAIRS:,} pairs in {arguments.parts:,} parts; {shape}")
        print(f"{'question':<22}{'import s':>10}{'open s':>10}{'answer s':>10}{'process s':>11}{'rows':>8}")
        for title, question in QUESTIONS.items():
            start = time.perf_counter()
            imported, opened, answered, rows = ask(root, question)
            whole = time.perf_counter() - start
            slowest = max(slowest, whole)
            print(f"{title:<22}{imported:>10.2f}{opened:>10.2f}{answered:>10.2f}{whole:>11.2f}{rows:>8}")
    print(f"\nthe slowest took {slowest:.1f} s; goal: under {GOAL_S:g} s for 10 million pairs")
    sys.exit(slowest >= GOAL_S)


if __name__ == "__main__":
    main()
