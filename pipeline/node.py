"""A node on its way to a generation: which tasks it consists of, which of them are committed, and the seal.

The same code plans and runs. A plan has no executor: it stops at the first phase that is not wholly committed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.attempt import Attempt
from pipeline.dag import Dag, Node
from pipeline.errors import SluiceError, did_you_mean
from pipeline.identity import Resources, find_resources, generation_key, node_identity, resource_fields, work_key
from pipeline.partwork import PartWork, PoolWork
from pipeline.records import SUPERSEDED, Generation, Record, in_order
from pipeline.stage import Column, NodeRef, PartStage, Stage, TableStage, Task
from pipeline.store import Store
from pipeline.worker import Call

READERS = 16
LATER = "-later"
"""Among the inputs of a retry, where nodes have names: the parts of later input that took over some of its rows."""
REPAIRS = "repairs"
"""The note by which a record says whose place it takes: the work key of one whose files were lost."""


class Executor(Protocol):
    """Whatever does calls: Ray actors, or this process in a test."""

    def run(self, node: Node, calls: Sequence[Call], total_rows: int, done_rows: int) -> list[Record]:
        """The calls' records, in order. Raises `NodeFailed` after having done what could be done."""


class NodeFailed(SluiceError):
    """Some parts of a node ended without a record."""


class Unfinished(Exception):
    """A plan met a phase that is not wholly committed."""

    def __init__(self, phase: str, parts: Sequence[tuple[str, bool]]) -> None:
        super().__init__(phase)
        self.phase = phase
        self.parts = list(parts)
        """(part, whether it is committed)."""


@dataclass(frozen=True)
class Prepared:
    """A node with all that decides its identity."""

    node: Node
    stages: tuple[Stage, ...]
    """The stages with their references filled in."""
    seed: int
    identity: dict[str, Any]
    resources: Resources
    inputs: dict[str, Generation]
    references: dict[str, Generation]
    exact: bool
    columns: tuple[Column, ...]
    """What the inputs give."""
    sources: tuple[Mapping[str, Any], ...]

    @property
    def key(self) -> str:
        inputs = {name: _read_hash(generation, self.exact) for name, generation in self.inputs.items()}
        references = {name: generation.content_hash for name, generation in self.references.items()}
        return generation_key(self.identity, self.resources, inputs, references)

    def task_identity(self) -> dict[str, Any]:
        """What every task of the node shares. The `files` of a table stage are named by its tasks one by one."""
        table = isinstance(self.stages[0], TableStage)
        by_task = {name for name, mark in resource_fields(self.stages[0]) if table and mark.kind == "files"}
        digests = {name: [d for _, d in files] for name, files in self.resources.items() if name not in by_task}
        return {
            **self.identity,
            "resources": digests,
            "references": sorted(generation.content_hash for generation in self.references.values()),
        }


def _read_hash(generation: Generation, exact: bool) -> str:
    if not exact:
        return generation.content_hash
    return generation.content_hash + "".join(record.bytes_hash() for record in generation.records)


def prepare(dag: Dag, name: str, store: Store, generations: Mapping[str, Generation]) -> Prepared:
    """Everything that decides what `name` would do, given its inputs' generations.

    Raises `SluiceError` for a missing resource, and a part that a node has not.
    """
    node = dag.nodes[name]
    try:
        resources = find_resources(node.stages)
        stages = tuple(_with_references(stage, store, generations) for stage in node.stages)
        references = {name: _referred(name, reference, generations) for name, reference in node.references.items()}
    except SluiceError as error:
        raise SluiceError(f"{name}: {error}") from None
    return Prepared(
        node=node,
        stages=stages,
        seed=dag.seed,
        identity=node_identity(node.stages, dag.seed),
        resources=resources,
        inputs={other: generations[other] for other in node.inputs},
        references=references,
        exact=dag.exact(name),
        columns=tuple(dag.inputs_of(name)),
        sources=tuple(dag.sources(name)),
    )


