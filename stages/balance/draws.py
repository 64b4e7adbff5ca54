"""Chance of its own for every row, and how often what it belongs to stands in the pool."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.attempt import Attempt
from pipeline.records import Record
from pipeline.stage import Task, Work

FAN_IN = 256
"""Records that one task sums up at most."""
COUNTS = pa.schema([("entry", pa.int32()), ("count", pa.int64())])

Chances = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def draws(seed: int, keys: pa.Table) -> Chances:
    """float64 (rows,) in [0, 1): from the seed and the row's keys alone, whatever part or worker it is in."""
    columns = [column.to_pylist() for column in keys.columns]
    prefix = blake2b(f"balance/{seed}".encode(), digest_size=8)
    found = np.empty(keys.num_rows, np.float64)
    for row, key in enumerate(zip(*columns, strict=True)):
        hasher = prefix.copy()
        hasher.update("/".join(key).encode())
        found[row] = int.from_bytes(hasher.digest(), "big") >> 11
    return found / (1 << 53)


def statuses(kept: npt.NDArray[np.bool_], counted: npt.NDArray[np.bool_]) -> dict[str, int]:
    """How the rows of a part ended."""
    balanced = int((kept & counted).sum())
    return {"balanced": balanced, "left_out": int(counted.sum()) - balanced, "not_counted": int((~counted).sum())}


def write_counts(attempt: Attempt, entries: npt.NDArray[np.int64]) -> None:
    """How often each number stands in `entries`."""
    numbers, counts = np.unique(entries, return_counts=True)
    attempt.write("counts", pa.table([numbers.astype(np.int32), counts.astype(np.int64)], schema=COUNTS))


def summed(work: Work, records: Sequence[Record]) -> Record:
    """The counts of all records together, as one record; no task reads more than `FAN_IN` of them."""
    level = 0
    while level == 0 or len(records) > 1:
        groups = [tuple(records[start : start + FAN_IN]) for start in range(0, len(records), FAN_IN)] or [()]
        tasks = [Task(f"{level}-{number:05d}", inputs={"counts": group}) for number, group in enumerate(groups)]
        records = work.map(f"sum{level}", tasks, add, final=False)
        level += 1
    return records[0]


def add(task: Task, attempt: Attempt) -> None:
    """A phase's `do`: the sum of some counts."""
    tables = [attempt.read(record, "counts") for record in task.inputs["counts"]]
    table = pa.concat_tables([COUNTS.empty_table(), *tables])
    sums = table.group_by("entry", use_threads=False).aggregate([("count", "sum")]).sort_by("entry")
    attempt.write("counts", pa.table([sums.column("entry"), sums.column("count_sum")], schema=COUNTS))


def read_counts(attempt: Attempt, record: Record) -> Counts:
    """int64 (entries,): the count of every number up to the largest that stands anywhere."""
    table = attempt.read(record, "counts")
    numbers = table.column("entry").to_numpy()
    counts = np.zeros(int(numbers.max(initial=-1)) + 1, np.int64)
    counts[numbers] = table.column("count").to_numpy()
    return counts
