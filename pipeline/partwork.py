"""What the engine does with one part: batches through the steps of a node, or a part of URLs into a pool."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.records import SUPERSEDED, Record, digest
from pipeline.rows import Decoder, PartRows, Pictures, RowBatch, ahead, cut, group_of, qualified
from pipeline.stage import OBSERVED, PIXELS, Column, Device, PartStage, PoolStage, Prepare, Shared, Stage, Task
from pipeline.takedown import tables, tars
from pipeline.takedown.tombstones import standing

ERRORS = pa.schema(
    [
        ("uid", pa.string()),
        ("row", pa.int64()),
        pa.field("step", pa.string(), metadata=OBSERVED),
        pa.field("error", pa.string(), metadata=OBSERVED),
        pa.field("traceback", pa.string(), metadata=OBSERVED),
        pa.field("attempts", pa.int32(), metadata=OBSERVED),
    ]
)
"""The table of kind `errors`: rows that ended without a result, and why."""

QUARANTINED = "quarantined"
OOM = "oom"
"""The status of a row that does not fit into memory even alone."""
OPEN_AT_ONCE = 4


class StageFault(Exception):
    """A stage's own code failed on some rows of a part: worth bisecting."""

    def __init__(self, step: str, cause: str, trace: str) -> None:
        super().__init__(step, cause, trace)
        self.step, self.cause, self.trace = step, cause, trace


class Opened(NamedTuple):
    """A stage that was loaded."""

    function: Callable[[Any], pa.Table]
    prepare: Prepare | None


_opened: dict[str, Opened] = {}
_opening = Lock()


def opened(stage: PartStage | PoolStage, device: Device) -> Opened:
    """The stage, loaded once per worker; the least recently used is dropped."""
    key = digest([type(stage).__module__, type(stage).__qualname__, stage.model_dump(mode="json"), device.kind])
    with _opening:  # the next part may want the same
        found = _opened.pop(key, None)
        if found is None:
            function = stage.open(device)
            found = Opened(function, stage.prepares(device) if isinstance(stage, PartStage) else None)
        _opened[key] = found
        while len(_opened) > OPEN_AT_ONCE:
            _opened.pop(next(iter(_opened)))
    return found


def guarded(stage: Stage, function: Callable[[], Any]) -> Any:
    """Call a stage's code; what it raises becomes a `StageFault`, but for errors that name their own remedy."""
    try:
        return function()
    except SluiceError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise StageFault(type(stage).path(), cause, traceback.format_exc()) from None


class Turn:
    """One call's turn among those that a worker holds at once; `waited_s`: how long it waited for it."""

    def __init__(self, lock: Lock) -> None:
        self.waited_s = 0.0
        self._lock = lock

    def __enter__(self) -> None:
        start = time.perf_counter()
        self._lock.acquire()
        self.waited_s += time.perf_counter() - start

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@dataclass(frozen=True)
class PartWork:
    """The steps of a node over one part, batch by batch; what each name in `reads` means stands in `sources`.

    `task.hints['turn']` is waited for before the steps begin: while they work on one part, the first images of the next
    are read and decoded.
    """

    steps: tuple[PartStage, ...]
    sources: tuple[Mapping[str, Column], ...]

    bisectable = True

    def __call__(self, task: Task, attempt: Attempt) -> None:
        rows = self._load(task, attempt)
        every = np.arange(rows.image.num_rows)
        quarantined = list(task.hints.get("exclude", ()))
        kept = np.setdiff1d(every, quarantined)
        added = self._run(rows, kept, task, attempt)
        for grain, columns in added.items():
            present = kept if grain == "image" else rows.captions_of(kept)
            attempt.write(grain, _with_keys(rows.keys(grain), columns, present, self._schema(grain)))
        write_quarantined(attempt, rows.uids, task)
        ended = Counter(OOM if _is_shortage(fault) else QUARANTINED for fault in task.hints.get("faults", ()))
        attempt.count({"ok": len(kept), **ended})
        first = next(iter(task.inputs.values()))[0]
        if SUPERSEDED in first.notes:
            attempt.note(**{SUPERSEDED: {"ok": sum(first.notes[SUPERSEDED].values())}})

    def probe(self, task: Task, attempt: Attempt) -> None:
        """The steps over `task.hints['rows']` alone, nothing written: does it hold?"""
        self._run(self._load(task, attempt), np.asarray(task.hints["rows"]), task, attempt)

    def _load(self, task: Task, attempt: Attempt) -> PartRows:
        columns = [c for source in self.sources for c in source.values() if c.node]
        rows = PartRows.load(attempt.store, task.inputs, columns)
        if rows.caption is None and any(step.grain == "caption" for step in self.steps):
            raise SluiceError(f"{attempt.node}: no input has captions; add the ingest or pool node to `from`")
        return rows

    def _schema(self, grain: str) -> pa.Schema:
        return pa.schema([field for step in self.steps if step.grain == grain for field in step.gives()])

    def _run(
        self, rows: PartRows, images: np.ndarray, task: Task, attempt: Attempt
    ) -> dict[str, dict[str, list[pa.Array]]]:
        """grain -> column -> arrays in row order."""
        device: Device = task.hints.get("device", Device())
        ready = [opened(step, device) for step in self.steps]
        looks = [place for place, source in enumerate(self.sources) if PIXELS in source]
        looker = self.steps[looks[0] if looks else 0]
        wanted = [ready[place].prepare for place in looks]
        decoder = Decoder(attempt.store, rows, device, wanted) if looks else None
        added: dict[str, dict[str, list[pa.Array]]] = {
            grain: {field.name: [] for field in self._schema(grain)}
            for grain in ("image", "caption")
            if self._schema(grain)
        }
        try:
            batches = ahead(decoder, cut(images, task.hints.get("batch_rows", 256)))
            with task.hints.get("turn", nullcontext()):
                for chosen, pictures in batches:
                    self._batch(rows, chosen, guarded(looker, pictures), ready, added)
        finally:
            if decoder is not None:
                decoder.close()
        return added

    def _batch(
        self, rows: PartRows, chosen: np.ndarray, pictures: Pictures, ready: Sequence[Opened], added: Any
    ) -> None:
        images = {name: rows.image.column(name).take(chosen) for name in rows.image.column_names}
        captions: dict[str, pa.ChunkedArray] = {}
        image_of = np.zeros(0, dtype=np.int64)
        if rows.caption is not None:
            caption_rows = rows.captions_of(chosen)
            captions = {name: rows.caption.column(name).take(caption_rows) for name in rows.caption.column_names}
            image_of = np.searchsorted(chosen, rows.image_of[caption_rows])
        for step, source, (function, _) in zip(self.steps, self.sources, ready, strict=True):
            own, keys = (images, ["uid"]) if step.grain == "image" else (captions, ["uid", "caption_id"])
            table = {key: own[key] for key in keys}
            for name, column in source.items():
                if name != PIXELS:
                    same = column.grain == step.grain
                    table[name] = own[qualified(column)] if same else images[qualified(column)].take(image_of)
            seen = pictures if PIXELS in source else {}
            if step.grain == "caption":  # every caption's image: the same array for all of one image
                seen = {prepare: [images_[row] for row in image_of] for prepare, images_ in seen.items()}
            batch = RowBatch(pa.table(table), seen.get(None), seen)
            result = _checked(step, guarded(step, partial(function, batch)), batch.table.num_rows)
            for name in result.column_names:
                own[f".{name}"] = result.column(name)
                added[step.grain][name].append(result.column(name))


