"""Near-duplicates of a million embeddings: recall against brute force, time, memory, and how both grow.

`python -m tests.benchmarks.bench_dedup --rows 10000 100000` measures those sizes alone; `make bench` all of them.
The pool is synthetic: clustered vectors of 512 numbers, every tenth with a planted near copy, hashes likewise.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from math import log10
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.attempt import Attempt
from pipeline.records import Record
from pipeline.stage import OBSERVED, PIXELS, Column, Task
from pipeline.store import Store
from stages.dedup import NearDuplicates
from stages.dedup.grouping import PICKED, members
from stages.dedup.uids import halves, texts
from stages.kit.neighbours import unit
from tests.benchmarks.figures import Figure
from tests.pools import InlineWork, seal_node

WIDTH = 512
PART = 10_000
PER_CLUSTER = 100
COSINE = 0.95
ASKED = 2_000
"""Vectors of which brute force finds all neighbours."""
EDGES = 10_000_000
SIZES = (10_000, 100_000, 1_000_000)
GOAL_RECALL, GOAL_EXPONENT, GOAL_GROUPS_S = 0.99, 1.3, 30.0
IMAGE = pa.schema(
    [
        ("uid", pa.string()),
        ("status", pa.string()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
        pa.field("offset", pa.int64(), metadata=OBSERVED),
        pa.field("nbytes", pa.int64(), metadata=OBSERVED),
        ("stored_sha256", pa.string()),
    ]
)


def uids_of(rng: np.random.Generator, count: int) -> pa.Array:
    return texts(*(rng.integers(0, 2**64, count, dtype=np.uint64) for _ in range(2)))


def vectors_of(part: int) -> npt.NDArray[np.float16]:
    """One part: clusters whose members are about 0.67 alike; every tenth vector is a copy of the one before it."""
    rng = np.random.default_rng([7, part])
    centres = np.repeat(rng.normal(size=(PART // PER_CLUSTER, WIDTH)), PER_CLUSTER, axis=0)
    vectors = unit((centres + 0.7 * rng.normal(size=(PART, WIDTH))).astype(np.float32))
    vectors[9::10] = vectors[8::10] + 0.25 * rng.normal(size=(PART // 10, WIDTH)).astype(np.float32) / WIDTH**0.5
    return np.asarray(rng.permutation(unit(vectors)), np.float16)


def write_part(root: str, part: int) -> tuple[Record, Record]:
    """The records of one part of `pool` and `scores`."""
    store, rng, name = Store(root), np.random.default_rng([8, part]), f"000-{part:05d}"
    uids = uids_of(rng, PART)
    shas = pa.array([rng.bytes(32).hex() for _ in range(PART)])
    codes = rng.integers(0, 2**64, PART, dtype=np.uint64)
    codes[9::10] = codes[8::10] ^ np.uint64(0b1001)
    offsets = pa.array(np.arange(PART))
    image = pa.table([uids, ["success"] * PART, shas, codes, offsets, offsets, shas], schema=IMAGE)
    flat = pa.array(vectors_of(part).ravel(), pa.float16())
    vectors = pa.FixedSizeListArray.from_arrays(flat, WIDTH)
    with Attempt(store, "pool", "parts", Task(name), f"pool-{name}") as attempt:
        attempt.write("image", image)
        attempt.write_bytes("tar", "tar", b"")
        pool = attempt.commit()
    with Attempt(store, "scores", "parts", Task(name), f"scores-{name}") as attempt:
        attempt.write("image", pa.table({"uid": uids, "image_embedding": vectors}))
        return pool, attempt.commit()


def processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


def find(root: str, rows: int) -> tuple[list[Record], InlineWork, float]:
    """Write the pool, then find the copies; the seconds that the latter took in one process."""
    store = Store(root)
    with processes(2) as pool:
        pairs = list(pool.map(partial(write_part, root), range(rows // PART)))
    inputs = [seal_node(store, node, [pair[place] for pair in pairs]) for place, node in enumerate(("pool", "scores"))]
    stage = NearDuplicates(cosine=COSINE, perceptual_bits=6, verify="none")
    work = InlineWork(store, "copies", stage, inputs)
    work.columns = [*work.columns, Column(PIXELS, "pool", "image", pa.null())]
    start = time.perf_counter()
    return stage.assemble(work), work, time.perf_counter() - start


def recall(root: str, rows: int, records: Sequence[Record]) -> tuple[float, int]:
    """The share of all pairs that brute force finds from some vectors, and how many these are."""
    store = Store(root)
    matrices = [vectors_of(part) for part in range(rows // PART)]
    uids = [uids_of(np.random.default_rng([8, part]), PART) for part in range(rows // PART)]
    leading = halves(pa.concat_arrays(uids))[0]
    edges = pa.concat_tables([store.read_table(record, "edge", ["uid_a", "uid_b", "cosine"]) for record in records])
    edges = edges.filter(edges.column("cosine").is_valid())
    found = set(zip(*(halves(edges.column(end))[0].tolist() for end in ("uid_a", "uid_b")), strict=True))
    asked = np.sort(np.random.default_rng(9).choice(rows, size=min(ASKED, rows), replace=False))
    every = unit(np.concatenate([matrices[row // PART][row % PART][None] for row in asked]).astype(np.float32))
    hits, total = 0, 0
    for part, matrix in enumerate(matrices):
        near = every @ unit(matrix.astype(np.float32)).T >= COSINE
        for row, column in zip(*np.nonzero(near), strict=True):
            one, other = int(leading[asked[row]]), int(leading[part * PART + column])
            if one != other:
                total += 1
                hits += (min(one, other), max(one, other)) in found
    return hits / max(1, total), total


def measured(root: str, rows: int) -> dict[str, float]:
    """Everything about one size, in a process of its own so that its peak of memory is its own."""
    records, work, seconds = find(root, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    share, total = recall(root, rows, records)
    return {
        "seconds": seconds,
        "peak": peak,
        "recall": share,
        "pairs": total,
        "cells": records[0].notes["cells"],
        "cut_off": records[0].notes["cut_off"],
        "tasks": len(work.done),
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


def measure(sizes: Sequence[int] = SIZES, edges: int = EDGES) -> list[Figure]:
    found: dict[int, dict[str, float]] = {}
    figures = []
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="dedup-") as root, processes(1) as alone:
            one = found[rows] = alone.submit(measured, root, rows).result()
        note = f"{one['cells']:.0f} cells, {one['tasks']:.0f} tasks, {one['cut_off']:.0f} rows cut off"
        figures += [
            Figure(f"{rows:,} x {WIDTH}: find all edges and groups", one["seconds"], "s", note=note),
            Figure(f"{rows:,}: peak memory of the process", one["peak"], "MiB"),
            Figure(f"{rows:,}: recall", one["recall"], "", at_least=GOAL_RECALL, note=f"of {one['pairs']:.0f} pairs"),
        ]
    for small, large in pairwise(sizes):
        exponent = log10(found[large]["seconds"] / found[small]["seconds"]) / log10(large / small)
        figures.append(Figure(f"exponent from {small:,} to {large:,}", exponent, "", at_most=GOAL_EXPONENT))
    with processes(1) as alone:
        seconds, groups = alone.submit(grouped, edges).result()
    name = f"groups from {edges:,} edges"
    figures.append(Figure(name, seconds, "s", at_most=GOAL_GROUPS_S, note=f"{groups:,} groups"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--edges", type=int, default=EDGES)
    arguments = parser.parse_args()
    figures = measure(arguments.rows, arguments.edges)
    for figure in figures:
        sys.stdout.write(f"{figure.name:<48}{figure.shown:>10} {figure.unit:<4} {figure.goal:<8} {figure.note}\n")
    sys.exit(any(figure.holds is False for figure in figures))


if __name__ == "__main__":
    main()
