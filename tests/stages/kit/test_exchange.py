"""Rows that are cut by place: each is in exactly one bucket, however many phases it took."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.records import Record, digest
from pipeline.stage import Task
from pipeline.store import Store
from stages.kit import exchange
from stages.kit.exchange import PLACE, Scatter, gather


def scattered(store: Store, rows: list[int], name: str = "a", at_once: int = 7, bits: int = 0) -> Record:
    """A record with the given places; `n` counts the rows."""
    with Attempt(store, "node", "cut", Task(name), digest([name, rows, at_once])) as attempt:
        scatter = Scatter(attempt, bits)
        for start in range(0, len(rows), at_once):
            places = np.asarray(rows[start : start + at_once], dtype=np.uint64)
            numbers = pa.array(range(start, start + len(places)), pa.int64())
            scatter.add(pa.table([pa.array(places), numbers], schema=pa.schema([PLACE, ("n", pa.int64())])))
        scatter.close()
        attempt.note(bits=bits)
        return attempt.commit()


def reading(store: Store) -> Attempt:
    return Attempt(store, "node", "read", Task("reader"), "0")


@given(st.lists(st.integers(0, 2**64 - 1), max_size=60), st.integers(0, 8), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_buckets_part_the_rows(
    tmp_path_factory: pytest.TempPathFactory, places: list[int], bits: int, many_runs: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "RUN_ROWS", 10 if many_runs else 1000)
        store = Store(str(tmp_path_factory.mktemp("exchange")))
        record = scattered(store, places)
    found: list[tuple[int, int]] = []
    for bucket in range(1 << bits):
        for table in gather(reading(store), [record], bits, bucket):
            rows = list(zip(table.column("_place").to_pylist(), table.column("n").to_pylist(), strict=True))
            assert all(place >> (64 - bits) == bucket for place, _ in rows)
            found += rows
    assert sorted(found) == sorted((place, n) for n, place in enumerate(places))


def test_a_bucket_narrower_than_a_slice_is_found_in_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    record = scattered(store, [1 << 54, 3 << 54])
    assert [table.num_rows for table in gather(reading(store), [record], 10, 3)] == [2]
    assert list(gather(reading(store), [record], 10, 4)) == []


def test_rows_that_were_cut_once_are_cut_finer(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    places = [(7 << 56) + (n << 48) for n in (9, 200, 9, 3)]
    record = scattered(store, places, bits=8)
    (table,) = gather(reading(store), [record], 16, (7 << 8) + 9, ["n"])
    assert table.to_pydict() == {"n": [0, 2]}


def test_a_damaged_slice_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    record = scattered(store, [1 << 60, 2 << 60])
    file = record.file("rows")
    assert file is not None
    path = tmp_path / store.place(record, file)
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    assert [table.num_rows for table in gather(reading(store), [record], 4, 1)] == [1]
    with pytest.raises(SluiceError, match=r"rows\.arrows is corrupt at byte \d+; `sluice verify"):
        list(gather(reading(store), [record], 4, 2))


def test_what_was_cut_is_the_same_content_wherever_it_lies(tmp_path: Path) -> None:
    one, other = (scattered(Store(str(tmp_path / name)), [5, 1 << 63, 9]) for name in ("a", "b"))
    assert one.content_hash == other.content_hash
    assert one.content_hash != scattered(Store(str(tmp_path / "c")), [5, 1 << 63, 8]).content_hash