def _checked(step: PartStage, result: pa.Table, rows: int) -> pa.Table:
    expected = step.gives()
    if result.num_rows != rows or result.schema.names != expected.names:
        raise SluiceError(
            f"{type(step).path()} gave {result.num_rows} rows of {result.schema.names} for {rows} rows; "
            f"it must give one row each of {expected.names}"
        )
    return result.cast(expected)


def _with_keys(
    keys: pa.Table, columns: Mapping[str, list[pa.Array]], present: np.ndarray, schema: pa.Schema
) -> pa.Table:
    """Keys and added columns, with nulls where a row was quarantined."""
    places = np.full(keys.num_rows, -1, dtype=np.int64)
    places[present] = np.arange(len(present))
    index = pa.array(places, mask=places < 0)
    for field in schema:
        chunks = [chunk for array in columns[field.name] for chunk in _chunks(array)]
        column = pa.chunked_array(chunks, type=field.type)
        keys = keys.append_column(
            field, column if len(present) == keys.num_rows else column.combine_chunks().take(index)
        )
    return keys


def _chunks(array: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return array.chunks if isinstance(array, pa.ChunkedArray) else [array]


def _is_shortage(fault: Mapping[str, Any]) -> bool:
    return str(fault["error"]).partition(":")[0].endswith(("MemoryError", "OutOfMemoryError"))


def write_quarantined(attempt: Attempt, uids: pa.ChunkedArray, task: Task) -> None:
    """The `errors` table of a part, where rows of it were quarantined."""
    faults = task.hints.get("faults", ())
    if faults:
        table = [{"uid": uids[fault["row"]].as_py(), **fault} for fault in faults]
        attempt.write("errors", pa.Table.from_pylist(table, schema=ERRORS))


# -- pools -------------------------------------------------------------------------------------------------------------


@dataclass
class _Part:
    """The `PoolPart` of an attempt."""

    image: pa.Table
    caption: pa.Table
    before: pa.Table | None
    shared: Shared | None
    attempt: Attempt

    def create(self, suffix: str) -> BinaryIO:
        return self.attempt.create(suffix.partition(".")[0], suffix)


@dataclass(frozen=True)
class PoolWork:
    """One part of URLs into one part of a pool: the input's columns, and the stage's beside them.

    A retry works on the rows whose newest status may change; their uids supersede the older rows.
    What was taken down is not fetched, and what turns out to be the same bytes is not kept.
    """

    stage: PoolStage

    bisectable = True

    def __call__(self, task: Task, attempt: Attempt) -> None:
        image, caption, before = self._input(task, attempt)
        quarantined = sorted(task.hints.get("exclude", ()))
        covered = standing(attempt.store)
        gone = covered.named(image)
        kept = np.setdiff1d(np.flatnonzero(~gone), quarantined)
        result = self._fetch(image, caption, before, kept, task, attempt)
        alike = covered.alike(result)
        if alike.any():
            gone[kept[alike]] = True
            result = _without_bytes(result, alike, attempt)
        added = _with_keys(
            image.select(["uid"]), {n: [result.column(n)] for n in result.column_names}, kept, self.stage.adds
        )
        added = added.drop_columns(["uid"])
        if quarantined:
            place = added.column_names.index("status")
            status = pc.fill_null(added.column("status"), QUARANTINED)
            added = added.set_column(place, self.stage.adds.field("status"), status)
        for name in added.column_names:
            image = image.append_column(added.schema.field(name), added.column(name))
        if gone.any():
            uids = image.column("uid").filter(pa.array(gone)).combine_chunks()
            image, caption = tables.erased(image, uids), tables.erased(caption, uids)
        attempt.write("image", image, suffix="parquet")
        attempt.write("caption", caption, suffix="captions.parquet")
        write_quarantined(attempt, image.column("uid"), task)
        attempt.count(Counter(image.column("status").to_pylist()))

    def probe(self, task: Task, attempt: Attempt) -> None:
        """The stage over `task.hints['rows']` alone; what it writes is thrown away."""
        image, caption, before = self._input(task, attempt)
        gone = np.flatnonzero(standing(attempt.store).named(image))
        self._fetch(image, caption, before, np.setdiff1d(task.hints["rows"], gone), task, attempt)

    def _input(self, task: Task, attempt: Attempt) -> tuple[pa.Table, pa.Table, pa.Table | None]:
        """Image and caption rows to fetch, and on a retry what the pool says of them so far."""
        inputs = list(task.inputs.values())
        record = inputs[0][0]
        image, caption = attempt.store.read_table(record, "image"), attempt.store.read_table(record, "caption")
        if "retry" not in task.payload:
            return image, caption, None
        retry = self._retryable(inputs[1], inputs[2], attempt)
        image = image.filter(pc.is_in(image.column("uid"), value_set=retry.column("uid")))
        caption = caption.filter(pc.is_in(caption.column("uid"), value_set=retry.column("uid")))
        attempt.note(**{SUPERSEDED: Counter(retry.column("status").to_pylist())})
        before = retry.take(pc.index_in(image.column("uid"), value_set=retry.column("uid")))
        return image, caption, before.drop_columns(["uid"])

    def _retryable(self, earlier: Sequence[Record], later: Sequence[Record], attempt: Attempt) -> pa.Table:
        """uid and the stage's columns of the rows that another try may change and later input did not take over."""
        names = ["uid", *self.stage.adds.names]
        newest = attempt.store.read_table(earlier[0], "image", names)
        for record in earlier[1:]:
            newest = _overruled(newest, attempt.store.read_table(record, "image", ["uid"]).column("uid"))
            newest = pa.concat_tables([newest, attempt.store.read_table(record, "image", names)])
        for record in later:
            newest = _overruled(newest, attempt.store.read_table(record, "image", ["uid"]).column("uid"))
        statuses = pa.array(sorted(self.stage.retryable), pa.string())
        return newest.filter(pc.is_in(newest.column("status"), value_set=statuses))

    def _fetch(
        self,
        image: pa.Table,
        caption: pa.Table,
        before: pa.Table | None,
        rows: np.ndarray,
        task: Task,
        attempt: Attempt,
    ) -> pa.Table:
        chosen = image.take(rows)
        groups = group_of(image, caption)
        captions = caption.take(np.flatnonzero(np.isin(groups, rows)))
        part = _Part(chosen, captions, None if before is None else before.take(rows), task.hints.get("shared"), attempt)
        function = opened(self.stage, task.hints.get("device", Device())).function
        result = guarded(self.stage, lambda: function(part))
        if result.num_rows != chosen.num_rows or result.schema.names != self.stage.adds.names:
            raise SluiceError(
                f"{type(self.stage).path()} gave {result.num_rows} rows of {result.schema.names} "
                f"for {chosen.num_rows}; it must give one row each of {self.stage.adds.names}"
            )
        return result.cast(self.stage.adds)


def _without_bytes(result: pa.Table, gone: np.ndarray, attempt: Attempt) -> pa.Table:
    """What a stage gave, with the images that it must not keep cut out of the tar that it wrote."""
    offsets = {offset for offset in result.column("offset").filter(pa.array(gone)).to_pylist() if offset is not None}
    if not offsets:
        return result
    name = f"the tar of {attempt.node} part {attempt.task.part}"
    cuts = attempt.rewrite("tar", lambda source, sink: tars.cut(source, sink, (), offsets, name))
    return tables.moved(result, cuts)


def _overruled(table: pa.Table, uids: pa.ChunkedArray) -> pa.Table:
    """The rows that do not come again."""
    return table.filter(pc.invert(pc.is_in(table.column("uid"), value_set=uids)))
