"""A change of all colours is found; one thing of another colour is none."""

import numpy as np
import pytest

from stages.kit.recolouring import LUMA, Recolouring, recolourings

Colours = np.ndarray


def colours(seed: int = 1, count: int = 400) -> Colours:
    """Half of them one ground, the others anything."""
    rng = np.random.default_rng(seed)
    found = rng.integers(20, 200, (count, 3)).astype(np.float64)
    found[: count // 2] = (60, 120, 90)
    return found


def changed(plain: Colours, luma: float, colour: float, offsets: tuple[float, float, float]) -> tuple[Colours, Colours]:
    grey = (plain @ LUMA)[:, None]
    exact = luma * grey + colour * (plain - grey) + offsets
    return np.clip(exact, 0, 255), (exact <= 0) | (exact >= 255)


@pytest.mark.parametrize(
    ("luma", "colour", "offset"), [(1.2, 1.2, 0), (0.8, 0.8, 25), (1, 0.4, 0), (1, 0, 0), (1.3, 1.3, -30)]
)
def test_brightness_contrast_and_saturation_are_found(luma: float, colour: float, offset: float) -> None:
    plain = colours()
    (found,) = recolourings(plain, *changed(plain, luma, colour, (offset,) * 3), tints=False)
    assert found.luma == pytest.approx(luma, abs=0.03)
    assert found.colour == pytest.approx(colour, abs=0.03)
    assert found.offsets == pytest.approx((offset,) * 3, abs=4)
    assert found.likely(kept=False)


def test_a_tint_is_found_by_the_second_way_only() -> None:
    plain = colours()
    after, cut = changed(plain, 0.8, 0.8, (40, 5, 20))
    without, with_tint = recolourings(plain, after, cut, tints=True)
    assert with_tint.offsets == pytest.approx((40, 5, 20), abs=4)
    assert np.abs(with_tint.on(plain) - after).max() < 3
    assert np.abs(without.on(plain) - after).max() > 10


def test_what_was_cut_at_white_does_not_darken_the_rest() -> None:
    plain = colours() + 50
    after, cut = changed(plain, 1.4, 1.4, (0, 0, 0))
    assert 0.1 < cut.mean() < 0.6
    (found,) = recolourings(plain, after, cut, tints=False)
    assert found.luma == pytest.approx(1.4, abs=0.05)


def test_a_large_ground_says_no_more_than_a_small_thing() -> None:
    rare = np.full((4000, 3), (90.0, 90.0, 90.0))
    rare[:2] = (120, 80, 80)
    after, cut = changed(rare, 1, 0.4, (0, 0, 0))
    (found,) = recolourings(rare, after, cut, tints=False)
    assert np.abs(found.on(rare) - after).max() < 2


def test_one_thing_of_another_colour_is_an_outlier() -> None:
    plain = colours()
    after, cut = changed(plain, 0.9, 0.9, (10, 10, 10))
    after[-10:] = (240, 20, 240)
    (found,) = recolourings(plain, after, cut, tints=False)
    error = np.abs(found.on(plain) - after).max(axis=1)
    assert error[:-10].max() < 5
    assert error[-10:].min() > 30


@pytest.mark.parametrize(
    ("change", "likely", "where_kept"),
    [
        (Recolouring(1, 1, (0, 0, 0)), True, True),
        (Recolouring(0.6, 0.6, (50, 50, 50)), True, False),
        (Recolouring(1, 0, (0, 0, 0)), True, False),
        (Recolouring(0.3, 0.3, (0, 0, 0)), False, False),
        (Recolouring(1, -0.5, (0, 0, 0)), False, False),
        (Recolouring(0.8, 0.8, (100, 0, 0)), False, False),
        (Recolouring(1, 1, (120, 120, 120)), False, False),
    ],
)
def test_what_nobody_does_to_a_picture_is_not_likely(change: Recolouring, likely: bool, where_kept: bool) -> None:
    assert change.likely(kept=False) is likely
    assert change.likely(kept=True) is where_kept


def test_colours_and_pixels_change_the_same_way() -> None:
    change = Recolouring(0.9, 1.3, (5, -3, 8))
    image = np.random.default_rng(2).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    expected = change.on(image.reshape(-1, 3).astype(np.float64)).reshape(image.shape)
    assert np.abs(change.of(image) - expected).max() <= 1
