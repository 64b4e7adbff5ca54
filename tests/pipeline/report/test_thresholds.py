"""Which numbers rules compare, and with what."""

import pyarrow as pa
import pytest

from pipeline.errors import SluiceError
from pipeline.report.thresholds import measures
from pipeline.stage import Column

COLUMNS = [
    Column("width", "pool", "image", pa.int32()),
    Column("height", "pool", "image", pa.int32()),
    Column("status", "pool", "image", pa.string()),
    Column("seen", "pool", "image", pa.timestamp("us")),
    Column("blank", "scores", "image", pa.bool_()),
    Column("clip", "scores", "caption", pa.float32()),
    Column("tags", "scores", "caption", pa.list_(pa.int32())),
]


def found(rule: str) -> list[tuple[str, list[tuple[str, float | None]]]]:
    """(what is measured, its relations and values) of one rule."""
    measured = measures({"rule": rule}, COLUMNS)["rule"]
    return [(m.title, [(threshold.relation, threshold.value) for threshold in m.thresholds]) for m in measured]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("clip >= 0.28", [("clip", [(">=", 0.28)])]),
        ("0.28 <= clip", [("clip", [(">=", 0.28)])]),
        ("clip > -0.1 AND clip < 1e-3 + 2", [("clip", [(">", -0.1), ("<", 2.001)])]),
        ("clip BETWEEN 0.2 AND 0.9", [("clip", [(">=", 0.2), ("<=", 0.9)])]),
        ("least(width, height) >= 200", [("least(width, height)", [(">=", 200.0)])]),
        ("width / height <= 3", [("width / height", [("<=", 3.0)])]),
        ("width < 2 * height", [("width - (2 * height)", [("<", 0.0)])]),
        ("NOT blank AND clip <= 0.15 OR 300 > width", [("clip", [("<=", 0.15)]), ("width", [("<", 300.0)])]),
        ("coalesce(clip >= 0.5, false)", [("clip", [(">=", 0.5)])]),
        ("CASE WHEN width > 3 THEN height <> 2 ELSE true END", [("width", [(">", 3.0)]), ("height", [("<>", 2.0)])]),
        ("scores.clip = 1", [("scores.clip", [("=", 1.0)])]),
        ("length(status) > 3", [("length(status)", [(">", 3.0)])]),
        ("clip >= quantile_cont(clip, 0.7) OVER ()", [("clip", [(">=", None)])]),
        ("max(clip) OVER () * 0.9 < clip", [("clip", [(">", None)])]),
    ],
)
def test_what_is_compared_is_measured_and_its_threshold_is_known(
    rule: str, expected: list[tuple[str, list[tuple[str, float | None]]]]
) -> None:
    near = [(t, [(r, v if v is None else pytest.approx(v)) for r, v in marks]) for t, marks in expected]
    assert found(rule) == near


@pytest.mark.parametrize(
    "rule",
    [
        "status = 'success'",
        "status > 'a'",
        "blank = false",
        "seen >= TIMESTAMP '2026-01-01'",
        "1 < 2",
        "row_number() OVER (ORDER BY clip) <= 1000",
        "uid = first_value(uid) OVER (PARTITION BY status ORDER BY uid)",
        "list_contains(list_transform(tags, lambda x: x > 3), true)",
        "width IS NOT NULL",
    ],
)
def test_what_is_no_number_of_a_row_is_not_measured(rule: str) -> None:
    assert found(rule) == []


def test_a_column_that_no_node_has_is_an_error() -> None:
    with pytest.raises(SluiceError, match=r"'clop'.*did you mean 'clip'"):
        measures({"rule": "clop > 1"}, COLUMNS)
