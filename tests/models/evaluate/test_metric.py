"""Means, and how far they may be off."""

import numpy as np
import pytest

from models.evaluate.metric import mean, mean_of_classes

NUMBERS = np.arange(6)


def test_the_standard_error_of_a_share_is_that_of_a_binomial() -> None:
    hits = np.array([1.0] * 30 + [0.0] * 70)
    value, error = mean(hits)
    assert value == 0.3
    assert error == pytest.approx(np.sqrt(0.3 * 0.7 / 99))


def test_groups_of_one_are_no_groups() -> None:
    values = np.random.default_rng(0).random(6)
    assert mean(values, NUMBERS) == pytest.approx(mean(values))


def test_values_that_repeat_within_a_group_tell_no_more_than_one() -> None:
    values = np.random.default_rng(0).random(6)
    assert mean(np.repeat(values, 5), np.repeat(NUMBERS, 5)) == pytest.approx(mean(values))


def test_the_standard_error_is_the_spread_over_other_samples() -> None:
    dice = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 4)
    runs = [0.5 * dice.random(100)[groups] + 0.5 * dice.random(400) for _ in range(400)]
    means, errors = zip(*(mean(run, groups) for run in runs), strict=True)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)
    forgetful = mean(runs[0])[1]
    assert forgetful is not None
    assert forgetful < 0.8 * np.std(means)


def test_one_value_has_no_standard_error() -> None:
    assert mean(np.array([0.5])) == (0.5, None)
    assert mean(np.array([0.5, 1.0]), np.array([3, 3])) == (0.75, None)


def test_every_class_weighs_the_same() -> None:
    values, classes = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0]), np.array([0, 0, 0, 0, 7, 7])
    value, error = mean_of_classes(values, classes)
    assert value == pytest.approx((0.75 + 0) / 2)
    assert error == pytest.approx(np.sqrt(np.var([1, 1, 0, 1], ddof=1) / 4) / 2)


def test_a_class_of_one_sample_leaves_no_standard_error() -> None:
    assert mean_of_classes(np.array([1.0, 0.0, 1.0]), np.array([0, 0, 1])) == (0.75, None)
