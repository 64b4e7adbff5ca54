"""What the chaos tests share: a tiny DAG, runs of it in this process, and what must hold after any of them."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec

import pipeline.store
from pipeline import Dag, run, upkeep
from pipeline.dag import Node
from pipeline.driver import Result
from pipeline.node import NodeFailed
from pipeline.records import Generation, Record
from pipeline.runs import generations_of, run_of
from pipeline.store import Store
from pipeline.worker import Call, Fault, work
from tests.chaos.faulty import FAULTS, Control, Faulty, FaultyS3, Plan

TINY = """
dag: tiny
nodes:
  numbers: {{steps: [{{tests.toys.Numbers: {{rows: 24, parts: 2, captions: 2}}}}]}}
  pool: {{from: numbers, steps: [{{tests.toys.Fetch: {{fails: 5, answers: "{folder}/answers"}}}}]}}
  scores: {{from: pool, steps: [{{tests.toys.Times: {{}}}}, {{tests.toys.Label: {{}}}}]}}
  listed: {{from: [pool, scores], steps: [{{tests.toys.Listed: {{numbers: "{folder}/listed.txt"}}}}]}}
  shards: {{from: scores, steps: [{{tests.chaos.stages.Bundle: {{}}}}]}}
"""
"""Every way to write: tables, a tar, a shipped resource, files under final names."""

TRIES = 3
NODES = ["numbers", "pool", "scores", "listed", "shards"]


def tiny(folder: Path, *overrides: str) -> Dag:
    """The DAG, with the file of numbers that it names."""
    listed = folder / "listed.txt"
    if not listed.exists():
        listed.write_text("3\n5\n8\n")
    return Dag.parse(TINY.format(folder=folder), overrides)


def register() -> None:
    """Make the faulty stores known to this process."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    fsspec.register_implementation("faultys3", FaultyS3, clobber=True)


class Patient:
    """An `Executor` in this process that tries again where the crew would; `calls` lists the parts done, by node."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.calls: dict[str, list[str]] = {}

    def run(self, node: Node, calls: Sequence[Call], total_rows: int, done_rows: int) -> list[Record]:
        return [self._one(call) for call in calls]

    def _one(self, call: Call) -> Record:
        self.calls.setdefault(call.node, []).append(call.task.part)
        for _ in range(TRIES):
            outcome = work(self.store, call)
            if isinstance(outcome, Record):
                return outcome
            assert isinstance(outcome, Fault)
            error = NodeFailed(f"{call.node}: {outcome.error}")
            if outcome.kind != "store":
                break
        raise error


def inline(dag: Dag, root: str, **options: Any) -> Result:
    """A run in this process."""
    return run(dag, root, executor=Patient(Store(root)), **options)


@dataclass(frozen=True)
class Case:
    """A folder with the DAG, the plan of faults and a root; and the content hashes of an undisturbed run."""

    folder: Path
    calm: dict[str, str]

    @property
    def control(self) -> Control:
        return Control(self.folder / "faults")

    @property
    def dag(self) -> Dag:
        return tiny(self.folder)

    def operations(self, protocol: str, match: str = "") -> list[str]:
        """The operations of an undisturbed run that match."""
        self.control.arm(Plan("none", match=match))
        inline(self.dag, f"{protocol}://{self.folder}/undisturbed")
        return self.control.operations()

    def converges(self, root: str) -> None:
        """C, and nothing doubled: without faults the same command comes to the same hashes, in one generation each."""
        self.control.arm(Plan("none"))
        inline(self.dag, root)
        assert hashes(root) == self.calm
        check(root)
        for node in NODES:
            assert local(root).generation_numbers(node) == [1]


# -- a driver that may be killed ---------------------------------------------------------------------------------------


@contextmanager
def beside(case: Case, root: str, retry: Sequence[str] = ()) -> Iterator[ForkServerProcess]:
    """A run in a process of its own, dead afterwards."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chaos.drive"])
    child = context.Process(target=_run_here, args=(case, root, retry))
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()
        child.close()


