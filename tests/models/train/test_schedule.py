"""The learning rate over the samples of a phase."""

import math
from itertools import pairwise

import pytest

from models.recipe import Recipe, RecipeError, Schedule
from models.train.schedule import rate


def rates(schedule: Schedule, total: int = 1000, batch: int = 10) -> list[float]:
    return [rate(schedule, seen, batch, total) for seen in range(0, total, batch)]


def test_warmup_rises_evenly_from_its_first_step_to_the_whole_rate() -> None:
    found = rates(Schedule(kind="constant", warmup=100))
    assert found[:11] == pytest.approx([*(step / 10 for step in range(1, 11)), 1.0])
    assert set(found[10:]) == {1.0}


def test_cosine_falls_from_the_whole_rate_through_the_half_to_its_floor() -> None:
    found = rates(Schedule(kind="cosine", warmup=200, floor=0.1))
    assert found[19] == found[20] == 1.0  # the last step of the warmup, and the first after it
    assert found[60] == pytest.approx(0.55)  # 600 samples: the middle of what is left
    assert found[-1] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 790 / 800)))
    assert all(a >= b for a, b in pairwise(found[20:]))
    assert rate(Schedule(kind="cosine", floor=0.1), 1000, 10, 1000) == pytest.approx(0.1)


def test_wsd_stays_and_then_falls_in_a_straight_line() -> None:
    found = rates(Schedule(kind="wsd", decay=0.2, floor=0.5))
    assert set(found[:81]) == {1.0}
    assert found[90] == pytest.approx(0.75)
    assert found[80] - found[81] == pytest.approx(found[98] - found[99])


def test_the_rate_does_not_depend_on_how_samples_are_cut_into_steps() -> None:
    for kind in ("cosine", "wsd", "constant"):
        schedule = Schedule(kind=kind, warmup=100)
        assert rates(schedule, batch=20)[5:] == rates(schedule, batch=10)[10::2]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["samples=1280"],
            "warmup = 1280: as long as all 1,280 samples, or longer; set schedule.warmup=…, such as 128$",
        ),
        (
            ["phases=[{name: first, share: 0.9}, {name: second, share: 0.1}]"],
            "warmup = 1280: as long as the 1,280 samples of phase 'second', or longer; set schedule.warmup=…, such as",
        ),
    ],
)
def test_a_phase_that_would_end_before_its_rate_is_reached_is_refused(settings: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.load("clip-vit-b32", tiny=True, overrides=settings)
    assert Recipe.load("clip-vit-b32", tiny=True, overrides=[*settings, "schedule.warmup=128"]).schedule.warmup == 128
