"""`verify` and `gc`: is every byte what its record says, and what does nobody need any more?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.attempt import Attempt
from pipeline.dag import Dag, Node
from pipeline.errors import SluiceError
from pipeline.leases import LEASES, described
from pipeline.node import REPAIRS, NodeFailed, NodeWork, prepare
from pipeline.partwork import StageFault
from pipeline.records import SUPERSEDED, File, Generation, Record, digest, in_order
from pipeline.runs import generations_of, run_of
from pipeline.stage import PoolStage, Task
from pipeline.store import Store
from pipeline.takedown.records import withheld
from pipeline.worker import Call, Fault, work

LOST = "lost"
"""The status of a pool row whose bytes were damaged in the store."""
BLOCK = 1 << 22


@dataclass(frozen=True)
class Damage:
    """A file that is not what its record says."""

    node: str
    part: str
    path: str
    problem: str
    record: Record
    remedy: str = ""


def verify(store: Store, progress: Callable[[int], None] = lambda _: None) -> list[Damage]:
    """Re-read every file that the newest run's generations name; `progress` gets the bytes read."""
    damages = []
    for generation in generations_of(store, run_of(store)).values():
        for record in generation.records:
            for file in record.files:
                problem = _problem(store, store.place(record, file), file, progress)
                if problem:
                    place = store.url(store.place(record, file))
                    damages.append(Damage(record.node, record.part, place, problem, record))
    return damages


def _problem(store: Store, path: str, file: File, progress: Callable[[int], None]) -> str:
    hasher = sha256()
    try:
        with store.fs_of(path).open(store.full(path), "rb") as handle:
            while block := handle.read(BLOCK):
                hasher.update(block)
                progress(len(block))
    except FileNotFoundError:
        return "is gone"
    return "" if hasher.hexdigest() == file.sha256 else "has other bytes than were committed"


# -- repair ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repair:
    """What a repair did and what it could not do yet, a line each."""

    done: list[str]
    left: list[str]


def repair(store: Store, damages: Sequence[Damage]) -> Repair:
    """Rebuild what can be rebuilt, mark the pool rows whose bytes are gone `lost`.

    Works in this process, node by node from the sources on, and seals a new generation where a record had to change.
    """
    run = run_of(store)
    dag = Dag.parse(run.text)
    generations = generations_of(store, run)
    done: list[str] = []
    left: list[str] = []
    sealed: dict[str, Generation] = {}
    names = [name for name in dag.nodes if name in generations]
    # Pools last: what was made from them is rebuilt from what it was made from.
    for name in sorted(names, key=lambda name: dag.nodes[name].pool_stage is not None):
        broken = {d.record.work_key: d.record for d in damages if d.node == name}
        if not broken:
            continue
        if dag.nodes[name].pool_stage is not None:
            records = {key: _salvage(store, dag, record, generations) for key, record in broken.items()}
            remedy = f"fetch them again with --retry-failed {name}"
            done += [f"{name} part {r.part}: {r.notes[LOST]} rows are lost; {remedy}" for r in records.values()]
        else:
            try:
                records = _rebuild(store, dag, name, generations, broken)
            except SluiceError as error:  # what it is made from may be damaged as well
                left.append(f"{name} is not mended yet: {error}; once that is mended, run the DAG again")
                continue
            done += [f"{name} part {record.part}: rebuilt" for record in records.values()]
        if any(key != record.work_key for key, record in records.items()):
            old = generations[name]
            replaced = in_order([records.get(record.work_key, record) for record in old.records])
            sealed[name] = store.seal(old.model_copy(update={"number": 0, "records": tuple(replaced)}))
    generations |= sealed
    numbers = {name: generation.number for name, generation in generations.items()}
    store.add_run(run.model_copy(update={"id": "", "generations": numbers}))
    return Repair(done, left)


