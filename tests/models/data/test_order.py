"""Every place has its sample, whoever asks: all samples once an epoch, and sets by their weights everywhere."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.index import DataError
from models.data.order import Order, dice

seeds = st.integers(0, 1 << 62)
sizes = st.integers(1, 300)
weights = st.sampled_from([0.001, 0.01, 0.1, 0.25, 1 / 3, 0.5, 1, 2.5, 7, 1000])
mixtures = st.dictionaries(st.sampled_from("abcde"), st.tuples(sizes, weights), min_size=1)


GOLDEN = [("trusted", 20), ("shards", 52), ("shards", 8), ("shards", 218), ("trusted", 12)]
GOLDEN_INSTEAD = ("shards", 1212)
GOLDEN_DICE = 0.4796186554056069


def order_of(mixture: dict[str, tuple[int, float]], seed: int) -> Order:
    return Order({name: size for name, (size, _) in mixture.items()}, {n: w for n, (_, w) in mixture.items()}, seed)


@given(sizes, st.integers(0, 5), seeds)
def test_every_epoch_is_all_samples_once_in_an_order_of_its_own(size: int, epoch: int, seed: int) -> None:
    order = Order({"a": size}, {"a": 1}, seed)
    _, samples = order.span(epoch * size, (epoch + 2) * size)
    assert sorted(samples[:size]) == sorted(samples[size:]) == list(range(size))
    if size > 20:
        assert samples[:size].tolist() != samples[size:].tolist()
        assert samples[:size].tolist() != list(range(size))


@given(mixtures, seeds, st.integers(0, 1 << 40), st.integers(1, 50), st.integers(0, 50))
def test_a_span_is_its_places_one_by_one(
    mixture: dict[str, tuple[int, float]], seed: int, start: int, count: int, cut: int
) -> None:
    order = order_of(mixture, seed)
    sets, samples = order.span(start, start + count)
    cut = start + min(cut, count)
    parts = [order.span(start, cut), order.span(cut, start + count)]
    assert np.array_equal(sets, np.concatenate([part[0] for part in parts]))
    assert np.array_equal(samples, np.concatenate([part[1] for part in parts]))
    assert order.at(start) == (order.names[sets[0]], samples[0])


@given(mixtures, seeds, st.integers(1, 2000), st.integers(0, 1 << 40))
def test_sets_have_their_weight_in_the_first_n_and_in_any_n(
    mixture: dict[str, tuple[int, float]], seed: int, count: int, start: int
) -> None:
    order = order_of(mixture, seed)
    total = sum(weight for _, weight in mixture.values())
    for first in (0, start):
        sets, _ = order.span(first, first + count)
        for number, name in enumerate(order.names):
            wanted = count * mixture[name][1] / total
            assert abs(np.sum(sets == number) - wanted) < 2 * len(mixture)


@given(mixtures, seeds)
def test_every_set_is_gone_through_in_its_own_order_without_a_gap(
    mixture: dict[str, tuple[int, float]], seed: int
) -> None:
    order = order_of(mixture, seed)
    sets, samples = order.span(0, 3000)
    for number, name in enumerate(order.names):
        mine = samples[sets == number].tolist()
        _, alone = Order({name: mixture[name][0]}, {name: 1}, seed).span(0, len(mine))
        assert mine == alone.tolist()


def test_a_share_is_exact_after_billions_of_places() -> None:
    order = Order({"a": 7, "b": 11, "c": 13}, {"a": 0.7, "b": 0.2, "c": 0.1}, 0)
    epochs = order.epochs(10**12)
    drawn = [round(epochs[name] * size) for name, size in (("a", 7), ("b", 11), ("c", 13))]
    assert drawn == [7 * 10**11, 2 * 10**11, 10**11]


@given(mixtures, st.integers(0, 3000))
def test_epochs_count_what_was_drawn(mixture: dict[str, tuple[int, float]], place: int) -> None:
    order = order_of(mixture, 3)
    sets, _ = order.span(0, place)
    for number, name in enumerate(order.names):
        assert order.epochs(place)[name] == np.sum(sets == number) / mixture[name][0]


def test_the_order_of_weights_in_a_recipe_does_not_matter() -> None:
    one = Order({"a": 5, "b": 9}, {"a": 1, "b": 2}, 4)
    other = Order({"b": 9, "a": 5}, {"b": 2, "a": 1}, 4)
    assert [one.at(place) for place in range(60)] == [other.at(place) for place in range(60)]


def test_first_places_over_many_seeds_are_spread_evenly() -> None:
    counts = Counter(int(Order({"a": 10}, {"a": 1}, seed).span(0, 1)[1][0]) for seed in range(1000))
    assert max(abs(count - 100) for count in counts.values()) < 50


def test_neighbours_do_not_stay_together() -> None:
    _, samples = Order({"a": 100_000}, {"a": 1}, 1).span(0, 100_000)
    near = np.mean(np.abs(np.diff(samples)) < 1000)
    assert 0.017 < near < 0.023  # 2 in 100 of two at random


def test_what_stands_in_is_of_the_same_set_and_drawn_by_place_and_attempt() -> None:
    order = Order({"a": 1000, "b": 1000}, {"a": 1, "b": 1}, 8)
    found = {(place, attempt): order.instead(place, attempt) for place in range(20) for attempt in (1, 2, 3)}
    assert all(found[place, attempt][0] == order.at(place)[0] for place, attempt in found)
    assert len(set(found.values())) > 50
    assert found == {key: order.instead(*key) for key in found}


def test_a_training_begun_by_an_older_version_goes_on_in_the_same_order() -> None:
    order = Order({"shards": 1348, "trusted": 100}, {"shards": 0.9, "trusted": 0.1}, 17)
    assert [order.at(place) for place in (0, 9, 19, 123_456, 10**12)] == GOLDEN
    assert order.instead(7, 1) == GOLDEN_INSTEAD
    assert dice(17, 7, 0).random() == GOLDEN_DICE


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"a": 0.0}, r"mixture\.a = 0\.0: expected a share above 0"),
        ({"a": -1.0}, r"mixture\.a = -1\.0: expected a share above 0"),
        ({"a": float("nan")}, r"mixture\.a = nan: expected a share above 0"),
        ({"c": 1.0}, r"mixture\.c: the set has no samples"),
        ({"a": 1e-12, "b": 1.0}, r"mixture\.a = 1e-12: it would hardly ever get its turn"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(weights: dict[str, float], told: str) -> None:
    with pytest.raises(DataError, match=told):
        Order({"a": 5, "b": 5}, weights, 0)
