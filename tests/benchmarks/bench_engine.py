"""What the engine adds to the work itself: per part, per image, and where there is nothing left to do."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import Dag, run
from pipeline.crew import Crew
from pipeline.records import Record
from pipeline.rows import RowBatch, cut, decode
from pipeline.stage import Device
from pipeline.store import Store
from stages.image_quality import ImageQuality
from tests.benchmarks.figures import Figure

PARTS = 1000
PICTURES, PICTURE_PARTS, BATCH_ROWS = 2000, 4, 250
TURNS, REPEATS = 15, 7
NOTHING = pa.table({})
RAYS_NICENESS = 15
"""Ray's workers step back behind other work on the machine by so much; so must what they are compared with."""
NO_OP = f"""
dag: no_op
nodes:
  urls: {{steps: [{{tests.toys.Numbers: {{rows: {10 * PARTS}, parts: {PARTS}}}}}]}}
  no_op: {{from: urls, steps: [tests.toys.Times]}}
"""
MEASURES = f"""
dag: measures
nodes:
  urls: {{steps: [{{tests.toys.Numbers: {{rows: {PICTURES}, parts: {PICTURE_PARTS}}}}}]}}
  pool: {{from: urls, steps: [tests.benchmarks.pictures.Pictures]}}
  measures: {{from: pool, workers: {{batch_rows: {BATCH_ROWS}}}, steps: [stages.image_quality.ImageQuality]}}
"""


def measure() -> list[Figure]:
    folder = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    try:
        with crew(folder / "no_op") as workers:
            no_op = part_through_a_no_op_stage(folder / "no_op", workers)
        with crew(folder / "measures") as workers:
            ratio = engine_against_a_plain_loop(folder / "measures", workers)
        return [no_op, ratio, *rerun_of_a_finished_dag(folder)]
    finally:
        shutil.rmtree(folder)


@contextmanager
def crew(root: Path) -> Iterator[Crew]:
    workers = Crew(Store(str(root)), None, lambda *_: None)
    try:
        yield workers
    finally:
        workers.stop()


def part_through_a_no_op_stage(root: Path, workers: Crew) -> Figure:
    """From the plan to the seal; the node before has warmed the workers."""
    dag = Dag.parse(NO_OP)
    run(dag, str(root), until="urls", executor=workers)
    seconds = timed(lambda: run(dag, str(root), executor=workers))
    note = f"{PARTS:,} parts of 10 rows: plan, read, write, fsync, commit, seal; by default a part has 10,000"
    return Figure("a part through a stage that does nothing", 1000 * seconds / PARTS, "ms", at_most=20, note=note)


def engine_against_a_plain_loop(root: Path, workers: Crew) -> Figure:
    """The same images through the same function, in turns: as a node, and in bare processes, one a core."""
    dag = Dag.parse(MEASURES)
    pool = run(dag, str(root), until="pool", executor=workers).generations["pool"]
    store = Store(str(root))
    shares = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn, os.nice, (RAYS_NICENESS,)) as processes:

        def plain() -> int:
            return sum(processes.map(plain_loop, [store] * PICTURE_PARTS, pool.records))

        def node() -> int:
            shutil.rmtree(root / "measures", ignore_errors=True)
            return sum(run(dag, str(root), executor=workers).generations["measures"].statuses.values())

        assert plain() == node() == PICTURES  # and both are warm
        for turn in range(TURNS):
            seconds = {work: timed(work) for work in ((plain, node), (node, plain))[turn % 2]}
            shares.append((seconds[plain] / seconds[node], seconds[plain], seconds[node]))
    share, bare, engine = statistics.median_low(shares)
    note = (
        f"{PICTURES:,} JPEGs of 256 px decoded and measured: {engine:.1f} s as a node, {bare:.1f} s in bare processes"
    )
    return Figure("throughput of a bare loop that a node reaches", 100 * share, "%", at_least=95, note=note)


def plain_loop(store: Store, record: Record) -> int:
    """What one would write without an engine: nothing is checked, nothing is kept."""
    table, tar = store.read_table(record, "image"), record.file("tar")
    assert tar is not None
    data = memoryview(store.get(store.place(record, tar)))
    members = [
        data[at : at + size]
        for at, size in zip(*(table[name].to_pylist() for name in ("offset", "nbytes")), strict=True)
    ]
    function = ImageQuality().open(Device())
    batches = cut(np.arange(len(members)), BATCH_ROWS)
    return sum(function(RowBatch(NOTHING, [decode(members[row]) for row in rows])).num_rows for rows in batches)


def rerun_of_a_finished_dag(folder: Path) -> list[Figure]:
    """A cold `sluice run` of the 1,000 parts: no Ray, no write."""
    text = folder / "no_op.yaml"
    text.write_text(NO_OP)
    arguments = ["run", str(text), str(folder / "no_op")]
    before = files(folder / "no_op")
    seconds = [timed(lambda: sluice("-m", "pipeline.cli", *arguments)) for _ in range(REPEATS)]
    said = sluice("-c", SAYS_WHAT_IT_IMPORTED, *arguments)
    written = sum(1 for path, state in files(folder / "no_op").items() if before.get(path) != state)
    return [
        Figure(
            "rerun of a finished DAG, cold process", statistics.median(seconds), "s", at_most=3, note=f"{PARTS:,} parts"
        ),
        Figure("files that this rerun wrote or touched", written, "files", at_most=0, note=f"of {len(before):,}"),
        Figure("packages of Ray that it loaded", float(said.split()[-1]), "", at_most=0),
    ]


SAYS_WHAT_IT_IMPORTED = """
import sys
from pipeline.cli import main
main(standalone_mode=False)
print(sum(name == "ray" for name in sys.modules))
"""


def sluice(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


def files(root: Path) -> dict[str, tuple[int, int]]:
    """Time stamp and size of everything, folders included."""
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [root, *root.rglob("*")]}


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
