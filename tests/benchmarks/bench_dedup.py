"""Copies among a million embeddings through the engine: recall against brute force, time, memory, and how they grow.

`python -m tests.benchmarks.bench_dedup --rows 10000 100000` measures those sizes alone; `make bench` all of them.
The pool is synthetic: clustered vectors of 512 numbers, every tenth with a planted near copy, hashes likewise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import log10
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import Dag, run
from pipeline.attempt import Attempt
from pipeline.records import ABOUT, Generation, Record
from pipeline.stage import Column, Device, Promise, TableStage, Task, Work
from pipeline.store import Store
from stages.dedup.grouping import PICKED, members
from stages.dedup.uids import halves, texts
from stages.index.lookup import nearest
from stages.kit.neighbours import cosine_pairs, unit
from stages.kit.vectors import vector_type, vectors
from tests.benchmarks.bench_engine import crew, timed
from tests.benchmarks.figures import Figure
from tests.benchmarks.peaks import peaks
from tests.stages.dedup.pools import SCHEMA

WIDTH = 512
PART = 10_000
PER_CLUSTER = 100
COSINE = 0.95
ASKED, QUERIES = 2_000, 100
"""Vectors of which brute force finds all neighbours, and how many of them are asked for in the index."""
EDGES = 10_000_000
ON_A_GPU = 100_000
SIZES = (10_000, 100_000, 1_000_000)
GOAL_RECALL, GOAL_EXPONENT, GOAL_GROUPS_S = 0.99, 1.3, 30.0
TEXT = f"""
dag: copies
nodes:
  warm: {{steps: [{{tests.toys.Numbers: {{rows: 4}}}}]}}
  pool: {{steps: [{{tests.benchmarks.bench_dedup.Images: {{rows: ROWS}}}}]}}
  scores: {{from: pool, steps: [tests.benchmarks.bench_dedup.Embeddings]}}
  copies:
    from: [pool, scores]
    steps: [{{stages.dedup.NearDuplicates: {{cosine: {COSINE}, perceptual_bits: 6, verify: none}}}}]
  groups: {{from: [pool, copies], steps: [{{stages.dedup.Groups: {{cosine: 0.97}}}}]}}
  index: {{from: scores, steps: [stages.index.EmbeddingIndex]}}
