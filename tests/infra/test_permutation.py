"""A permutation is a bijection, known place by place, and looks like chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.miniweb.permutation import Permutation


@given(st.integers(1, 700), st.text(max_size=5))
def test_every_number_has_one_place_and_every_place_its_number(size: int, seed: str) -> None:
    order = Permutation(size, seed)
    places = [order.place(number) for number in range(size)]
    assert sorted(places) == list(range(size))
    assert [order.number(place) for place in places] == list(range(size))


def test_places_scatter_evenly() -> None:
    order = Permutation(10_000, "a")
    places = np.array([order.place(number) for number in range(10_000)])
    assert abs(np.corrcoef(places, np.arange(10_000))[0, 1]) < 0.05
    tenths = np.histogram2d(places, np.arange(10_000), bins=10)[0]
    assert 60 < tenths.min() < 100 < tenths.max() < 140  # 100 expected, a standard deviation of about 10


def test_another_seed_is_another_order() -> None:
    one, other = Permutation(1000, "a"), Permutation(1000, "b")
    assert sum(one.place(number) == other.place(number) for number in range(1000)) < 10


def test_outside_is_an_error() -> None:
    for number in (-1, 7):
        with pytest.raises(IndexError, match=r"outside of 0 … 6"):
            Permutation(7, "a").place(number)
    with pytest.raises(ValueError, match="size is 0"):
        Permutation(0, "a")
