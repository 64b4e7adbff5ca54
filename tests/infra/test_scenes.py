"""Scenes are what their seeds say, and their changes change what they say."""

import random
from collections import Counter
from dataclasses import fields, replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.miniweb.scenes import (
    ATTRIBUTES,
    CORNERS,
    SIDES,
    TINY,
    WORDS,
    Group,
    Scene,
    another,
    draw_scene,
    simplified,
    swapped_colours,
)

NUMBERS = st.integers(0, 10_000)


def scene_of(number: int) -> Scene:
    return draw_scene(f"17/{number}", SIDES["small"])


def test_one_seed_is_one_scene() -> None:
    assert scene_of(5) == scene_of(5)
    assert len({scene_of(number) for number in range(400)}) == 400


@pytest.mark.parametrize(("name", "median"), [("small", 256), ("medium", 512), ("large", 1200)])
def test_sides_are_log_normal_around_their_median(name: str, median: int) -> None:
    scenes = [draw_scene(f"17/{number}", SIDES[name]) for number in range(2000)]
    sides = np.array([(scene.width, scene.height) for scene in scenes])
    assert sides.min() >= 64
    assert sides.max() <= SIDES[name].high
    assert np.median(sides) == pytest.approx(median, rel=0.08)
    low, middle, high = np.log(np.quantile(sides, (0.25, 0.5, 0.75)))
    assert high - middle == pytest.approx(middle - low, abs=0.1)  # as far in ratio: no tail to one side
    assert 0.5 < high - low < 1.0


@given(NUMBERS)
def test_no_two_groups_share_a_name_or_a_cell_and_none_hides_in_the_background(number: int) -> None:
    scene = scene_of(number)
    assert list(scene.groups) == sorted(scene.groups, key=lambda group: group.cell)
    for one, other in combinations(scene.groups, 2):
        assert (one.shape, one.colour) != (other.shape, other.colour)
        assert one.cell != other.cell
    assert scene.colour not in {group.colour for group in scene.groups}


def test_other_sides_change_nothing_else() -> None:
    whole, tiny = scene_of(8), draw_scene("17/8", TINY)
    assert replace(whole, width=0, height=0) == replace(tiny, width=0, height=0)
    assert max(tiny.width, tiny.height) <= 63


def differing(one: Scene, other: Scene) -> list[set[str]]:
    """Per changed group, the fields that differ; groups are matched so that the least differs."""
    left = [group for group in one.groups if group not in other.groups]
    right = [group for group in other.groups if group not in one.groups]
    found = []
    for group in left:
        match = min(right, key=lambda candidate: len(fields_of(group, candidate) - {"row", "column"}))
        right.remove(match)
        found.append(fields_of(group, match))
    assert not right
    return found


def fields_of(one: Group, other: Group) -> set[str]:
    return {f.name for f in fields(Group) if getattr(one, f.name) != getattr(other, f.name)}


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_a_change_of_an_attribute_touches_nothing_else(name: str) -> None:
    touched = {"place": {"row", "column"}}.get(name, {name})
    seen = 0
    for number in range(200):
        scene = scene_of(number)
        changed = ATTRIBUTES[name](scene, random.Random(number))
        if changed is None:
            continue
        seen += 1
        assert replace(changed, groups=()) == replace(scene, groups=())
        differences = differing(scene, changed)
        assert 1 <= len(differences) <= (2 if name == "place" else 1)
        assert all(found <= touched for found in differences)
    assert seen > 100


def test_swapped_colours_leave_the_colours_and_the_shapes_as_they_were() -> None:
    seen = 0
    for number in range(300):
        scene = scene_of(number)
        changed = swapped_colours(scene, random.Random(number))
        if changed is not None:
            seen += 1
            assert sorted(group.colour for group in changed.groups) == sorted(group.colour for group in scene.groups)
            assert sorted(group.shape for group in changed.groups) == sorted(group.shape for group in scene.groups)
            names = [{(group.shape, group.colour) for group in one.groups} for one in (scene, changed)]
            assert len(names[0] - names[1]) == 2
    assert seen > 100


@pytest.mark.parametrize("recoloured", [False, True])
def test_another_scene_has_the_same_shapes_and_every_colour_is_another(recoloured: bool) -> None:
    strange = 0
    for number in range(100):
        scene = scene_of(number)
        other = another(scene, random.Random(number), recoloured)
        before = {scene.colour, *(group.colour for group in scene.groups)}
        after = {other.colour, *(group.colour for group in other.groups)}
        assert sorted(group.shape for group in other.groups) == sorted(group.shape for group in scene.groups)
        assert other.colour != scene.colour
        looks = Counter((group.shape, group.colour) for group in other.groups)
        assert max(looks.values()) == 1
        assert other.colour not in {group.colour for group in other.groups}
        assert len(after) == len(before)
        strange += after != before
    assert strange == 0 if not recoloured else strange > 80


def related(scene: Scene) -> set[tuple[str, str, str]]:
    names = [f"{group.colour} {group.shape}" for group in scene.groups]
    return {(names[one], words, names[other]) for one, words, other in scene.relations()}


def test_simple_scenes_stand_in_the_corners_as_they_stood() -> None:
    for number in range(200):
        scene = scene_of(number)
        near = simplified(scene)
        assert simplified(near) == near
        assert all(group.cell in CORNERS for group in near.groups)
        assert all(group.cell in CORNERS for group in another(near, random.Random(number)).groups)
        if len(near.groups) == 2:
            assert related(near) == related(replace(scene, groups=scene.groups[:2]))


def test_another_simple_scene_is_simple() -> None:
    """Else a caption could be false of what was drawn, and true of what is shown of it."""
    for number in range(200):
        other = another(simplified(scene_of(number)), random.Random(number))
        assert simplified(other) == other


def test_another_scene_has_another_word_where_there_is_one() -> None:
    for number in range(50):
        scene = scene_of(number)
        assert another(scene, random.Random(number)).written is None
        assert another(replace(scene, written="STOP"), random.Random(number)).written in {*WORDS} - {"STOP"}


def test_relations_are_those_of_rows_and_columns() -> None:
    left = Group(1, "circle", "red", "small", "plain", 0, 0)
    right = Group(1, "square", "blue", "small", "plain", 1, 2)
    scene = replace(scene_of(1), groups=(left, right))
    assert set(scene.relations()) == {(0, "to the left of", 1), (0, "above", 1)}
