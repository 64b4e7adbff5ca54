"""Scenes show what their captions say."""

import io
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infra.miniweb.scenes import COLOURS, SIDES, Scene, captions, draw_scene, render

NUMBERS = st.integers(0, 10_000)


def test_one_number_is_one_scene_and_one_file() -> None:
    assert draw_scene(17, 5) == draw_scene(17, 5)
    assert render(draw_scene(17, 5)) == render(draw_scene(17, 5))
    assert len({draw_scene(seed, number) for seed in (17, 18) for number in range(200)}) == 400


def test_sides_lie_between_64_and_900_and_about_400_in_the_middle() -> None:
    sides = np.array([(scene.width, scene.height) for scene in (draw_scene(17, number) for number in range(2000))])
    assert (sides.min(), sides.max()) == SIDES
    assert 350 <= np.median(sides) <= 450


@given(NUMBERS)
def test_no_two_things_share_a_name_or_a_cell_and_none_hides_in_the_background(number: int) -> None:
    scene = draw_scene(17, number)
    for one, other in combinations(scene.things, 2):
        assert one.name != other.name
        assert (one.row, one.column) < (other.row, other.column)
    assert scene.colour not in {thing.colour for thing in scene.things}


@given(NUMBERS)
def test_captions_differ_and_each_names_a_thing_that_is_there_and_none_that_is_not(number: int) -> None:
    scene = draw_scene(17, number)
    wordings = captions(scene)
    assert len(set(wordings)) == len(wordings) >= 3
    there = {thing.colour for thing in scene.things} | {scene.colour}
    for wording in wordings:
        words = set(wording.lower().replace(",", "").replace(".", "").split())
        assert words & set(COLOURS) <= there
        assert any(thing.name in wording.lower() for thing in scene.things)


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "diamond", "hexagon", "cross"])
def test_every_thing_is_drawn_in_its_cell_in_its_colour(shape: str) -> None:
    scene = next(
        scene
        for scene in (draw_scene(17, number) for number in range(5000))
        if scene.things[0].shape == shape and not scene.noise and min(scene.width, scene.height) > 200
    )
    thing = scene.things[0]
    pixel = shown(scene)[round((thing.row + 0.5) * scene.height / 3), round((thing.column + 0.5) * scene.width / 3)]
    assert np.abs(pixel.astype(int) - COLOURS[thing.colour]).max() < 25


@given(NUMBERS)
def test_a_scene_is_a_jpeg_of_its_size(number: int) -> None:
    scene = draw_scene(3, number, (16, 63))
    assert shown(scene).shape == (scene.height, scene.width, 3)


def test_other_sides_change_nothing_else() -> None:
    whole, tiny = draw_scene(17, 8), draw_scene(17, 8, (16, 63))
    assert (whole.things, whole.pattern, whole.colour) == (tiny.things, tiny.pattern, tiny.colour)
    assert captions(whole) == captions(tiny)
    assert max(tiny.width, tiny.height) <= 63


def shown(scene: Scene) -> np.ndarray:
    with Image.open(io.BytesIO(render(scene))) as image:
        assert image.format == "JPEG"
        return np.asarray(image.convert("RGB"))