def _rebuild(
    store: Store, dag: Dag, name: str, generations: dict[str, Generation], broken: dict[str, Record]
) -> dict[str, Record]:
    """Do the broken tasks again. The same bytes go where the broken ones were; others become a record of their own."""
    prepared = prepare(dag, name, store, generations)
    originals = {str(record.notes.get(REPAIRS, key)): record for key, record in broken.items()}
    restorer = _Restorer(store, originals)
    if prepared.key != generations[name].key:
        raise SluiceError(
            f"{name} cannot be rebuilt: its inputs or resources changed since; `sluice run` makes it anew"
        )
    NodeWork(prepared, store, generations[name], restorer, forget=[*originals, *broken]).assemble()
    if not originals.keys() <= restorer.restored.keys():
        raise SluiceError(
            f"{name} cannot be rebuilt: something that it was made from was taken down since; "
            f"delete {store.url(name)}/generations and `sluice run` makes it anew"
        )
    rebuilt = {key: restorer.restored[str(record.notes.get(REPAIRS, key))] for key, record in broken.items()}
    if prepared.node.inputs:
        return rebuilt
    return dict(zip(rebuilt, withheld(store, list(rebuilt.values()), ()), strict=True))


class _Restorer:
    """An executor that puts the bytes of broken records back."""

    def __init__(self, store: Store, broken: dict[str, Record]) -> None:
        self._store = store
        self._broken = broken
        self.restored: dict[str, Record] = {}

    def run(self, node: Node, calls: Sequence[Call], total_rows: int, done_rows: int) -> list[Record]:
        return [self._one(call) for call in calls]

    def _one(self, call: Call) -> Record:
        broken = self._broken.get(call.work_key)
        if broken is None:
            outcome = work(self._store, call)
            if not isinstance(outcome, Record):
                cause = outcome.error if isinstance(outcome, Fault) else "no record"
                raise NodeFailed(f"{call.node}: part {call.task.part} failed: {cause}")
            return outcome
        with Attempt(self._store, call.node, call.phase, call.task, call.work_key) as attempt:
            task = call.task
            if getattr(call.do, "bisectable", False) and broken.file("errors"):
                faults = self._store.read_table(broken, "errors").drop_columns(["uid"]).to_pylist()
                hints = {**task.hints, "exclude": sorted(fault["row"] for fault in faults), "faults": faults}
                task = replace(task, hints=hints)
            try:
                call.do(task, attempt)
            except StageFault as fault:
                raise NodeFailed(f"{call.node}: part {task.part} cannot be rebuilt: {fault.cause}") from None
            record = attempt.restore(broken)
        self.restored[call.work_key] = record
        return record.model_copy(update={"work_key": call.work_key})


def _salvage(store: Store, dag: Dag, record: Record, generations: dict[str, Generation]) -> Record:
    """A pool part again from what is whole: its table, and the images whose bytes are what they were."""
    (source_name,) = dag.nodes[record.node].inputs
    source = generations[source_name].for_part(record.part)
    stage = dag.nodes[record.node].pool_stage
    assert source is not None
    assert stage is not None
    original = str(record.notes.get(REPAIRS, record.work_key))
    task = Task(record.part, {"repair": record.work_key}, supersedes=record.supersedes)
    with Attempt(store, record.node, "repair", task, digest(["repair", record.work_key])) as attempt:
        captions = _readable(store, record, "caption")
        image = _readable(store, record, "image")
        if image is None:
            image = _all_lost(store.read_table(source, "image"), stage)
            if record.part != record.base:  # a retry holds few of the rows of its source
                if captions is None:
                    raise SluiceError(
                        f"{record.node} part {record.part}: both its tables are damaged; delete its commit"
                    )
                image = image.filter(pc.is_in(image.column("uid"), value_set=captions.column("uid").combine_chunks()))
        caption = captions if captions is not None else store.read_table(source, "caption")
        caption = caption.filter(pc.is_in(caption.column("uid"), value_set=image.column("uid").combine_chunks()))
        tar = record.file("tar")
        image, lost = _copy_members(store, record, tar, image, attempt, stage)
        attempt.write("image", image, suffix="parquet")
        attempt.write("caption", caption, suffix="captions.parquet")
        statuses = image.column("status").value_counts()
        attempt.count({entry["values"].as_py(): entry["counts"].as_py() for entry in statuses})
        attempt.note(**{LOST: lost, REPAIRS: original})
        if SUPERSEDED in record.notes:
            attempt.note(**{SUPERSEDED: record.notes[SUPERSEDED]})
        return attempt.commit()


