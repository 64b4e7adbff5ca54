"""Uids as numbers and back."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SluiceError
from stages.dedup.uids import halves, texts


@given(st.lists(st.binary(min_size=16, max_size=16)), st.integers(0, 3))
def test_uids_come_back_and_sort_as_their_digits_do(keys: list[bytes], skipped: int) -> None:
    uids = [key.hex() for key in keys]
    leading, trailing = halves(pa.array(uids, pa.string())[skipped:])
    assert texts(leading, trailing).to_pylist() == uids[skipped:]
    order = np.lexsort((trailing, leading))
    assert [uids[skipped:][n] for n in order] == sorted(uids[skipped:])


@pytest.mark.parametrize("uid", ["abc", "G" * 32, "ä" * 16, None])
def test_what_is_no_uid_is_named(uid: str | None) -> None:
    with pytest.raises(SluiceError, match=r"is no 32 hex digits"):
        halves(pa.chunked_array([pa.array(["0" * 32, uid])]))
