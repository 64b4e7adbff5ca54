"""How rows end on which a stage fails, once the crew has found them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from models.towers.halving import Halving
from pipeline import Catalog, Dag, run
from pipeline.dag import Node
from pipeline.records import Record
from pipeline.stage import Batch, Device, PartStage
from pipeline.store import Store
from pipeline.worker import Call, Fault, work
from tests.inline import Inline

TEXT = """
dag: scarce
nodes:
  numbers: {steps: [{tests.toys.Numbers: {rows: 12, parts: 2}}]}
  doubled: {from: numbers, steps: [{tests.pipeline.test_quarantine.Doubled: {too_large: 5, error: ERROR}}]}
"""


class Doubled(PartStage):
    """Doubles numbers, at most three at once, and one of them not even alone."""

    promise = "pure"
    grain = "image"
    reads = frozenset({"n"})
    adds = pa.schema([("doubled", pa.int64())])

    too_large: int
    error: str

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def double(batch: Batch) -> pa.Table:
            numbers = batch.table["n"].to_pylist()

            def some(start: int, end: int) -> list[int]:
                if self.too_large in numbers[start:end]:
                    raise {"MemoryError": MemoryError, "ValueError": ValueError}[self.error]("no")
                if end - start > 3:
                    raise MemoryError
                return [2 * number for number in numbers[start:end]]

            return pa.table({"doubled": [n for found in Halving(8, some)(len(numbers)) for n in found]})

        return double


class Quarantining(Inline):
    """Asks about every row of a part that fails, and does it again without those to blame, as the crew does."""

    def run(self, node: Node, calls: Sequence[Call], total_rows: int, done_rows: int) -> list[Record]:
        records = []
        for call in calls:
            outcome = work(self.store, call)
            if isinstance(outcome, Fault):
                faults = []
                for row in range(call.task.rows):
                    probe = replace(call.task, hints={**call.task.hints, "rows": [row]})
                    found = work(self.store, replace(call, task=probe, probe=True))
                    if isinstance(found, Fault):
                        faults.append(
                            {"row": row, "step": found.step, "error": found.error, "traceback": "", "attempts": 3}
                        )
                hints = {**call.task.hints, "exclude": [fault["row"] for fault in faults], "faults": faults}
                outcome = work(self.store, replace(call, task=replace(call.task, hints=hints)))
            assert isinstance(outcome, Record)
            records.append(outcome)
        return records


@pytest.mark.fault(37)
@pytest.mark.parametrize(("error", "status"), [("MemoryError", "oom"), ("ValueError", "quarantined")])
def test_a_row_that_does_not_fit_even_alone_ends_as_oom_and_the_others_are_done(
    error: str, status: str, tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    generations = run(Dag.parse(TEXT.replace("ERROR", error)), store.root, executor=Quarantining(store)).generations
    assert generations["doubled"].statuses == {"ok": 11, status: 1}
    with Catalog(store.root) as catalog:
        rows = catalog.sql("SELECT n, doubled FROM numbers JOIN doubled USING (uid) ORDER BY n").to_pylist()
        (told,) = catalog.sql("SELECT n, error FROM errors JOIN numbers USING (uid)").to_pylist()
    assert {row["n"]: row["doubled"] for row in rows} == {n: None if n == 5 else 2 * n for n in range(12)}
    assert told["n"] == 5
    assert error in told["error"]