def _referred(parameter: str, reference: NodeRef, generations: Mapping[str, Generation]) -> Generation:
    """What a reference stands for: a node's generation, or of that the one part that it names. Raises `SluiceError`."""
    whole = generations[reference.node]
    if reference.part is None:
        return whole
    chosen = tuple(record for record in whole.records if record.part == reference.part)
    if not chosen:
        remedy = did_you_mean(reference.part, [record.part for record in whole.records])
        raise SluiceError(f"{parameter}: node {reference.node!r} has no part {reference.part!r}{remedy}")
    return whole.model_copy(update={"records": chosen})


def _with_references(stage: Stage, store: Store, generations: Mapping[str, Generation]) -> Stage:
    filled = {}
    for name in type(stage).model_fields:
        value = getattr(stage, name)
        if isinstance(value, NodeRef):
            records = _referred(name, value, generations).records
            addresses = tuple(store.url(store.place(record, file)) for record in records for file in record.files)
            filled[name] = value.model_copy(update={"files": addresses})
    return stage.model_copy(update=filled) if filled else stage


class NodeWork:
    """The `Work` of a node. Without an executor it only looks."""

    def __init__(
        self,
        prepared: Prepared,
        store: Store,
        previous: Generation | None,
        executor: Executor | None,
        retry: bool = False,
        forget: Collection[str] = (),
    ) -> None:
        self.prepared = prepared
        self.store = store
        self.executor = executor
        self.retry = retry
        self.seed = prepared.seed
        self.inputs: Mapping[str, Generation] = prepared.inputs
        self.columns: Sequence[Column] = prepared.columns
        self.resources: Mapping[str, Sequence[tuple[str, str]]] = prepared.resources
        self.done: list[tuple[str, bool]] = []
        self._identity = prepared.task_identity()
        if previous is not None and forget:
            left = tuple(record for record in previous.records if record.work_key not in forget)
            previous = previous.model_copy(update={"records": left})
        self.previous = previous
        before = previous.records if previous else ()
        self._known = {str(record.notes.get(REPAIRS, record.work_key)): record for record in before}
        self._forget = forget
        self._committed: set[str] | None = None

    def map(
        self, phase: str, tasks: Iterable[Task], do: Callable[[Task, Attempt], None], final: bool = True
    ) -> list[Record]:
        """See `pipeline.stage.Work`. Raises `Unfinished` in a plan."""
        tasks = list(tasks)
        keys = [work_key(self._identity, phase, task, self.prepared.exact) for task in tasks]
        if len(set(keys)) != len(keys):
            raise SluiceError(
                f"{self.prepared.node.name}: two tasks of phase {phase!r} are the same; name their parts apart"
            )
        found = self._find(keys)
        if all(key in found for key in keys):
            self.done += [(task.part, True) for task in tasks]
            return [found[key] for key in keys]
        if self.executor is None:
            raise Unfinished(phase, [(task.part, key in found) for task, key in zip(tasks, keys, strict=True)])
        calls = [
            Call(self.prepared.node.name, phase, task, key, do)
            for task, key in zip(tasks, keys, strict=True)
            if key not in found
        ]
        rows = sum(task.rows for task in tasks)
        done_rows = rows - sum(call.task.rows for call in calls)
        for record in self.executor.run(self.prepared.node, calls, rows, done_rows):
            found[record.work_key] = record
        return [found[key] for key in keys]

    def _find(self, keys: Sequence[str]) -> dict[str, Record]:
        """The records that exist; those of the previous generation without asking the store again."""
        found = {key: self._known[key] for key in keys if key in self._known}
        missing = [key for key in keys if key not in found]
        if missing:
            if self._committed is None:
                self._committed = self.store.committed(self.prepared.node.name)
            listed = [key for key in missing if key in self._committed and key not in self._forget]
            records = self.store.records(self.prepared.node.name, listed)
            found.update({key: record for key, record in zip(listed, records, strict=True) if record is not None})
        return found

    def assemble(self) -> list[Record]:
        """The node's records, done or found."""
        stage = self.prepared.stages[0]
        if isinstance(stage, TableStage):
            return in_order(stage.assemble(self))
        if isinstance(stage, PartStage):
            steps = tuple(step for step in self.prepared.stages if isinstance(step, PartStage))
            do = PartWork(steps, self.prepared.sources)
            return in_order(self.map("parts", self._part_tasks(), do))
        return self._assemble_pool()

    def _part_tasks(self) -> list[Task]:
        first, *others = self.inputs.values()
        tasks = []
        for record in first.records:
            inputs = {first.node: (record,)}
            for other in others:
                match = other.for_part(record.part)
                if match is None:
                    raise SluiceError(
                        f"{other.node} has no part {record.part}, which {first.node} has; run the whole DAG again"
                    )
                inputs[other.node] = (match,)
            rows = record.rows.get("image") or record.rows.get("caption", 0)
            tasks.append(Task(record.part, inputs=inputs, supersedes=record.supersedes, rows=rows))
        return tasks

    def _assemble_pool(self) -> list[Record]:
        stage: Any = self.prepared.stages[0]
        do = PoolWork(stage)
        base = self.map("parts", self._part_tasks(), do)
        earlier = self._earlier_tries(base)
        records = [record for tries in earlier.values() for record in tries]
        if self.retry:
            records += self.map("retry", self._retry_tasks(earlier, stage.retryable), do)
        return in_order(records)

    def _earlier_tries(self, base: Sequence[Record]) -> dict[str, list[Record]]:
        """Every part's record, then those of its retries and repairs that the previous generation has, oldest first."""
        tries = {record.part: [record] for record in base}
        keys = {record.work_key for record in base}
        before = self.previous.records if self.previous else ()
        lasting = {record.part for record in before if record.work_key in keys}
        for record in before:
            if record.part != record.base and record.base in lasting:
                tries[record.base].append(record)
        return {part: [found[0], *sorted(found[1:], key=_try_number)] for part, found in tries.items()}

    def _retry_tasks(self, earlier: Mapping[str, Sequence[Record]], retryable: frozenset[str]) -> list[Task]:
        (source,) = self.inputs.values()
        tasks = []
        for part, tries in earlier.items():
            rows = 0
            for record in reversed(tries):
                rows += sum(count for status, count in record.statuses.items() if status in retryable)
                if record.phase == "retry":  # it took along whatever could be retried before it
                    break
            match = source.for_part(part)
            if rows and match is not None:
                number = _try_number(tries[-1]) + 1
                superseded = tuple(record.part for record in tries) + tries[0].supersedes
                later = tuple(r for other, (r, *_) in earlier.items() if other != part and part in r.supersedes)
                inputs = {source.node: (match,), self.prepared.node.name: tuple(tries), LATER: later}
                tasks.append(Task(f"{part}.r{number}", {"retry": number}, inputs, superseded, rows))
        return tasks


