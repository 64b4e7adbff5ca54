"""The parts of a pool one by one: each with its records in every input, and which of its rows still count.

def assemble(self, work):
    tasks = part_tasks(work.inputs, {"columns": tuple(columns)})
    return work.map("parts", tasks, self.do)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.records import Generation, Record
from pipeline.rows import PartRows
from pipeline.stage import Task

REPLACING = "-"
"""Among the inputs of a task, where nodes have names: the records whose uids no longer count in this part."""


def part_tasks(inputs: Mapping[str, Generation], hints: Mapping[str, Any], counted: bool = False) -> list[Task]:
    """One task per part of the first input, with the records of the same part in the others.

    `counted`: `counting` will be asked, so that a part's work changes when a retry takes over some of its rows.
    Raises `SluiceError` where an input lacks a part.
    """
    first, *others = inputs.values()
    replacing: dict[str, list[Record]] = {}
    for record in first.records if counted else ():
        for part in record.supersedes:
            replacing.setdefault(part, []).append(record)
    tasks = []
    for record in first.records:
        records: dict[str, tuple[Record, ...]] = {first.node: (record,)}
        for other in others:
            match = other.for_part(record.part)
            if match is None:
                raise SluiceError(f"{other.node} has no part {record.part}, which {first.node} has; run again")
            records[other.node] = (match,)
        if counted:
            records[REPLACING] = tuple(replacing.get(record.part, ()))
        rows = record.rows.get("image") or record.rows.get("caption", 0)
        tasks.append(Task(record.part, {}, records, record.supersedes, rows, hints))
    return tasks


def rows_of(task: Task, attempt: Attempt) -> PartRows:
    """The rows of a task's part, with the columns that its hints name."""
    inputs = {node: records for node, records in task.inputs.items() if node != REPLACING}
    return PartRows.load(attempt.store, inputs, task.hints["columns"])


def counting(task: Task, attempt: Attempt, uids: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Whether each row counts; a retry or later input has taken over the others."""
    found = []
    for record in task.inputs[REPLACING]:
        kind = next(kind for kind in ("image", "caption") if record.file(kind))
        found.append(attempt.read(record, kind, ["uid"]))
    if not found:
        return np.ones(len(uids), dtype=bool)
    return ~np.asarray(pc.is_in(uids, value_set=pa.concat_tables(found).column("uid").combine_chunks()))
