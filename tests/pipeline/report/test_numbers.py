"""Histograms against NumPy's, values that are no numbers, and the rows nearest to a threshold."""

import math
from collections.abc import Iterator, Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from pipeline.report.numbers import DROPPED, PASSED, Group, Histogram, Number, Source, histograms
from pipeline.report.thresholds import Threshold
from tests.pipeline.report.small_runs import uid

ALL = (Group("rows", "true"),)
Connection = duckdb.DuckDBPyConnection


@pytest.fixture
def connection() -> Iterator[Connection]:
    with duckdb.connect(":memory:") as opened:
        yield opened


def counted(
    connection: Connection, table: pa.Table, numbers: Sequence[Number], keys: tuple[str, ...] = (), shown: str = "true"
) -> list[Histogram]:
    connection.register("rows_", table)
    source = Source("FROM rows_", table.num_rows, keys, shown)
    return histograms(lambda query: connection.sql(query).to_arrow_table(), source, numbers)


def test_bins_count_what_numpy_counts(connection: Connection) -> None:
    rng = np.random.default_rng(1)
    columns = {
        "normal": rng.normal(size=5000),
        "edges": np.round(rng.random(5000), 2),
        "whole": rng.integers(-3, 9, 5000),
        "large": rng.integers(0, 10**9, 5000),
        "skewed": np.exp(rng.normal(0, 3, 5000)),
    }
    numbers = [Number(name, name, "true", ALL) for name in columns]
    for found, values in zip(counted(connection, pa.table(columns), numbers), columns.values(), strict=True):
        assert found.axis is not None
        edges = np.asarray(found.axis.edges)
        inside = values[(values >= edges[0]) & (values <= edges[-1])]
        assert found.counts["rows"] == tuple(np.histogram(inside, edges)[0]), found.title
        assert found.below == (values < edges[0]).sum()
        assert found.above == (values > edges[-1]).sum()
        assert found.spread.quantiles[2] == pytest.approx(np.median(values), abs=np.ptp(values) / 1000)


def test_null_nan_and_infinite_are_counted_apart(connection: Connection) -> None:
    table = pa.table({"x": pa.array([1.0, 2.0, None, math.nan, math.inf, -math.inf, math.nan], pa.float32())})
    (found,) = counted(connection, table, [Number("x", "x", "true", ALL)])
    spread = found.spread
    assert (spread.rows, spread.nulls, spread.nans, spread.infinite, spread.finite) == (7, 1, 2, 2, 2)
    assert (spread.low, spread.high) == (1.0, 2.0)
    assert sum(found.counts["rows"]) == 2


def test_a_column_without_a_finite_value_has_no_bins(connection: Connection) -> None:
    table = pa.table({"x": pa.array([None, math.nan], pa.float64()), "y": [1, 2]})
    none, some = counted(connection, table, [Number("x", "x", "true", ALL), Number("y", "y", "true", ALL)])
    assert none.axis is None
    assert sum(some.counts["rows"]) == 2


def test_what_a_rule_never_saw_is_neither_counted_nor_computed(connection: Connection) -> None:
    table = pa.table({"text": ["1", "2", "no number"], "seen": [True, True, False]})
    (found,) = counted(connection, table, [Number("text", "CAST(text AS INTEGER)", "seen", ALL)])
    assert found.spread.rows == sum(found.counts["rows"]) == 2


def rule(sql: str, *thresholds: Threshold, dropped: str) -> Number:
    return Number(sql, sql, "true", (Group(PASSED, f"NOT ({dropped})"), Group(DROPPED, dropped)), thresholds, nearest=3)


def pairs(values: Sequence[float]) -> pa.Table:
    uids = [uid(place) for place in range(len(values))]
    return pa.table({"uid": uids, "caption_id": uids, "x": values, "has": [True] * len(values)})


KEYS = ("uid", "caption_id")