"""


class Images(TableStage):
    """A pool of images that nobody looks at; every tenth has a hash near that of the one before it."""

    promise: ClassVar[Promise] = "pure"
    pixels: ClassVar[bool] = True

    rows: int

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        return {"image": SCHEMA}

    def assemble(self, work: Work) -> list[Record]:
        tasks = [Task(f"000-{part:05d}", {"part": part}, rows=PART) for part in range(self.rows // PART)]
        return work.map("write", tasks, self.write)

    def write(self, task: Task, attempt: Attempt) -> None:
        rng = np.random.default_rng([8, task.payload["part"]])
        uids = uids_of(rng)
        shas = pa.array([rng.bytes(32).hex() for _ in range(PART)])
        codes = rng.integers(0, 2**64, PART, dtype=np.uint64)
        codes[9::10] = codes[8::10] ^ np.uint64(0b1001)
        offsets = pa.array(np.arange(PART))
        attempt.write("image", pa.table([uids, ["success"] * PART, shas, codes, offsets, offsets, shas], schema=SCHEMA))
        attempt.write_bytes("tar", "tar", b"")
        attempt.count({"success": PART})


class Embeddings(TableStage):
    """The embeddings of a pool of `Images`."""

    promise: ClassVar[Promise] = "pure"

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        return {"image": pa.schema([("uid", pa.string()), ("image_embedding", vector_type(WIDTH))])}

    def assemble(self, work: Work) -> list[Record]:
        (pool,) = work.inputs.values()
        tasks = [
            Task(record.part, {"part": part}, {"pool": (record,)}, rows=PART)
            for part, record in enumerate(pool.records)
        ]
        return work.map("write", tasks, self.write)

    def write(self, task: Task, attempt: Attempt) -> None:
        listed = vectors(vectors_of(task.payload["part"]).astype(np.float32), np.ones(PART, bool))
        uids = uids_of(np.random.default_rng([8, task.payload["part"]]))
        attempt.write("image", pa.table({"uid": uids, "image_embedding": listed}))
        attempt.count({"ok": PART})


def uids_of(rng: np.random.Generator) -> pa.Array:
    return texts(*(rng.integers(0, 2**64, PART, dtype=np.uint64) for _ in range(2)))


def vectors_of(part: int) -> npt.NDArray[np.float16]:
    """One part: clusters whose members are about 0.67 alike; every tenth vector is a copy of the one before it."""
    rng = np.random.default_rng([7, part])
    centres = np.repeat(rng.normal(size=(PART // PER_CLUSTER, WIDTH)), PER_CLUSTER, axis=0)
    rows_nd = unit((centres + 0.7 * rng.normal(size=(PART, WIDTH))).astype(np.float32))
    rows_nd[9::10] = rows_nd[8::10] + 0.25 * rng.normal(size=(PART // 10, WIDTH)).astype(np.float32) / WIDTH**0.5
    return np.asarray(rng.permutation(unit(rows_nd)), np.float16)


def parts_of(rows: int) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32]]]:
    """Uids (their first halves) and vectors, one part after the other."""
    for part in range(rows // PART):
        uids = halves(uids_of(np.random.default_rng([8, part])))[0]
        yield uids, unit(vectors_of(part).astype(np.float32))


class Brute:
    """Some vectors compared with all others."""

    def __init__(self, rows: int) -> None:
        asked = np.sort(np.random.default_rng(9).choice(rows, size=ASKED, replace=False))
        chosen = [
            (uids[mine], all_nd[mine]) for (uids, all_nd), mine in zip(parts_of(rows), _by_part(asked), strict=False)
        ]
        self.uids = np.concatenate([uids for uids, _ in chosen])
        self.queries_nd = np.concatenate([vectors_nd for _, vectors_nd in chosen])
        self.pairs: set[tuple[int, int]] = set()
        best = np.full((QUERIES, 10), -2, np.float32)
        for uids, all_nd in parts_of(rows):
            cosines = self.queries_nd @ all_nd.T
            for row, column in zip(*np.nonzero(cosines >= COSINE), strict=True):
                one, other = int(self.uids[row]), int(uids[column])
                if one != other:
                    self.pairs.add((min(one, other), max(one, other)))
            best = -np.sort(-np.concatenate([best, cosines[:QUERIES]], axis=1), axis=1)[:, :10]
        self.tenth = best[:, -1]
        """The cosine of the tenth nearest of each of the first queries."""


def _by_part(rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    for part in range(int(rows.max()) // PART + 1):
        yield rows[rows // PART == part] - part * PART


def recall(store: Store, copies: Generation, brute: Brute) -> float:
    """The share of the pairs of brute force that have an edge."""
    found: set[tuple[int, int]] = set()
    for record in copies.records:
        edges = store.read_table(record, "edge", ["uid_a", "uid_b", "cosine"])
        edges = edges.filter(edges.column("cosine").is_valid())
        found |= (
            set(zip(*(halves(edges.column(end))[0].tolist() for end in ("uid_a", "uid_b")), strict=True)) & brute.pairs
        )
    return len(found) / len(brute.pairs)


def searched(store: Store, index: Generation, brute: Brute) -> tuple[float, float]:
    """Of the ten nearest, the share that the index finds; and the seconds that a query takes."""
    hits = 0
    start = time.perf_counter()
    for query_d, tenth in zip(brute.queries_nd, brute.tenth, strict=False):
        hits += sum(one.cosine >= tenth - 1e-3 for one in nearest(store, index, query_d, 10))
    return hits / (10 * QUERIES), (time.perf_counter() - start) / QUERIES


def inside(text: Path, root: str) -> None:
    """The nodes one after the other on warm workers; prints their seconds."""
    dag = Dag.load(text)
    seconds = {}
    with crew(Path(root)) as workers:
        run(dag, root, until="warm", executor=workers)
        for node in ("copies", "groups", "index"):
            seconds[node] = timed(lambda node=node: run(dag, root, until=node, executor=workers))  # type: ignore[misc]
    sys.stdout.write(json.dumps(seconds) + "\n")


def role(pid: int, command: str) -> str | None:
    if command.startswith("ray::Worker"):
        return "worker"
    return "driver" if "bench_dedup" in command else None


def measured(folder: Path, rows: int) -> dict[str, Any]:
    """Everything about one size."""
    text, root = folder / "copies.yaml", str(folder / "root")
    text.write_text(TEXT.replace("ROWS", str(rows)))
    write = [sys.executable, "-m", "pipeline.cli", "run", str(text), root, "--until", "scores"]
    subprocess.run(write, check=True, stdout=subprocess.DEVNULL)
    module = [sys.executable, "-m", "tests.benchmarks.bench_dedup"]
    memory = peaks([*module, "--inside", str(text), root], role, folder / "said")
    found = json.loads((folder / "said").read_text().splitlines()[-1])
    store, brute = Store(root), Brute(rows)
    copies, index = (store.newest(node) for node in ("copies", "index"))
    assert copies is not None
    assert index is not None
    share, query = searched(store, index, brute)
    phases: dict[str, float] = defaultdict(float)
    for record in store.records("copies", sorted(store.committed("copies"))):
        assert record is not None
        phases[record.phase] += record.notes["seconds"]
    return {
        **{f"{node}_s": seconds for node, seconds in found.items()},
        **copies.records[0].notes[ABOUT],
        **memory,
        "recall": recall(store, copies, brute),
        "pairs": len(brute.pairs),
        "searched": share,
        "query": query,
        "phases": ", ".join(f"{name} {s:.1f}" for name, s in sorted(phases.items(), key=lambda item: -item[1])[:5]),
    }


def grouped(edges: int) -> tuple[float, int]:
    """Seconds from edges to groups, with four edges an image as among copies, and how many groups they make."""
    rng = np.random.default_rng(10)
    images = edges // 2
    leading, trailing = (rng.integers(0, 2**64, images, dtype=np.uint64) for _ in range(2))
    first = rng.integers(0, images, edges)
    second = (first + rng.integers(1, 6, edges)) % images
    columns = [leading[first], trailing[first], leading[second], trailing[second], first % 100, second % 100]
    picked = pa.table([*(pa.array(c) for c in columns), rng.random(edges, np.float32)], schema=PICKED)
    start = time.perf_counter()
    _, groups, _, _ = members(picked)
    return time.perf_counter() - start, len(np.unique(groups[0]))


def measure() -> list[Figure]:
    return list(figures(SIZES))


def figures(sizes: Sequence[int]) -> Iterator[Figure]:
    """Of each size, how they grow, and groups by themselves; as they are measured."""
    yield groups_of(EDGES)
    yield on_a_gpu(ON_A_GPU)
    found: dict[int, dict[str, Any]] = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="dedup-") as folder:
            one = found[rows] = measured(Path(folder), rows)
        cells = f"{one['cells']:,} cells, the largest about {one['largest_cell']:,}; {one['cut_off']:,} rows cut off"
        yield Figure(
            f"{rows:,}: all edges and groups", one["copies_s"], "s", note=f"{cells}; seconds of tasks: {one['phases']}"
        )
        yield Figure(
            f"{rows:,}: recall",
            one["recall"],
            "",
            at_least=GOAL_RECALL,
            note=f"of {one['pairs']:,} pairs by brute force",
        )
        yield Figure(f"{rows:,}: largest worker", one["worker"], "MiB")
        yield Figure(f"{rows:,}: driver", one["driver"], "MiB")
        yield Figure(f"{rows:,}: groups by a tighter threshold", one["groups_s"], "s")
        yield Figure(f"{rows:,}: the index written", one["index_s"], "s")
        query = f"{1000 * one['query']:.0f} ms a query"
        yield Figure(f"{rows:,}: the ten nearest that the index finds", one["searched"], "", note=query)
    for small, large in pairwise(sizes):
        exponent = log10(found[large]["copies_s"] / found[small]["copies_s"]) / log10(large / small)
        yield Figure(f"exponent from {small:,} to {large:,}", exponent, "", at_most=GOAL_EXPONENT)


def on_a_gpu(rows: int) -> Figure:
    """One task of the search, on the GPU that FAISS sees first."""
    import faiss

    name = f"{rows:,} x {WIDTH}: all pairs, on a GPU"
    if not getattr(faiss, "get_num_gpus", int)():
        return Figure(name, None, "s", note=f"FAISS {faiss.__version__} sees no GPU here")
    vectors_nd = np.concatenate([all_nd for _, all_nd in parts_of(rows)])
    seconds = timed(lambda: cosine_pairs(vectors_nd, COSINE, 64, device=Device("cuda")))
    return Figure(name, seconds, "s", note="with the time to load CUDA")


def groups_of(edges: int) -> Figure:
    """In a process of its own, whose peak of memory is its own."""
    with tempfile.TemporaryDirectory(prefix="dedup-") as folder:
        said = Path(folder) / "said"
        memory = peaks([sys.executable, "-m", "tests.benchmarks.bench_dedup", "--edges", str(edges)], role, said)
        seconds, groups = json.loads(said.read_text().splitlines()[-1])
    note = f"{groups:,} groups; the process has {memory['driver']:,.0f} MiB at most, the edges among them"
    return Figure(f"groups from {edges:,} edges, one process", seconds, "s", at_most=GOAL_GROUPS_S, note=note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--edges", type=int, help="Only groups, of so many edges.")
    parser.add_argument("--inside", nargs=2, metavar=("DAG", "ROOT"), help="Only the measured nodes of a pool.")
    arguments = parser.parse_args()
    if arguments.inside:
        inside(Path(arguments.inside[0]), arguments.inside[1])
    elif arguments.edges:
        sys.stdout.write(json.dumps(grouped(arguments.edges)) + "\n")
    else:
        for figure in figures(arguments.rows):
            sys.stdout.write(f"{figure.name:<48}{figure.shown:>10} {figure.unit:<4} {figure.goal:<8} {figure.note}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