def _try_number(record: Record) -> int:
    """0 for the first try at a part, 1 for `000-00003.r1`."""
    return int(record.part.partition(".r")[2] or 0)


def seal(prepared: Prepared, store: Store, records: Sequence[Record]) -> Generation:
    """The node's generation: the newest one where it says the same, else a new one.

    Raises `SluiceError` where a record's statuses do not add up to its input rows, or a file has another size.
    """
    name = prepared.node.name
    records = _without_replaced(prepared, store, _covering_retries(records))
    generation = Generation(
        node=name,
        number=0,
        key=prepared.key,
        identity=prepared.identity,
        resources=prepared.resources,
        inputs={other: g.content_hash for other, g in prepared.inputs.items()},
        records=tuple(records),
        superseded=_superseded(prepared, store, records),
    )
    newest = store.newest(name)
    if newest is not None and _same(newest, generation):
        return newest
    known = {record.work_key for record in newest.records} if newest else set()
    if not isinstance(prepared.stages[0], TableStage):
        _check_every_row(prepared, records)
    store.check_sizes([record for record in records if record.work_key not in known])
    return store.seal(generation)


def _superseded(prepared: Prepared, store: Store, records: Sequence[Record]) -> dict[str, int]:
    """Rows by status whose URL came again in later input. Only the parts of a pool that hold such rows are read."""
    if isinstance(prepared.stages[0], TableStage):
        return {}
    if prepared.node.pool_stage is None:
        count = sum(next(iter(prepared.inputs.values())).superseded.values())
        return {"ok": count} if count else {}
    total = Counter[str]()
    for record in records:
        if record.supersedes and record.part == record.base:
            uids = set(store.read_table(record, "image", ["uid"]).column("uid").to_pylist())
            for part in {name for name in record.supersedes if "." not in name}:
                standing: dict[str, str] = {}
                for older in sorted((r for r in records if r.base == part), key=_try_number):
                    table = store.read_table(older, "image", ["uid", "status"]).to_pydict()
                    standing.update(zip(table["uid"], table["status"], strict=True))
                total.update(status for uid, status in standing.items() if uid in uids)
    return dict(total)


