"""What rules read in a caption, and what they leave out where they cannot be sure."""

from __future__ import annotations

from random import Random

import pytest

from stages.conversations.conversations import KINDS
from stages.conversations.phrases import plural, said_by, singular
from stages.conversations.templates import turns_of
from stages.conversations.turns import Kind


def things(caption: str) -> list[tuple[str, int | None, str | None, str | None]]:
    return [(thing.name, thing.count, thing.colour, thing.place) for thing in said_by(caption).things]


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("Three small red circles at the top.", [("circle", 3, "red", "at the top")]),
        ("4 women in a kitchen", [("woman", 4, None, None), ("kitchen", None, None, None)]),
        ("a striped blue five-pointed star", [("five-pointed star", 1, "blue", None)]),
        ("two grey round shapes", [("round shape", 2, "grey", None)]),
        ("some violet crosses on a green ground", [("cross", None, "violet", None), ("ground", 1, "green", None)]),
        ("A picture of one box", [("box", 1, None, None)]),
        ("a black and white photograph", []),  # neither colour is the thing's
        ("two red", []),
        ("a crowd standing", [("crowd", None, None, None)]),  # of crowds nobody said how many
        ("the largest common animal known", []),  # too long a name to be one
        ("three dog", []),  # number and noun do not agree
        ("no dogs", []),
        ("in 1997 people", []),
        ("", []),
    ],
)  # fmt: skip
def test_a_phrase_says_what_how_many_of_which_colour_and_where(caption: str, found: list[object]) -> None:
    assert things(caption) == found


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("the red star is to the left of the two blue boxes", "to the left of"),
        ("A red star above a blue box", "above"),
        ("the red stars are higher up than the blue box", "higher up than"),
        ("a red star and a blue box", None),
        ("a red star above a blue background", None),  # everything is in front of it
        ("a red star, above a blue box", None),
    ],
)
def test_a_relation_is_between_two_neighbouring_things(caption: str, words: str | None) -> None:
    found = said_by(caption).relations
    assert [relation.words for relation in found] == ([] if words is None else [words])
    for relation in found:
        assert (relation.one.name, relation.other.name) == ("star", "box")


@pytest.mark.parametrize(
    ("caption", "medium"),
    [
        ("A photo of a dog", "photograph"),
        ("(a) Photograph B shows two people.", "photograph"),
        ("Three photographs show groups of people.", "photograph"),
        ("This is a black and white photo of a dog", "photograph"),
        ("A bar graph is titled “Percent”.", "graph"),
        ("The frequency graph shows how often", "graph"),
        ("Stock vector illustration of trees", "illustration"),
        ("A map of the world", "map"),
        ("A painting, which is old", None),
        ("A man holds a map of the city", None),
        ("In a photo of the year a dog", None),
        ("A man with photos of his dog", None),
        ("Woman holding photo of her husband", None),
        ("Person reading map of Paris", None),
        ("Little girl painting with watercolors", None),
        ("Man painting of a wall", None),
        ("No photo of this item", None),
        ("Photo has been removed by its owner", None),
        ("A photo has three people", "photograph"),
        ("photos", None),
        ("photography of dogs", None),
    ],
)
def test_what_a_caption_begins_with_is_what_kind_of_picture_it_is(caption: str, medium: str | None) -> None:
    assert said_by(caption).medium == medium


def test_what_kind_of_picture_it_is_is_asked_once_where_captions_agree_and_it_is_wanted() -> None:
    def asked(*texts: str, kinds: tuple[Kind, ...] = ("medium",)) -> list[tuple[str, str, str | None]]:
        turns = turns_of([{"text": text} for text in texts], [], Random(0), kinds)
        return [(turn.kind, turn.answer, turn.verdict) for turn in turns]

    one = ("medium", "photograph")
    assert asked("A photo of a dog", "a big dog") == [(*one, None)]
    assert asked("A photo of a dog", "A photograph shows a dog") == [(*one, None), (*one, "duplicate")]
    assert asked("A photo of a dog", "A drawing of a dog") == []
    assert asked("A photo of a dog", kinds=("colour",)) == []


def test_what_is_in_quotes_can_be_read_where_the_caption_says_so() -> None:
    assert said_by('A sign that says "STOP," by a road').readings == ("STOP",)
    assert said_by('The "best" of shoes').readings == ()


