"""Ingest in this process: a DAG of one node, run without Ray."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.dag import Dag
from pipeline.node import NodeWork, Prepared, prepare, seal
from pipeline.plan import last_alike
from pipeline.records import Generation
from pipeline.store import Store
from tests.inline import Inline


class Ingest:
    """A root, and the node `urls` in it; `executor.calls` says what was really done."""

    def __init__(self, root: Path) -> None:
        self.store = Store(str(root))
        self.executor = Inline(self.store)
        self.before_work: Callable[[], object] = lambda: None

    def __call__(self, files: Any, stage: str = "stages.ingest.UrlTables", **parameters: Any) -> Generation:
        prepared = self.prepare(files, stage, parameters)
        previous = last_alike(prepared, self.store, self.store.newest("urls"))
        self.before_work()
        return seal(prepared, self.store, NodeWork(prepared, self.store, previous, self.executor).assemble())

    def work(self, files: Any, previous: Generation | None = None, plan: bool = False, **parameters: Any) -> NodeWork:
        """What a run would do after `previous`; a plan does nothing."""
        prepared = self.prepare(files, "stages.ingest.UrlTables", parameters)
        return NodeWork(prepared, self.store, previous, None if plan else self.executor)

    def prepare(self, files: Any, stage: str, parameters: dict[str, Any]) -> Prepared:
        files = [str(file) for file in files] if isinstance(files, list) else str(files)
        document = {"dag": "test", "nodes": {"urls": {"steps": [{stage: {"files": files, **parameters}}]}}}
        dag = Dag.parse(yaml.safe_dump(document))
        dag.check()
        return prepare(dag, "urls", self.store, {})

    def table(self, generation: Generation, kind: str) -> pa.Table:
        """The rows of all parts that have such a table, in order of the parts, superseded rows left out."""
        tables = []
        for record in generation.records:
            if record.file(kind) is None:
                continue
            table = self.store.read_table(record, kind)
            gone = {
                uid
                for other in generation.superseding(record.part)
                for uid in self.store.read_table(other, "image", ["uid"]).column("uid").to_pylist()
            }
            keep = [uid not in gone for uid in table.column("uid").to_pylist()]
            tables.append(table.filter(pa.array(keep, pa.bool_())))
        return pa.concat_tables(tables, promote_options="default") if tables else pa.table({})

    def rows(self, generation: Generation, kind: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table(generation, kind).to_pylist()
        return rows

    def pairs(self, generation: Generation) -> set[tuple[str, str | None]]:
        """(url, caption) of everything that counts."""
        urls = {row["uid"]: row["url"] for row in self.rows(generation, "image")}
        return {(urls[row["uid"]], row["caption"]) for row in self.rows(generation, "caption")}


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def ingest(tmp_path: Path) -> Ingest:
    return Ingest(tmp_path / "root")


@pytest.fixture
def ingest_in(tmp_path: Path) -> Callable[[str], Ingest]:
    """More roots, to compare with."""
    return lambda name: Ingest(tmp_path / name)
