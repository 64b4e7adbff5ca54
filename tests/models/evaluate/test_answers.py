"""Right answers by VQA's official rule: its documented examples and its quirks."""

from __future__ import annotations

import pytest

from models.evaluate.answers import accuracy, choice, exact, normalised


@pytest.mark.parametrize(
    ("answer", "compared"),
    [
        ("Two dogs.", "2 dogs"),
        ("none", "0"),
        ("The red bus", "red bus"),
        ("an apple, a pear", "apple pear"),
        ("t-shirt", "t shirt"),  # no blank beside it: it becomes one
        ("yes!", "yes"),
        ("black , white", "black white"),
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),  # of a number with a comma, all punctuation goes
        ("3.5 m.", "3.5 m"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("it's", "it's"),
        ("its", "its"),
        ("well", "well"),  # is no `we'll`
        ("yes\nbut\tno", "yes but no"),
        ("10:30", "10:30"),
        ("", ""),
    ],
)
def test_normalisation_is_the_official_one(answer: str, compared: str) -> None:
    assert normalised(answer) == compared


@pytest.mark.parametrize(("matching", "value"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_an_answer_is_as_right_as_nine_of_ten_annotators_say(matching: int, value: float) -> None:
    """The well-known 0.3, 0.6, 0.9 of ten annotators, each left out in turn."""
    annotators = ["red"] * matching + [f"other {number}" for number in range(10 - matching)]
    assert accuracy("Red.", annotators) == pytest.approx(value)


def test_annotators_are_normalised_as_answers_are() -> None:
    assert accuracy("two", ["2"] * 10) == 1
    assert accuracy("2", ["Two", "two", "a two", "2", *["three"] * 6]) == 1


def test_of_few_annotators_one_suffices() -> None:
    assert accuracy("cat", ["cat"]) == 1
    assert accuracy("cat", ["dog", "cat", "cow"]) == 1
    assert accuracy("cat", ["dog"]) == 0


def test_exact_is_what_most_say() -> None:
    assert exact("Grey", ["grey", "grey", "gray"]) == 1
    assert exact("gray", ["grey", "grey", "gray"]) == 0
    assert exact("a", ["b", "b", "a"]) == 0


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("B", 1),
        ("(B)", 1),
        ("B.", 1),
        ("B. a cat", 1),
        ("The answer is C", 2),
        ("the bird", 2),
        ("A", 0),
        ("A bird", 2),  # an article, no letter
        ("D", None),
        ("perhaps", None),
        ("Bird", 2),  # no B
    ],
)
def test_one_of_several_is_named_by_letter_or_in_words(answer: str, number: int | None) -> None:
    assert choice(answer, ["dog", "cat", "bird"]) == number