def test_the_rows_nearest_to_a_threshold_stand_on_their_side_of_it(connection: Connection) -> None:
    values = [0.0, 0.1, 0.2, 0.27, 0.28, 0.3, 0.5, 0.9]
    number = rule("x", Threshold("aligned", ">=", 0.28), dropped="x < 0.28")
    (found,) = counted(connection, pairs(values), [number], keys=KEYS, shown="has")
    (side,) = found.sides
    assert [(near.value, near.group) for near in side.below] == [(0.27, DROPPED), (0.2, DROPPED), (0.1, DROPPED)]
    assert [(near.value, near.group) for near in side.above] == [(0.28, PASSED), (0.3, PASSED), (0.5, PASSED)]
    assert side.above[0].uid == uid(4)


def test_equal_to_the_limit_of_at_most_is_below_it(connection: Connection) -> None:
    number = rule("x", Threshold("slim", "<=", 3.0), dropped="x > 3")
    (found,) = counted(connection, pairs([1.0, 3.0, 4.0]), [number], keys=KEYS, shown="has")
    (side,) = found.sides
    assert [near.value for near in side.below] == [3.0, 1.0]
    assert [near.value for near in side.above] == [4.0]


def test_rows_that_another_condition_dropped_come_last(connection: Connection) -> None:
    number = rule("x", Threshold("both", ">=", 1.0), dropped="x < 1 OR x = 1.5")
    (found,) = counted(connection, pairs([0.5, 1.5, 2.0, 3.0]), [number], keys=KEYS, shown="has")
    assert [(near.value, near.group) for near in found.sides[0].above] == [(2.0, PASSED), (3.0, PASSED), (1.5, DROPPED)]


def test_rows_without_a_picture_are_not_shown_and_an_image_is_shown_once(connection: Connection) -> None:
    table = pa.table(
        {"uid": list("aabc"), "caption_id": list("1234"), "x": [1.0, 1.1, 1.2, 1.3], "has": [True, True, False, True]}
    )
    number = rule("x", Threshold("r", ">=", 1.0), dropped="x < 1")
    (found,) = counted(connection, table, [number], keys=KEYS, shown="has")
    assert [(near.uid, near.caption_id) for near in found.sides[0].above] == [("a", "1"), ("c", "4")]


def test_a_threshold_that_comes_from_all_rows_lies_where_the_verdicts_part(
    connection: Connection,
) -> None:
    values = [0.1, 0.2, 0.3, 0.4]
    half = rule("x", Threshold("top", ">=", None), dropped="x < 0.3")
    rest = rule("x", Threshold("bottom", "<", None), dropped="x >= 0.3")
    neither = rule("x", Threshold("mixed", ">=", None), dropped="x IN (0.1, 0.4)")
    found = counted(connection, pairs(values), [half, rest, neither], keys=KEYS, shown="has")
    assert [[value for _, value in one.thresholds] for one in found] == [[0.3], [0.2], []]


def test_the_axis_of_many_rows_is_decided_by_a_sample_and_the_counts_are_not(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.report.numbers.SAMPLED", 500)
    values = np.random.default_rng(3).normal(size=4000)
    (found,) = counted(connection, pairs(list(values)), [Number("x", "x", "true", ALL)], keys=KEYS)
    assert sum(found.counts["rows"]) + found.below + found.above == 4000
    assert found.spread.quantiles[2] == pytest.approx(0, abs=0.2)
    assert found.spread.low == values.min()


def test_the_nearest_of_many_rows_are_found_though_a_sample_narrows_them(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.report.numbers.SAMPLED", 400)
    values = np.random.default_rng(4).normal(size=4000).round(4)
    number = rule("x", Threshold("r", ">=", 0.5), dropped="x < 0.5 OR x = 0.51")
    rare = rule("x", Threshold("r", ">=", 3.1), dropped="x < 3.1")
    found = counted(connection, pairs(list(values)), [number, rare], keys=KEYS, shown="has")
    below, above = np.sort(values[values < 0.5])[::-1], np.sort(values[(values >= 0.5) & (values != 0.51)])
    assert [near.value for near in found[0].sides[0].below] == list(below[:3])
    assert [near.value for near in found[0].sides[0].above] == list(above[:3])
    assert [near.value for near in found[1].sides[0].above] == list(np.sort(values[values >= 3.1])[:3])