def _covering_retries(records: Sequence[Record]) -> list[Record]:
    """What later input took the place of, it also took from retries: a record cannot know those that came after it."""
    covering = []
    if not any(record.part != record.base for record in records):
        return list(records)
    for record in records:
        older = [name for name in record.supersedes if name.partition(".")[0] != record.base]
        tries = {r.part for r in records if r.part != r.base and r.base in older} - set(record.supersedes)
        supersedes = (*record.supersedes, *sorted(tries))
        covering.append(record.model_copy(update={"supersedes": supersedes}) if tries else record)
    return covering


def _without_replaced(prepared: Prepared, store: Store, records: Sequence[Record]) -> list[Record]:
    """The records of a table stage say which of their rows no longer count; their funnels are of those that do.

    A part's record is made before the retry that replaces some of its rows. Only the tables of such parts are read.
    """
    stage = prepared.stages[0]
    if not isinstance(stage, TableStage) or not prepared.inputs:
        return list(records)
    replacing: dict[str, list[Record]] = {}
    for record in records:
        for part in record.supersedes:
            replacing.setdefault(part, []).append(record)
    if not replacing:
        return list(records)

    def noted(record: Record) -> Record:
        kind = next((kind for kind in ("image", "caption") if record.file(kind)), None)
        later = [other for other in replacing.get(record.part, ()) if kind and other.file(kind)]
        if kind is None or not later:
            return record
        rows = store.read_table(record, kind)
        uids = pa.chunked_array([c for r in later for c in store.read_table(r, kind, ["uid"]).column("uid").chunks])
        gone = pc.is_in(rows.column("uid"), value_set=uids.unique())
        return _noted(record, stage, rows.filter(gone), rows.filter(pc.invert(gone)))

    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(noted, records))


def _noted(record: Record, stage: TableStage, gone: pa.Table, live: pa.Table) -> Record:
    by_row = sum(record.statuses.values()) == gone.num_rows + live.num_rows  # else it counts images, and has captions
    count = gone.num_rows if by_row else pc.count_distinct(gone.column("uid")).as_py()
    said = stage.ended(gone) if by_row else {}
    statuses = {status: min(said.get(status, 0), had) for status, had in record.statuses.items()}
    for status, had in sorted(record.statuses.items(), key=lambda item: -item[1]):
        statuses[status] += min(count - sum(statuses.values()), had - statuses[status])
    notes = {**record.notes, SUPERSEDED: {status: number for status, number in statuses.items() if number}}
    if record.notes.get("funnel"):
        dropped, left = Counter(live.column("dropped_by").to_pylist()), live.num_rows
        steps = []
        for name in (step["rule"] for step in record.notes["funnel"]):
            steps.append({"rule": name, "rows": left, "dropped": dropped[name], "left": left - dropped[name]})
            left -= dropped[name]
        notes["funnel"] = steps
    return record.model_copy(update={"notes": notes})


def _check_every_row(prepared: Prepared, records: Sequence[Record]) -> None:
    """Every input row has one status."""
    source = next(iter(prepared.inputs.values()))
    for record in records:
        match = source.for_part(record.part)
        expected = (
            match.rows.get("image", record.rows.get("image"))
            if match and match.part == record.part
            else record.rows.get("image")
        )
        total = sum(record.statuses.values())
        if expected is not None and total != expected:
            raise SluiceError(
                f"{prepared.node.name} part {record.part}: the statuses of its rows add up to {total}, not {expected}"
            )


def _same(one: Generation, other: Generation) -> bool:
    """Equal but for the number and the names of the resource files."""
    return one.key == other.key and one.records == other.records
