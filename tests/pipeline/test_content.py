"""A content hash says what a table says, and nothing about how Arrow happens to hold it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.content import content_hash
from pipeline.stage import OBSERVED

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.none() | st.text(max_size=5),
            "number": st.none() | st.integers(-(2**40), 2**40),
            "flag": st.none() | st.booleans(),
            "vector": st.none() | st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2),
            "captions": st.none()
            | st.lists(
                st.none()
                | st.fixed_dictionaries(
                    {"text": st.none() | st.text(max_size=3), "score": st.none() | st.floats(0, 1)}
                ),
                max_size=3,
            ),
        }
    ),
    max_size=12,
)
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("number", pa.int64()),
        ("flag", pa.bool_()),
        ("vector", pa.list_(pa.float32(), 2)),
        ("captions", pa.list_(pa.struct([("text", pa.string()), ("score", pa.float64())]))),
    ]
)


@given(ROWS, st.integers(0, 12))
def test_chunks_slices_and_parquet_do_not_change_the_hash(rows: list[dict[str, object]], cut: int) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    chunked = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    padded = pa.concat_tables([table, table]).slice(len(rows))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    read = pq.read_table(pa.BufferReader(sink.getvalue()))
    assert content_hash(table) == content_hash(chunked) == content_hash(padded) == content_hash(read)


@given(ROWS, ROWS)
def test_different_rows_have_different_hashes(one: list[dict[str, object]], other: list[dict[str, object]]) -> None:
    tables = [pa.Table.from_pylist(rows, schema=SCHEMA) for rows in (one, other)]
    same = tables[0].to_pylist() == tables[1].to_pylist() and str(tables[0].to_pylist()) == str(tables[1].to_pylist())
    assert (content_hash(tables[0]) == content_hash(tables[1])) == same


def test_bytes_under_a_null_do_not_count() -> None:
    values = pa.py_buffer(np.array([1, 2, 3], dtype=np.int32).tobytes())
    others = pa.py_buffer(np.array([1, 9, 3], dtype=np.int32).tobytes())
    valid = pa.py_buffer(bytes([0b101]))
    one, other = (pa.Array.from_buffers(pa.int32(), 3, [valid, data]) for data in (values, others))
    assert content_hash(pa.table({"x": one})) == content_hash(pa.table({"x": other}))


def test_an_empty_text_is_not_a_null() -> None:
    assert content_hash(pa.table({"x": pa.array([""])})) != content_hash(pa.table({"x": pa.array([None], pa.string())}))


def test_texts_that_join_alike_differ() -> None:
    assert content_hash(pa.table({"x": ["ab", "c"]})) != content_hash(pa.table({"x": ["a", "bc"]}))


def test_row_order_counts_and_column_order_does_not() -> None:
    table = pa.table({"a": [1, 2], "b": ["x", "y"]})
    assert content_hash(table) == content_hash(table.select(["b", "a"]))
    assert content_hash(table) != content_hash(table.take([1, 0]))


def test_observed_columns_are_left_out() -> None:
    schema = pa.schema([("uid", pa.string()), pa.field("seconds", pa.float64(), metadata=OBSERVED)])
    one, other = (pa.table([["u"], [seconds]], schema=schema) for seconds in (0.1, 0.2))
    assert content_hash(one) == content_hash(other)


def test_a_type_without_a_form_is_refused() -> None:
    with pytest.raises(TypeError, match="dictionary"):
        content_hash(pa.table({"x": pa.array(["a"]).dictionary_encode()}))


def test_the_hash_is_the_one_of_version_one() -> None:
    """A changed form would silently make every committed key stale."""
    table = pa.table({"uid": ["a", None], "n": pa.array([1, None], pa.int32()), "v": [[1.5], None]})
    assert content_hash(table) == "9561ba3a6ddb89ae2381262ee8407968"
