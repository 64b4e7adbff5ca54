"""What is done with single images before a batch is worked on: read, decoded and prepared, once, ahead, in threads."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import Dag, run
from pipeline.partwork import PartWork, Turn
from pipeline.stage import PIXELS, Batch, Device, PartStage, Prepare
from pipeline.store import Store
from pipeline.worker import Call, Fault, work
from tests.inline import Inline

ROWS, BATCH_ROWS = 20, 4
TEXT = f"""
dag: ahead
nodes:
  urls: {{steps: [{{tests.toys.Numbers: {{rows: {ROWS}, parts: 1}}}}]}}
  pool: {{from: urls, steps: [{{tests.benchmarks.pictures.Pictures: {{side: 24}}}}]}}
  seen: {{from: pool, workers: {{batch_rows: {BATCH_ROWS}}}, steps: [{{steps}}]}}
"""
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Cut:
    """The upper left corner; notes in which thread it was cut."""

    side: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if self.side > image.shape[0]:
            raise ValueError(f"no corner of {self.side} px in {image.shape}")
        Noted.cut.append((self.side, threading.current_thread().name))
        return image[: self.side, : self.side]


class Noted:
    cut: list[tuple[int, str]] = []
    worked: list[str] = []


class Corner(PartStage):
    """The mean of the corner; or of the whole image, where `side` is 0."""

    promise = "pure"
    grain = "image"
    reads = frozenset({PIXELS})

    column: str = "corner"
    side: int = 8

    def gives(self) -> pa.Schema:
        return pa.schema([(self.column, pa.float64())])

    def prepares(self, device: Device) -> Prepare | None:
        return Cut(self.side) if self.side else None

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def means(batch: Batch) -> pa.Table:
            images = batch.images(self.prepares(device))
            Noted.worked.append(threading.current_thread().name)
            return pa.table({self.column: [None if one is None else one.mean() for one in images]}, self.gives())

        return means


@pytest.fixture(autouse=True)
def nothing_noted() -> None:
    Noted.cut, Noted.worked = [], []


class Threaded(Inline):
    """Calls in this process, with threads that decode and a turn to wait for."""

    device = Device(threads=3)

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.turn = threading.Lock()
        self.seen: list[Call] = []

    def run(self, node: Any, calls: Any, total_rows: int, done_rows: int) -> Any:
        hints = {"device": self.device, "batch_rows": node.workers.batch_rows, "turn": Turn(self.turn)}
        told = [replace(call, task=replace(call.task, hints={**call.task.hints, **hints})) for call in calls]
        self.seen = told if node.name == "seen" else self.seen
        return super().run(node, told, total_rows, done_rows)


def ran(tmp_path: Path, *steps: str, kind: type[Inline] = Threaded) -> tuple[pa.Table, Inline]:
    store = Store(str(tmp_path))
    executor = kind(store)
    text = TEXT.replace("{steps}", ", ".join(f"{{tests.pipeline.test_ahead.Corner: {step}}}" for step in steps))
    result = run(Dag.parse(text), store.root, executor=executor)
    (record,) = result.generations["seen"].records
    return store.read_table(record, "image"), executor


def test_equal_preparations_are_done_once_for_all_steps_and_in_the_decoding_threads(tmp_path: Path) -> None:
    table, _ = ran(tmp_path, "{}", "{column: again}", "{column: other, side: 5}", "{column: whole, side: 0}")
    assert sorted(side for side, _ in Noted.cut) == ROWS * [5] + ROWS * [8]
    assert not {name for _, name in Noted.cut} & set(Noted.worked)
    assert table["corner"].equals(table["again"])
    assert not table["corner"].equals(table["other"])
    assert len(Noted.worked) == 4 * ROWS // BATCH_ROWS


def test_one_core_prepares_each_batch_as_it_comes_to_the_same_numbers(tmp_path: Path) -> None:
    apart, _ = ran(tmp_path / "one", "{}", kind=Inline)
    assert {name for _, name in Noted.cut} == set(Noted.worked)
    ahead, _ = ran(tmp_path / "three", "{}")
    assert apart["corner"].equals(ahead["corner"])


def test_the_first_images_of_a_part_are_prepared_while_another_part_has_its_turn(tmp_path: Path) -> None:
    _, executor = ran(tmp_path, "{}")
    assert isinstance(executor, Threaded)
    (call,) = executor.seen
    again = replace(call, work_key="again")
    found: list[Any] = []
    with executor.turn:
        thread = threading.Thread(target=lambda: found.append(work(executor.store, again)))
        thread.start()
        until(lambda: len(Noted.cut) >= ROWS + 2 * BATCH_ROWS)
        assert len(Noted.worked) == ROWS // BATCH_ROWS
    thread.join(PATIENCE_S)
    assert found[0].rows == {"image": ROWS}
    assert len(Noted.cut) == 2 * ROWS


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def test_an_image_that_cannot_be_prepared_is_the_fault_of_the_step_that_looks(tmp_path: Path) -> None:
    _, executor = ran(tmp_path, "{}")
    assert isinstance(executor, Threaded)
    (call,) = executor.seen
    assert isinstance(call.do, PartWork)
    broken = replace(call, do=replace(call.do, steps=(Corner(side=25),)), work_key="broken")
    fault = work(executor.store, broken)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.step) == ("stage", "tests.pipeline.test_ahead.Corner")
    assert "no corner of 25 px" in fault.error