def _readable(store: Store, record: Record, kind: str) -> pa.Table | None:
    try:
        return store.read_table(record, kind)
    except SluiceError:
        return None


def _all_lost(image: pa.Table, stage: PoolStage) -> pa.Table:
    for field in stage.adds:
        values = (
            pa.array([LOST] * image.num_rows, pa.string())
            if field.name == "status"
            else pa.nulls(image.num_rows, field.type)
        )
        image = image.append_column(field, values)
    return image


def _copy_members(
    store: Store, record: Record, tar: File | None, image: pa.Table, attempt: Attempt, stage: PoolStage
) -> tuple[pa.Table, int]:
    """Copy the tar; rows whose member is not what the table says keep their input columns and what is remembered."""
    data = b""
    if tar is not None:
        try:
            data = store.get(store.place(record, tar))
        except FileNotFoundError:
            data = b""
        with attempt.create("tar") as sink:
            sink.write(data)
    table = image.select(["offset", "nbytes", "stored_sha256", "status"]).to_pydict()
    whole = [
        offset is None or sha256(data[offset : offset + size]).hexdigest() == sha
        for offset, size, sha in zip(table["offset"], table["nbytes"], table["stored_sha256"], strict=True)
    ]
    mask = pa.array(whole)
    for field in (field for field in stage.adds if field.name not in stage.remembered):
        column = image.column(field.name).cast(field.type)  # Parquet has no seconds and gives milliseconds
        lost_value = pa.scalar(LOST if field.name == "status" else None, field.type)
        image = image.set_column(image.column_names.index(field.name), field, pc.if_else(mask, column, lost_value))
    return image, sum(status == LOST for status in image.column("status").to_pylist())


# -- garbage -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Garbage:
    """What no kept run references."""

    paths: list[str]
    bytes: int


def find_garbage(store: Store, keep_runs: int) -> Garbage:
    """Everything that neither the newest `keep_runs` runs nor a node's newest generation references.

    Raises `SluiceError` while a run is writing, or was interrupted and not resumed.
    """
    leases = store.names(LEASES)
    if leases:
        who = described(json.loads(store.get(f"{LEASES}/{leases[0]}")))
        raise SluiceError(
            f"{store.root} has {len(leases)} run(s) that write or were interrupted ({who}); "
            "resume with the same `sluice run`, or give --force when none is running"
        )
    runs = list(store.runs())
    kept: set[str] = {f"runs/{run.id}.json" for run in runs[:keep_runs]}
    for name in store.nodes():
        numbers = {run.generations[name] for run in runs[:keep_runs] if name in run.generations}
        for number in numbers | {store.newest_number(name)}:
            generation = store.generation(name, number) if number else None
            if generation is not None:
                kept.add(f"{name}/generations/{number:04d}.json")
                kept.update(_referenced(generation))
    paths, size = [], 0
    for path, bytes_ in _everything(store):
        if path not in kept:
            paths.append(path)
            size += bytes_
    return Garbage(paths, size)


def _referenced(generation: Generation) -> Iterator[str]:
    for record in generation.records:
        yield f"{record.node}/commits/{record.work_key}.json"
        yield from (f"{record.node}/{file.path}" for file in record.files)


def _everything(store: Store) -> Iterator[tuple[str, int]]:
    """(path, bytes) of every file of the nodes and runs; resources and the store's own marker stay."""
    for folder in [*store.nodes(), "runs"]:
        store.fs.invalidate_cache()
        found: dict[str, Any] = store.fs.find(store.full(folder), detail=True)
        for path, info in found.items():
            yield str(path)[len(store.path) + 1 :], int(info["size"])


def clear_leases(store: Store) -> None:
    """Forget interrupted runs."""
    for name in store.names(LEASES):
        store.delete(f"{LEASES}/{name}")
