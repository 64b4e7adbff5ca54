"""The shuffle: exact, seeded, and the same whoever computes which part of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.shard.permutation import permuted


@given(st.integers(1, 5000), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_the_shuffle_is_a_permutation_whoever_computes_which_part(total: int, seed: int) -> None:
    whole = permuted(np.arange(total), total, seed)
    assert np.array_equal(np.sort(whole), np.arange(total))
    some = np.random.default_rng(seed).integers(0, total, 20)
    assert np.array_equal(permuted(some, total, seed), whole[some])


def test_the_shuffle_moves_samples_as_chance_does() -> None:
    total = 20_000
    places = permuted(np.arange(total), total, 7)
    assert abs(np.corrcoef(np.arange(total), places)[0, 1]) < 0.03
    assert (places == np.arange(total)).sum() < 8, "a random permutation leaves one in place on average"
    neighbours = np.abs(np.diff(places)).mean()
    assert neighbours == pytest.approx(total / 3, rel=0.03)
