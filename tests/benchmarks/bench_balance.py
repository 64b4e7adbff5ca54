"""How fast captions are matched against 500,000 concepts: `python -m tests.benchmarks.bench_balance`.

The list and the captions are made of words that are as frequent as in a language (Zipf's law): entries of one to three
words, captions of ten. The plain way, which looks for every entry in every caption, gets a few captions only.
"""

import random
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.store import Store
from stages.balance import BalanceConcepts
from stages.balance.matching import Matcher, read_concepts, spaced
from tests.benchmarks.figures import Figure
from tests.pools import InlineWork, write_node

ENTRIES, CAPTIONS, PLAIN = 500_000, 100_000, 20
WORDS, LENGTH = 60_000, 10
CAP = 20
GOAL_PER_S = 10_000
"""Of what img2dataset downloads, 1,350 a second on 16 cores, balancing must be a small part."""


def corpus() -> tuple[list[str], list[str]]:
    """Entries and captions."""
    dice, rng = random.Random(5), np.random.default_rng(5)
    words = np.array(["".join(dice.choices("etaoinshrdlucmfwyp", k=dice.randint(2, 9))) for _ in range(WORDS)])
    shares = 1 / np.arange(1, WORDS + 1)
    drawn = words[rng.choice(WORDS, p=shares / shares.sum(), size=5 * ENTRIES + CAPTIONS * LENGTH)]
    captions = [" ".join(row) for row in drawn[-CAPTIONS * LENGTH :].reshape(CAPTIONS, LENGTH)]
    lengths = rng.choice([1, 2, 3], p=[0.1, 0.4, 0.5], size=2 * ENTRIES)
    ends = np.cumsum(lengths)
    entries = dict.fromkeys(" ".join(drawn[end - size : end]) for end, size in zip(ends, lengths, strict=True))
    return list(entries)[:ENTRIES], captions


def plain(captions: list[str], entries: list[str]) -> list[list[int]]:
    """The loop that the automaton stands for."""
    keys = [spaced(entry) for entry in entries]
    return [[number for number, key in enumerate(keys) if key in text] for text in map(spaced, captions)]


def peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(root: str) -> list[Figure]:
    """In a process of its own, so that its peak of memory is its own."""
    entries, captions = corpus()
    path = Path(root) / "concepts.txt"
    path.write_text("\n".join(entries))
    before = peak()
    start = time.perf_counter()
    matcher = Matcher(read_concepts(str(path)))
    built = time.perf_counter() - start
    start = time.perf_counter()
    found = [matcher.of(caption) for caption in captions]
    seconds = time.perf_counter() - start
    note = f"{sum(map(len, found)) / CAPTIONS:.1f} entries a caption"
    start = time.perf_counter()
    expected = plain(captions[:PLAIN], entries)
    slow = PLAIN / (time.perf_counter() - start)
    if found[:PLAIN] != expected:
        raise AssertionError("the automaton and the plain loop differ")
    speed = CAPTIONS / seconds
    return [
        Figure(f"{len(entries):,} concepts: build the automaton", built, "s", note=f"{peak() - before:.0f} MiB"),
        Figure("match captions, one core", speed, "/s", at_least=GOAL_PER_S, note=note),
        Figure("match captions by the plain loop", slow, "/s", note=f"{speed / slow:,.0f} times slower, same matches"),
        whole(root, str(path), captions),
    ]


def whole(root: str, concepts: str, captions: list[str]) -> Figure:
    """Match, count, sum, draw: ten parts in one process."""
    parts = {}
    for number, rows in enumerate(np.array_split(np.arange(CAPTIONS), 10)):
        uids = [f"{row:032x}" for row in rows]
        texts = [captions[row] for row in rows]
        image = pa.table({"uid": uids, "status": ["success"] * len(uids)})
        parts[f"000-{number:05d}"] = {
            "image": image, "caption": pa.table({"uid": uids, "caption_id": uids, "caption": texts}),
        }  # fmt: skip
    store = Store(f"{root}/root")
    stage = BalanceConcepts(concepts=concepts, cap=CAP)
    work = InlineWork(store, "balance", stage, [write_node(store, "pool", parts)])
    start = time.perf_counter()
    records = stage.assemble(work)
    seconds = time.perf_counter() - start
    kept = sum(record.statuses["balanced"] for record in records)
    note = f"{kept:,} of {CAPTIONS:,} stay at a cap of {CAP:,}"
    return Figure("balance ten parts, tables included", CAPTIONS / seconds, "/s", note=note)


def measure() -> list[Figure]:
    alone = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    with tempfile.TemporaryDirectory(prefix="balance-") as root, alone:
        return alone.submit(measured, root).result()


def main() -> None:
    figures = measure()
    for figure in figures:
        sys.stdout.write(f"{figure.name:<48}{figure.shown:>10} {figure.unit:<4} {figure.goal:<8} {figure.note}\n")
    sys.exit(any(figure.holds is False for figure in figures))


if __name__ == "__main__":
    main()
