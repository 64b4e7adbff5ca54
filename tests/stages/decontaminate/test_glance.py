"""A picture is known again at a glance: brighter, smaller or cropped, and none other is taken for it."""

import random

import numpy as np
import pytest

from infra.miniweb.copies import opened, recoloured, reencoded, resized
from stages.decontaminate.glance import CROPS, FEW_CROPS, NEAR, WIDTH, glances, gray_of
from tests.stages.decontaminate.sets import cropped, encoded, scene

SCENES = range(8)


def whole(data: bytes) -> np.ndarray:
    found: np.ndarray = glances(gray_of(data), CROPS[:1])[0]
    return found


def test_the_first_glance_is_at_the_whole() -> None:
    assert CROPS[0] == FEW_CROPS[0] == (0, 0, 0, 0)
    assert len(CROPS) == 81
    assert len(FEW_CROPS) == 16


def test_it_is_the_transform_written_out() -> None:
    gray = np.random.default_rng(1).integers(0, 256, (32, 32), dtype=np.uint8)
    rows = np.arange(32)
    expected = np.zeros((8, 8))
    for u in range(8):
        for v in range(8):
            waves = np.outer(np.cos(np.pi * u * (2 * rows + 1) / 64), np.cos(np.pi * v * (2 * rows + 1) / 64))
            scale = (0.5**0.5 if u == 0 else 1) * (0.5**0.5 if v == 0 else 1)
            expected[u, v] = scale * (gray * waves).sum() * np.hypot(u, v)
    assert glances(gray, CROPS[:1])[0] == pytest.approx(expected.ravel() / np.linalg.norm(expected), abs=1e-5)


def test_glances_have_length_one_and_do_not_know_the_light() -> None:
    gray = gray_of(scene(0))
    found = glances(gray, CROPS)
    assert found.shape == (81, WIDTH)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(81), abs=1e-5)
    dimmed = np.clip(gray * 0.6 + 30, 0, 255).astype(np.uint8)
    assert (glances(dimmed, CROPS) * found).sum(axis=1).min() > 0.99


def test_a_flat_picture_shows_nothing() -> None:
    assert not glances(np.full((40, 60), 200, np.uint8), CROPS).any()


@pytest.mark.parametrize("change", [reencoded, resized, recoloured])
def test_a_copy_of_the_whole_is_near_its_source_at_the_first_glance(change: object) -> None:
    for number in SCENES:
        data, _ = change(opened(scene(number)), random.Random(number))  # type: ignore[operator]
        assert whole(data) @ whole(scene(number)) > 0.9


def test_a_crop_is_near_one_of_the_glances_at_its_source_and_far_from_those_at_others() -> None:
    items = np.stack([glances(gray_of(scene(number)), CROPS) for number in SCENES])
    for number in SCENES:
        edges = np.random.default_rng(number).uniform(0.02, 0.07, 4)
        near = (items @ whole(cropped(scene(number), *edges))).max(axis=1)
        assert near[number] > NEAR
        assert np.delete(near, number).max() < NEAR


def test_every_format_gives_the_same_gray_and_a_large_one_is_made_small() -> None:
    image = opened(scene(1)).convert("RGB")
    png, jpeg = (gray_of(encoded(image, kind)) for kind in ("PNG", "JPEG"))
    assert glances(png, CROPS[:1])[0] @ glances(jpeg, CROPS[:1])[0] > 0.99
    assert max(gray_of(encoded(image.resize((1500, 1000)), "PNG")).shape) == 128
    assert min(gray_of(encoded(image.resize((1500, 1000)), "JPEG")).shape) >= 85


def test_a_sliver_has_glances() -> None:
    assert np.isfinite(glances(np.arange(40, dtype=np.uint8)[None] * 5, CROPS)).all()
