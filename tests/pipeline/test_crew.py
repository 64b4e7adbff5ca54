"""How parts come to workers."""

import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import Dag, crew, run
from pipeline.stage import Batch, Device, PartStage
from pipeline.store import Store

PATIENCE_S = 60.0
TEXT = """
dag: crew
nodes:
  numbers: {workers: {count: 2}, steps: [{tests.toys.Numbers: {rows: 8, parts: 2}}]}
  met: {from: numbers, workers: {count: 2}, steps: [{tests.pipeline.test_crew.Meeting: {folder: FOLDER, parts: 2}}]}
"""


class Meeting(PartStage):
    """Every part waits until `parts` parts have begun; what it gives says whether they did."""

    promise = "pure"
    grain = "image"
    reads = frozenset({"n"})
    adds = pa.schema([("met", pa.bool_())])

    folder: str
    parts: int

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def meet(batch: Batch) -> pa.Table:
            folder = Path(self.folder)
            (folder / str(batch.table["n"][0])).touch()
            until = time.monotonic() + PATIENCE_S
            while len(list(folder.iterdir())) < self.parts and time.monotonic() < until:
                time.sleep(0.01)
            return pa.table({"met": [len(list(folder.iterdir())) >= self.parts] * batch.table.num_rows})

        return meet


@pytest.mark.timeout(180)
def test_two_long_parts_go_to_two_workers_and_not_one_behind_the_other(tmp_path: Path) -> None:
    folder = tmp_path / "begun"
    folder.mkdir()
    run(Dag.parse(TEXT.replace("FOLDER", str(folder))), str(tmp_path / "root"))
    store = Store(str(tmp_path / "root"))
    generation = store.newest("met")
    assert generation is not None
    tables = [store.read_table(record, "image") for record in generation.records]
    assert pa.concat_tables(tables).column("met").to_pylist() == [True] * 8


def test_while_a_gang_waits_for_its_cpus_idle_workers_go_and_busy_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[str] = []
    monkeypatch.setattr("ray.kill", killed.append)
    leading = crew.Lane(crew.LEADER, 1, flying=1)
    hands = {name: crew.Hand(name, crew.Size(1, 0), None) for name in ("idle", "busy", "wanted")}  # type: ignore[arg-type]
    hands["leader"] = crew.Hand("leader", crew.LEADER, None)  # type: ignore[arg-type]
    hands["busy"].calls = {"a part": object()}  # type: ignore[dict-item]
    hands["wanted"].size = crew.Size(2, 0)
    own = object.__new__(crew.Crew)
    order = object()
    vars(own).update(_hands=list(hands.values()), _lanes=[leading, crew.Lane(crew.Size(2, 0), 1)])
    own._lanes[1].waiting.append(order)  # type: ignore[arg-type]
    own._hire()
    assert killed == ["idle"]
    leading.flying = 0
    hands["busy"].calls = {}
    own._hire()
    assert killed == ["idle"], "without a gang, workers stay warm for the next node"