def run_and_die(case: Case, root: str, retry: Sequence[str] = ()) -> int | None:
    """The exit code of a run in a process of its own, negative where a signal ended it."""
    with beside(case, root, retry) as child:
        child.join(60)
        return child.exitcode


def _run_here(case: Case, root: str, retry: Sequence[str]) -> None:
    os.environ[FAULTS] = str(case.control.folder)
    os.fsync = lambda _: None  # type: ignore[assignment]  # a killed process loses nothing that it wrote
    vars(pipeline.store)["time"] = SimpleNamespace(sleep=lambda _: None)
    register()
    inline(case.dag, root, retry=retry)


# -- what must hold ----------------------------------------------------------------------------------------------------


def local(root: str | Path) -> Store:
    """The same root without faults."""
    return Store("/" + str(root).partition("://")[2].lstrip("/") if "://" in str(root) else str(root))


def generations(root: str | Path) -> dict[str, Generation]:
    """What the newest run left."""
    store = local(root)
    return generations_of(store, run_of(store))


def hashes(root: str | Path) -> dict[str, str]:
    return {name: generation.content_hash for name, generation in generations(root).items()}


def check(root: str | Path, rotten: bool = False) -> None:
    """A, L, D, P: one status per row, nothing lost, nothing twice, every file what its record says.

    `rotten`: what an older generation names may be damaged.
    """
    store = local(root)
    assert upkeep.verify(store) == []
    if not rotten:
        whole(root)
    uids: dict[str, list[str]] = {}
    for name, generation in generations(root).items():
        parts = Counter(record.part for record in generation.records)
        assert max(parts.values()) == 1, f"{name} holds a part twice: {parts}"
        if generation.records[0].file("image"):
            uids[name] = counting_uids(store, generation)
            assert len(set(uids[name])) == len(uids[name]), f"{name} holds a uid twice"
            assert sum(generation.statuses.values()) == len(uids[name])
    assert len({tuple(sorted(found)) for found in uids.values()}) == 1, "not every node has the same images"


def files(root: str | Path, pattern: str) -> list[Path]:
    """The files of a root that match, hidden ones included."""
    return [path for path in Path(local(root).path).glob(pattern) if path.is_file()]


def whole(root: str | Path) -> int:
    """P: every record that a reader could follow names files that are whole. How many records there are."""
    store = local(root)
    found = [store.record(node, key) for node in store.nodes() for key in store.committed(node)]
    sealed = [store.generation(node, number) for node in store.nodes() for number in store.generation_numbers(node)]
    records = [*found, *(record for generation in sealed if generation for record in generation.records)]
    for record in records:
        assert record is not None
        for file in record.files:
            data = Path(store.path, store.place(record, file)).read_bytes()
            assert len(data) == file.bytes
            assert sha256(data).hexdigest() == file.sha256
    return len(records)


def counting_uids(store: Store, generation: Generation) -> list[str]:
    """The uids of the rows that no retry took the place of."""
    found: list[str] = []
    for record in generation.records:
        gone = {uid for other in generation.superseding(record.part) for uid in column(store, other, "image", "uid")}
        found += [uid for uid in column(store, record, "image", "uid") if uid not in gone]
    return found


def column(store: Store, record: Record, kind: str, name: str) -> list[Any]:
    return list(store.read_table(record, kind, [name]).column(name).to_pylist())


def values(root: str | Path, node: str, names: Sequence[str], kind: str = "image") -> list[tuple[Any, ...]]:
    """The rows that count of a node's newest generation, some columns of them."""
    store = local(root)
    generation = generations(root)[node]
    rows: list[tuple[Any, ...]] = []
    for record in generation.records:
        gone = {uid for other in generation.superseding(record.part) for uid in column(store, other, kind, "uid")}
        uids = column(store, record, kind, "uid")
        columns = [column(store, record, kind, name) for name in names]
        rows += [row for uid, *row in zip(uids, *columns, strict=True) if uid not in gone]  # type: ignore[misc]
    return [tuple(row) for row in rows]
