"""What the chaos tests share: a tiny DAG, runs in this process, and the invariants that must hold after any of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import Dag, run, upkeep
from pipeline.records import Generation
from pipeline.run import Result
from pipeline.store import Store
from tests.inline import Inline

ROWS = 24

TINY = """
dag: tiny
nodes:
  numbers: {{steps: [{{tests.toys.Numbers: {{rows: 24, parts: 2, captions: 2}}}}]}}
  pool: {{from: numbers, steps: [{{tests.toys.Fetch: {{fails: 5}}}}]}}
  scores: {{from: pool, steps: [{{tests.toys.Times: {{}}}}, {{tests.toys.Label: {{}}}}]}}
  listed: {{from: [pool, scores], steps: [{{tests.toys.Listed: {{numbers: "{listed}"}}}}]}}
  shards: {{from: scores, steps: [{{tests.chaos.jobs.Bundle: {{}}}}]}}
"""
"""Every way to write: tables, a tar, a shipped resource, files under final names. A chain, so that operations have an order."""


def tiny(folder: Path, *overrides: str) -> Dag:
    """The DAG, and the file of numbers that it names."""
    listed = folder / "listed.txt"
    if not listed.exists():
        listed.write_text("3\n5\n8\n")
    return Dag.parse(TINY.format(listed=listed), overrides)


def inline(dag: Dag, root: str, **options: Any) -> Result:
    return run(dag, root, executor=Inline(Store(root)), **options)


def local(root: str | Path) -> Store:
    """The same root without faults."""
    return Store("/" + str(root).partition("://")[2].lstrip("/") if "://" in str(root) else str(root))


def generations(root: str | Path) -> dict[str, Generation]:
    """What the newest run left."""
    store = local(root)
    return upkeep.generations_of(store, upkeep.newest_run(store))


def hashes(root: str | Path) -> dict[str, str]:
    return {name: generation.content_hash for name, generation in generations(root).items()}


def check(root: str | Path) -> None:
    """A, L, D, P: one status per row, nothing lost, nothing twice, every file what its record says."""
    store = local(root)
    assert upkeep.verify(store) == []
    uids: dict[str, list[str]] = {}
    for name, generation in generations(root).items():
        parts = Counter(record.part for record in generation.records)
        assert max(parts.values()) == 1, f"{name} holds a part twice: {parts}"
        if generation.records[0].file("image"):
            uids[name] = counting_uids(store, generation)
            assert len(set(uids[name])) == len(uids[name]), f"{name} holds a uid twice"
            assert sum(generation.statuses.values()) == len(uids[name])
    assert len({tuple(sorted(found)) for found in uids.values()}) == 1, "not every node has the same images"


def counting_uids(store: Store, generation: Generation) -> list[str]:
    """The uids of the rows that no retry took the place of."""
    found: list[str] = []
    for record in generation.records:
        gone = {
            uid for other in generation.superseding(record.part) for uid in column(store, other, "image", "uid")
        }
        found += [uid for uid in column(store, record, "image", "uid") if uid not in gone]
    return found


def column(store: Store, record: Any, kind: str, name: str) -> list[Any]:
    table: pa.Table = store.read_table(record, kind, [name])
    return list(table.column(name).to_pylist())


def files(root: str | Path) -> Iterator[Path]:
    return (path for path in Path(str(root)).rglob("*") if path.is_file())
