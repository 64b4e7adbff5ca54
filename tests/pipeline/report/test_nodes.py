"""What records say of the time that work took."""

from pathlib import Path

from pipeline.attempt import Attempt
from pipeline.records import SECONDS, Generation, Record
from pipeline.report.nodes import node_report
from pipeline.stage import Task
from pipeline.store import Store
from pipeline.worker import Call, work
from tests.pipeline.report.small_runs import Row, keys


def write_two(task: Task, attempt: Attempt) -> None:
    attempt.write("caption", keys([Row("a" * 32), Row("b" * 32)]))
    attempt.count({"ok": 2})


def done(root: Path) -> Record:
    found = work(Store(str(root)), Call("node", "parts", Task("000-0"), "key", write_two))
    assert isinstance(found, Record)
    return found


def test_a_record_says_how_long_its_work_took_outside_of_every_hash(tmp_path: Path) -> None:
    one, other = done(tmp_path / "one"), done(tmp_path / "other")
    assert 0 <= one.notes[SECONDS] < 60
    assert one.content_hash == other.content_hash
    later = one.model_copy(update={"notes": {SECONDS: 1e6}})
    assert (later.content_hash, later.bytes_hash()) == (one.content_hash, one.bytes_hash())


def test_the_rate_counts_the_parts_that_say_how_long_they_took(tmp_path: Path) -> None:
    record = done(tmp_path)
    timed = record.model_copy(update={"part": "000-0", "notes": {SECONDS: 0.5}})
    untimed = record.model_copy(update={"part": "000-1", "notes": {}})

    def of(*records: Record) -> Generation:
        return Generation(node="node", number=1, key="", identity={}, inputs={}, records=records)

    mixed = node_report(of(timed, untimed))
    assert (mixed.rows, mixed.timed_rows, mixed.timed_parts, mixed.per_second) == (4, 2, 1, 4.0)
    assert node_report(of(untimed)).per_second is None
