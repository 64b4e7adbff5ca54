"""Questions about held-out scenes: each answer is true of its picture, and no answer can be guessed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from infra.miniweb import sets, vqa
from infra.miniweb.captions import COLOUR_WORDS, NUMBERS
from infra.miniweb.plan import Plan
from infra.miniweb.scenes import FEW, PLACES, WORDS, Scene
from models.evaluate.answers import accuracy
from models.evaluate.vqa_sets import from_shards


def asked(kind: str, count: int = 200) -> list[vqa.Question]:
    name = "verify" if kind == "verify" else "questions"
    found = [vqa.question(name, 0, number) for number in range(len(vqa.ASKS[name]) * count)]
    return [question for question in found if question.kind == kind]


def test_the_kinds_take_turns() -> None:
    assert Counter(vqa.question("questions", 3, number).kind for number in range(12)) == dict.fromkeys(
        ("background", "colour", "count", "place", "relation", "reading"), 2
    )


def test_a_background_and_a_thing_have_the_colour_that_is_answered() -> None:
    for question in asked("background", 20):
        assert question.answers[0] == question.scene.colour
    for question in asked("colour", 20):
        (group,) = (one for one in question.scene.groups if one.shape in question.text)
        assert question.answers[0] == COLOUR_WORDS[group.colour][0]
        assert (group.count, group.size) == (1, "large")


def test_every_name_of_a_colour_is_right() -> None:
    for words in COLOUR_WORDS.values():
        for word in words:
            assert accuracy(word, vqa._coloured(words[0])) == 1


def test_a_number_is_what_is_there_and_each_comes_as_often() -> None:
    found = asked("count")
    for question in found:
        (group,) = question.scene.groups
        assert question.answers == (NUMBERS[group.count],) * 10
    counts = Counter(question.answers[0] for question in found)
    assert len(counts) == FEW
    assert max(counts.values()) / len(found) < 0.35


def test_a_place_is_a_corner_where_what_is_asked_for_stands_and_each_comes_as_often() -> None:
    found = asked("place")
    for question in found:
        (group,) = (one for one in question.scene.groups if f"the {one.colour} {one.shape}?" in question.text)
        assert question.answers[0] == PLACES[group.row][group.column]
        assert {accuracy(answer, question.answers) for answer in question.answers} == {1}
        assert [one.count for one in question.scene.groups] == [1] * len(question.scene.groups)
    counts = Counter(question.answers[0] for question in found)
    assert len(counts) == 4
    assert max(counts.values()) / len(found) < 0.35
    assert 0.2 < sum(len(question.scene.groups) == 2 for question in found) / len(found) < 0.8


def test_a_relation_is_that_of_two_sides_which_holds_and_each_comes_as_often() -> None:
    found = asked("relation")
    for question in found:
        names = [f"the {group.colour} {group.shape}" for group in question.scene.groups]
        one, other = (0, 1) if question.text.startswith(f"Is {names[0]} ") else (1, 0)
        true = question.answers[0]
        assert holds(question.scene, one, true, other), question.text
        sides = question.text.removeprefix(f"Is {names[one]} ").removesuffix(f" {names[other]}?")
        assert true in sides.split(" or ")
        assert {accuracy(answer, question.answers) for answer in question.answers} == {1}
    counts = Counter(question.answers[0] for question in found)
    assert len(counts) == 4
    assert max(counts.values()) / len(found) < 0.4


def test_a_relation_holds_where_yes_is_right_and_yes_is_right_as_often_as_no() -> None:
    found = asked("verify")
    for question in found:
        names = [f"the {group.colour} {group.shape}" for group in question.scene.groups]
        one, other = (0, 1) if question.text.startswith(f"Is {names[0]} ") else (1, 0)
        stated = question.text.removeprefix(f"Is {names[one]} ").removesuffix(f" {names[other]}?")
        assert holds(question.scene, one, stated, other) == (question.answers[0] == "yes"), question.text
    share = sum(question.answers[0] == "yes" for question in found) / len(found)
    assert 0.4 < share < 0.6
    for words in ("to the left of", "to the right of", "above", "below"):  # none of which may give the answer away
        answers = [question.answers[0] for question in found if f" {words} the " in question.text]
        assert 0.3 < answers.count("yes") / len(answers) < 0.7, words


def holds(scene: Scene, one: int, stated: str, other: int) -> bool:
    """By numbers of groups."""
    if stated in ("to the right of", "below"):
        one, stated, other = other, {"to the right of": "to the left of", "below": "above"}[stated], one
    return (one, stated, other) in set(scene.relations())


def test_what_is_to_be_read_is_what_is_written_and_each_word_comes_as_often() -> None:
    found = asked("reading", 300)
    assert all(question.answers == (str(question.scene.written).lower(),) * 10 for question in found)
    counts = Counter(question.answers[0] for question in found)
    assert counts.keys() == {word.lower() for word in WORDS}
    assert max(counts.values()) / len(found) < 0.15


@pytest.mark.parametrize("name", vqa.ASKS)
def test_a_set_lies_as_evaluations_read_it_and_is_the_same_each_time(name: str, tmp_path: Path) -> None:
    for place in ("one", "other"):
        sets.write(tmp_path / place, samples=8, seed=3, names=(name,))
    folders = (tmp_path / place / name for place in ("one", "other"))
    one, other = ({file.name: file.read_bytes() for file in folder.rglob("*.*")} for folder in folders)
    assert one == other
    assert one["dataset_type.txt"] == b"vqa\n"
    found = from_shards(name, [str(tmp_path / "one" / name / "test/0.tar")], one["vqa_prompt.txt"].decode().strip())
    assert [question.text for question in found.questions] == [vqa.question(name, 3, n).text for n in range(8)]


def test_questions_are_made_only_where_they_are_named(tmp_path: Path) -> None:
    assert sets.main([str(tmp_path), "--samples", "1", "--sets", "verify"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["verify"]
    assert not vqa.ASKS.keys() & set(sets.SETS)


def test_what_is_asked_about_is_seen_from_near() -> None:
    assert all(vqa.question(name, 0, number).scene.near for name in vqa.ASKS for number in range(10))


def test_a_simple_web_has_few_large_plain_things() -> None:
    for page in Plan(300, scenes="simple"):
        groups = page.scene.groups
        assert len(groups) <= 2
        if page.source is None:
            assert {group.size for group in groups} == {"large"}
            assert {group.texture for group in groups} == {"plain"}
    with pytest.raises(ValueError, match="scenes is 'many'; expected any, simple"):
        Plan(300, scenes="many")
