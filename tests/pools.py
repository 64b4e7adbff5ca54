"""Small nodes, written as the engine writes them: `Attempt`s that commit, and a sealed generation."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.attempt import Attempt
from pipeline.identity import node_identity, work_key
from pipeline.records import Generation, Record, Run, digest
from pipeline.stage import Column, TableStage, Task
from pipeline.store import Store

Kinds = Mapping[str, pa.Table]


def write_node(
    store: Store,
    node: str,
    parts: Mapping[str, Kinds],
    inputs: Sequence[str] = (),
    supersedes: Mapping[str, tuple[str, ...]] | None = None,
    notes: Mapping[str, Any] | None = None,
    tar: bool = False,
) -> Generation:
    """A generation with one record per part, the tables by kind; its inputs are generations written before."""
    records = []
    for part, kinds in parts.items():
        task = Task(part, supersedes=(supersedes or {}).get(part, ()))
        content = {kind: table.to_pydict() for kind, table in kinds.items()}
        attempt = Attempt(store, node, "parts", task, digest([node, part, str(content)]))
        for kind, table in kinds.items():
            attempt.write(kind, table)
        if tar:
            attempt.write_bytes("tar", "tar", b"")
        attempt.note(**(notes or {}))
        records.append(attempt.commit())
    return seal_node(store, node, records, inputs)


def seal_node(store: Store, node: str, records: Iterable[Record], inputs: Sequence[str] = ()) -> Generation:
    hashes = {}
    for name in inputs:
        found = store.newest(name)
        assert found is not None
        hashes[name] = found.content_hash
    generation = Generation(node=node, number=0, key="", identity={}, inputs=hashes, records=tuple(records))
    return store.seal(generation)


def write_run(store: Store, nodes: Sequence[str], dag: str = "demo") -> Run:
    """A run of the newest generations of these nodes."""
    generations = {node: store.newest_number(node) for node in nodes}
    return store.add_run(Run(id="", dag=dag, text="", generations=generations))


def columns_of(store: Store, generation: Generation) -> list[Column]:
    """What the tables of a generation hold, all its parts together."""
    found: dict[tuple[str, str], Column] = {}
    for record in generation.records:
        for kind in ("image", "caption"):
            if record.file(kind):
                for field in store.read_table(record, kind).schema:
                    found.setdefault((kind, field.name), Column(field.name, generation.node, kind, field.type))
    return list(found.values())


class InlineWork:
    """The `Work` of a table stage, in this process; `done` lists what was not found committed, as phase and part."""

    seed = 0
    previous: Generation | None = None

    def __init__(self, store: Store, node: str, stage: TableStage, inputs: Sequence[Generation]) -> None:
        self.store, self.node = store, node
        self.inputs: Mapping[str, Generation] = {generation.node: generation for generation in inputs}
        self.resources: Mapping[str, Sequence[tuple[str, str]]] = {}
        self.columns: Sequence[Column] = [c for generation in inputs for c in columns_of(store, generation)]
        self.identity = node_identity([stage], 0)
        self.done: list[tuple[str, str]] = []

    def map(
        self, phase: str, tasks: Iterable[Task], do: Callable[[Task, Attempt], None], final: bool = True
    ) -> list[Record]:
        return [self._one(phase, task, do) for task in tasks]

    def _one(self, phase: str, task: Task, do: Callable[[Task, Attempt], None]) -> Record:
        key = work_key(self.identity, phase, task, False)
        found = self.store.record(self.node, key)
        if found is not None:
            return found
        self.done.append((phase, task.part))
        with Attempt(self.store, self.node, phase, task, key) as attempt:
            do(task, attempt)
            return attempt.commit()
