"""What the workers of a node share: one object for all of them, made anew where its process dies."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import Dag, run
from pipeline.identity import node_identity
from pipeline.stage import Device, PoolPart, PoolStage
from pipeline.store import Store
from tests.inline import Inline
from tests.toys import Fetch

TEXT = """
dag: shared
nodes:
  urls: {steps: [{tests.toys.Numbers: {rows: 64, parts: 16}}]}
  pool: {from: urls, workers: {count: 2, cpus: 1}, steps: [{tests.pipeline.test_shared.Counted: {KILL}}]}
"""


class Counter:
    """Counts the calls, and says in which process they were counted."""

    def __init__(self) -> None:
        self.count = 0

    def next(self, worker: int, kill_at: int, mark: str) -> tuple[int, int, int]:
        self.count += 1
        if self.count == kill_at and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.count, os.getpid(), worker


class Counted(PoolStage):
    """Gives every row a number that no other row of the run has."""

    promise = "observed"
    adds = pa.schema(
        [("status", pa.string()), ("number", pa.int64()), ("counted_in", pa.int64()), ("asked_from", pa.int64())]
    )

    kill_at: int = 0
    mark: str = ""

    def shared(self) -> Counter:
        return Counter()

    def open(self, device: Device) -> Callable[[PoolPart], pa.Table]:
        def count(part: PoolPart) -> pa.Table:
            part.create("tar").write(b"")
            if part.shared is None:
                return pa.table([["alone"] * part.image.num_rows, *[[0] * part.image.num_rows] * 3], schema=self.adds)
            calls = [part.shared.call("next", os.getpid(), self.kill_at, self.mark) for _ in range(part.image.num_rows)]
            rows = [call.result(60) for call in calls]
            return pa.table([["success"] * len(rows), *zip(*rows, strict=True)], schema=self.adds)

        return count


def pool(root: Path, kill: str = "") -> dict[str, list[int]]:
    run(Dag.parse(TEXT.replace("KILL", kill)), str(root))
    store = Store(str(root))
    generation = store.newest("pool")
    assert generation is not None
    tables = [store.read_table(record, "image") for record in generation.records]
    found: dict[str, list[int]] = pa.concat_tables(tables).to_pydict()
    return found


@pytest.mark.timeout(120)
def test_the_workers_of_a_node_share_one_object(tmp_path: Path) -> None:
    rows = pool(tmp_path / "root")
    assert sorted(rows["number"]) == list(range(1, 65))
    (keeper,) = set(rows["counted_in"])
    assert keeper not in rows["asked_from"]
    assert len(set(rows["asked_from"])) == 2


@pytest.mark.timeout(120)
def test_an_object_whose_process_dies_is_made_anew_and_every_call_is_answered(tmp_path: Path) -> None:
    mark = tmp_path / "killed"
    rows = pool(tmp_path / "root", f"kill_at: 20, mark: {mark}")
    assert mark.exists()
    assert len(set(rows["counted_in"])) == 2, "the object was made anew"
    assert len(rows["number"]) == 64
    assert max(rows["number"]) < 64, "the new object knows nothing of what the old one counted"


def test_a_stage_without_the_engine_has_nothing_shared_and_one_that_shares_nothing_starts_no_process(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path / "root"))
    run(Dag.parse(TEXT.replace("KILL", "")), str(tmp_path / "root"), executor=Inline(store))
    generation = store.newest("pool")
    assert generation is not None
    assert generation.statuses == {"alone": 64}
    assert Fetch().shared() is None


def test_a_parameter_marked_as_effort_is_no_part_of_the_identity() -> None:
    from typing import Annotated

    from pydantic import Field

    from pipeline.stage import Effort

    class Patient(Fetch):
        timeout_s: Annotated[float, Effort, Field(gt=0)] = 10.0
        strict: Annotated[bool, Field()] = True

    assert node_identity([Patient(timeout_s=1)], 0) == node_identity([Patient(timeout_s=2)], 0)
    assert node_identity([Patient(strict=False)], 0) != node_identity([Patient()], 0)
