"""Phases with data of their own: every place has one sample, whenever it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.data.index import DataError
from models.data.order import Order
from models.data.phases import PhasedOrder
from tests.models.train.toy import recipe

SIZES = {"pairs": 7, "talks": 5, "texts": 3}
PHASES: list[dict[str, Any]] = [
    {"name": "align", "share": 0.3, "mixture": {"pairs": 1}},
    {"name": "tune", "share": 0.5, "mixture": {"talks": 2, "texts": 1}},
    {"name": "last", "share": 0.2},
]


def phased(**changes: Any) -> PhasedOrder:
    settings = {"phases": PHASES, "samples": 100, "batch": 4, "data": {"mixture": {"pairs": 1, "texts": 1}}}
    return PhasedOrder(recipe(**settings | changes), SIZES)


def seen(order: PhasedOrder, start: int, stop: int) -> list[tuple[str, int]]:
    sets, samples = order.span(start, stop)
    return [(order.names[number], sample) for number, sample in zip(sets.tolist(), samples.tolist(), strict=True)]


def test_each_phase_reads_its_own_sets_from_their_beginning() -> None:
    order = phased()
    first = Order({"pairs": 7}, {"pairs": 1}, 0)
    second = Order(SIZES, {"talks": 2, "texts": 1}, 0)
    assert seen(order, 0, 32) == [first.at(place) for place in range(32)]
    assert seen(order, 32, 80) == [second.at(place) for place in range(48)]


def test_a_batch_across_the_border_belongs_to_the_phase_it_began_in() -> None:
    assert {name for name, _ in seen(phased(), 28, 32)} == {"pairs"}  # the border lies at 30
    assert "pairs" not in {name for name, _ in seen(phased(), 32, 80)}


def test_a_phase_without_a_mixture_goes_on_as_a_training_with_that_one_alone() -> None:
    whole = Order(SIZES, {"pairs": 1, "texts": 1}, 0)
    assert seen(phased(), 80, 120) == [whole.at(place) for place in range(80, 120)]


@pytest.mark.parametrize("cut", [1, 30, 32, 33, 80, 99])
def test_a_span_is_the_same_however_it_is_cut(cut: int) -> None:
    order = phased()
    assert seen(order, 0, cut) + seen(order, cut, 110) == seen(order, 0, 110)


def test_what_cannot_be_used_is_replaced_from_the_set_of_its_place() -> None:
    order = phased()
    for place in (0, 31, 32, 79, 80):
        ((name, _),) = seen(order, place, place + 1)
        others = {order.instead(place, attempt) for attempt in range(1, 40)}
        assert {other for other, _ in others} == {name}
        assert {sample for _, sample in others} == set(range(SIZES[name]))


def test_other_seeds_shuffle_otherwise() -> None:
    assert not np.array_equal(phased().span(0, 32)[1], phased(seed=1).span(0, 32)[1])


def test_a_set_of_a_phase_that_nothing_is_known_of_is_refused() -> None:
    with pytest.raises(DataError, match=r"mixture\.films: the set has no samples"):
        phased(phases=[{"name": "all", "mixture": {"films": 1}}])