@pytest.mark.parametrize(
    ("one", "many"),
    [("circle", "circles"), ("box", "boxes"), ("person", "people"), ("plus sign", "plus signs"), ("city", "cities")],
)
def test_one_and_many(one: str, many: str) -> None:
    assert plural(one) == many
    assert singular(many) == one
    assert singular(one) == one


def asked(caption: str, seed: int = 0) -> dict[str, str]:
    found = turns_of([{"caption_id": "c", "text": caption}], [], Random(seed), KINDS)
    return {turn.question: turn.answer for turn in found}


def test_a_relation_is_asked_about_either_way_and_answered_truly() -> None:
    """Neither yes nor no is right for a word more often than for its opposite."""
    answers: dict[str, str] = {}
    for seed in range(20):
        answers |= asked("the red star is above the blue box", seed)
    assert answers["Is the red star above the blue box?"] == "yes"
    assert answers["Is the red star below the blue box?"] == "no"
    assert answers["Where is the red star, seen from the blue box?"] == "above"


def test_a_colour_is_not_asked_for_where_two_things_have_the_name() -> None:
    questions = asked("a red star and a blue star")
    assert not any(question.startswith(("What colour", "Which colour")) for question in questions)
    assert "How many red stars are there?" in questions or "What is the number of red stars?" in questions


def asked_of(*captions: str) -> dict[str, str]:
    """Questions and answers over several draws."""
    told = [{"caption_id": str(number), "text": caption} for number, caption in enumerate(captions)]
    kinds = [kind for kind in KINDS if kind != "description"]
    found = [turn for seed in range(20) for turn in turns_of(told, [], Random(seed), kinds)]
    answers = {turn.question: turn.answer for turn in found}
    assert all(answers[turn.question] == turn.answer for turn in found), "one answer to a question"
    return answers


@pytest.mark.parametrize("end", ["…", "...", " …"])
def test_of_a_word_that_breaks_off_nothing_is_asked(end: str) -> None:
    questions = asked_of(f"a red star and two blue hexa{end}")
    assert any("star" in question for question in questions)
    assert not any("hexa" in question for question in questions)


def test_what_has_a_colour_is_asked_where_one_thing_has_it() -> None:
    assert asked_of("a red star and a blue box")["What kind of thing is red?"] == "star"
    for captions in (
        ("a red star and a red box",),
        ("a red star", "a red box and a blue circle"),  # told by two people
        ("a red star on a red background",),
    ):
        assert "What kind of thing is red?" not in asked_of(*captions), captions


def test_what_another_caption_denies_is_not_asked() -> None:
    for one, other, begin in (
        ("two red stars", "three red stars", ("How many", "What is the number")),
        ("a red star", "a blue star", ("What colour", "Which colour")),
        ("a red star", "a red star and a star", ("What colour", "Which colour")),
        ("the red star is above the blue box", "the red star is below the blue box", ("Is the", "Where is")),
        ("the red star is above the blue box", "the blue box is above the red star", ("Is the", "Where is")),
        ("a red star at the top", "a red star at the bottom", ("Where is",)),
        ("a red star above a blue box", "a red star and a red star and a blue box", ("Is the", "Where is")),
    ):
        assert any(question.startswith(begin) for question in asked_of(one)), one
        assert not any(question.startswith(begin) for question in asked_of(one, other)), (one, other)


def test_of_two_relations_that_hold_neither_is_the_one_answer() -> None:
    both = asked_of("the red star is above the blue box", "the red star is to the left of the blue box")
    assert both["Is the red star above the blue box?"] == "yes"
    assert both["Is the red star to the right of the blue box?"] == "no"
    assert not any(question.startswith("Where") for question in both)


def test_which_are_more_follows_from_the_numbers() -> None:
    answers = asked("three red stars and a blue box") | asked("three red stars and a blue box", 1)
    reasons = {question: answer for question, answer in answers.items() if "more" in question}
    for question, answer in reasons.items():
        assert answer.startswith("Yes" if question.startswith("Are there more red stars") else "No")
        assert "three red stars" in answer
    assert reasons
    assert not any("more" in question for question in asked("two red stars and two blue boxes"))
