"""Evaluation sets ask what they say, of scenes that no web shows."""

import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from infra.miniweb import Plan, questions
from infra.miniweb.questions import Question, first
from infra.miniweb.scenes import COLOURS, SHAPES

CHOICES = {"binding": questions.binding, "counting": questions.counting, "relations": questions.relations}


def asked(name: str, samples: int = 150, seed: int = 0) -> list[Question]:
    return [first(name, seed, number, CHOICES[name]) for number in range(samples)]


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text))


@pytest.mark.parametrize("name", CHOICES)
def test_the_first_caption_is_true_and_the_others_are_not(name: str) -> None:
    for question in asked(name):
        right, *wrong = question.captions
        assert wrong
        assert right.true_of(question.scene)
        assert not any(said.true_of(question.scene) for said in wrong)


@pytest.mark.parametrize("name", CHOICES)
def test_nothing_in_the_words_tells_which_caption_is_right(name: str) -> None:
    right, wrong = Counter[str](), Counter[str]()
    for question in asked(name, 400):
        right += words(question.captions[0].text)
        for said in question.captions[1:]:
            wrong += words(said.text)
    shares = {word: right[word] * (3 if name == "counting" else 1) / wrong[word] for word in right if right[word] > 40}
    assert all(0.7 < share < 1.4 for share in shares.values()), shares


def test_captions_of_binding_differ_in_the_order_of_two_colours_alone() -> None:
    for question in asked("binding"):
        right, wrong = (re.sub(r"\ban\b", "a", said.text) for said in question.captions)
        assert words(right) == words(wrong)
        apart = [(one, other) for one, other in zip(right.split(), wrong.split(), strict=True) if one != other]
        assert len(apart) == 2
        assert apart[0] == apart[1][::-1]
        assert set(apart[0]) <= set(COLOURS)


def test_captions_of_counting_are_those_of_every_number_from_one_to_four() -> None:
    for question in asked("counting"):
        counts = [next(iter(said.claims)).count for said in question.captions]  # type: ignore[union-attr]
        assert sorted(counts) == [1, 2, 3, 4]  # type: ignore[type-var]
        assert counts[0] == question.scene.groups[0].count
        assert "large" in {group.size for group in question.scene.groups}


def test_captions_of_relations_differ_in_the_relation_alone() -> None:
    pairs = {frozenset(item) for item in questions.OPPOSITES.items()}
    told = set()
    for question in asked("relations"):
        right, wrong = (re.fullmatch(r"(the \w+ \w+) (.*) (the \w+ \w+)", said.text) for said in question.captions)
        assert right is not None
        assert wrong is not None
        assert (right[1], right[3]) == (wrong[1], wrong[3])
        assert frozenset((right[2], wrong[2])) in pairs
        told.add(right[2])
    assert len(told) == 4


def test_classes_are_what_is_shown_and_all_of_them_come() -> None:
    shapes = [first("shapes", 0, number, questions.shape) for number in range(200)]
    colours = [first("colours", 0, number, questions.colour) for number in range(200)]
    grounds = [first("grounds", 0, number, questions.ground) for number in range(200)]
    assert {question.label for question in grounds} == set(COLOURS)
    assert all(question.scene.colour == question.label for question in grounds)
    assert {question.label for question in shapes} == set(SHAPES)
    assert {question.label for question in colours} == set(COLOURS)
    assert all([group.shape for group in question.scene.groups] == [question.label] for question in shapes)
    assert all([group.colour for group in question.scene.groups] == [question.label] for question in colours)
    assert all(question.scene.colour != question.label for question in colours)


def test_a_caption_of_retrieval_is_true_of_its_own_scene_alone() -> None:
    found = list(questions.retrieval(seed=1, samples=80, captions=3))
    for number, question in enumerate(found):
        assert len({said.text for said in question.captions}) == 3
        for said in question.captions:
            assert [n for n, other in enumerate(found) if said.true_of(other.scene)] == [number]


def test_no_set_shows_what_a_web_shows() -> None:
    plan = Plan(40, seed=0, evaluation=5)
    pages = {page.scene.grain for page in plan} | {plan.evaluation_scene(number).grain for number in range(5)}
    sets = {question.scene.grain for name in CHOICES for question in asked(name, 20)}
    sets |= {question.scene.grain for question in questions.retrieval(0, 20, 1)}
    assert len(sets) == 80
    assert all(grain.startswith("held-out/") for grain in sets)  # a page's starts with a number, or with `evaluation/`
    assert not sets & pages


def test_another_seed_asks_of_other_scenes() -> None:
    one, other = ({question.scene.grain for question in asked("binding", 20, seed)} for seed in (0, 1))
    assert not one & other


def test_scenes_are_square_and_else_as_those_of_the_web() -> None:
    scenes = [question.scene for question in questions.retrieval(0, 60, 1)]
    assert all(scene.width == scene.height for scene in scenes)
    assert len({scene.blur for scene in scenes}) > 1
    assert {len(scene.groups) for scene in scenes} == {1, 2, 3, 4}


def test_simple_scenes_hold_one_group_or_two_large_and_plain() -> None:
    found = list(questions.retrieval(seed=1, samples=60, captions=2, crowd="simple"))
    assert {len(question.scene.groups) for question in found} == {1, 2}
    groups = [group for question in found for group in question.scene.groups]
    assert {(group.size, group.texture) for group in groups} == {("large", "plain")}
    for number, question in enumerate(found):
        for said in question.captions:
            assert [n for n, other in enumerate(found) if said.true_of(other.scene)] == [number]


def test_a_wrong_caption_that_happens_to_be_true_is_not_asked() -> None:
    scene = asked("binding", 1)[0].scene
    same = replace(scene, groups=tuple(replace(group, colour="red") for group in scene.groups))
    assert questions.binding(same, random.Random(0)) is None
