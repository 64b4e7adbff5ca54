"""Turns are judged by the first thing that is wrong with them."""

from __future__ import annotations

import pytest

from stages.conversations.filters import judged
from stages.conversations.turns import Kind, Turn

CAPTION = "Two red circles beside a sleeping dog on the grass."


def verdict(question: str, answer: str, kind: Kind = "question", grounded: float = 0.6, source: str = "model") -> str:
    (found,) = judged([Turn(kind, question, answer, None, source)], [CAPTION], ["ball"], grounded, longest=100)
    return found


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Two circles.", "kept"),
        ("There are 2 circles and a dog.", "kept"),
        ("A ball", "kept"),  # a box has that label
        ("Yes", "kept"),
        ("Three circles.", "ungrounded"),  # a wrong number, however much else is right
        ("A unicorn dances in moonlight.", "ungrounded"),
        ("The dog sleeps on grass near unicorns in moonlight at midnight.", "ungrounded"),
        ("I'm sorry, but I cannot tell.", "refusal"),
        ("As an AI language model, I see a dog.", "refusal"),
        ("The caption says two circles.", "refusal"),
        ("It is not mentioned.", "refusal"),
        ("", "empty"),
        ("<image> a dog", "image_token"),
        ("dog " * 30, "too_long"),
    ],
)
def test_an_answer_must_be_borne_out(answer: str, expected: str) -> None:
    assert verdict("What is there?", answer) == expected


def test_an_article_counts_nothing_and_bears_out_a_one() -> None:
    def said(caption: str, answer: str) -> str:
        (found,) = judged([Turn("question", "?", answer, None, "model")], [caption], [], 0.6, longest=100)
        return found

    assert said("Golden retriever puppy on beach", "A golden retriever puppy sits on a beach.") == "kept"
    assert said("A puppy on a beach", "One puppy.") == "kept"
    assert said("Two puppies on a beach", "Three puppies.") == "ungrounded"
    assert said("Puppies on beach", "One.") == "ungrounded"


def test_how_much_must_be_borne_out_can_be_said() -> None:
    assert verdict("?!", "A dog in moonlight", grounded=0.4) == "kept"
    assert verdict("?!", "A dog in moonlight", grounded=0.9) == "ungrounded"


def test_a_question_is_asked_once_however_it_is_written() -> None:
    turns = [Turn("question", text, "a dog", None, "model") for text in ("What is it?", "what is  it", "What else?")]
    assert list(judged(turns, [CAPTION], [], 0.6, 100)) == ["kept", "duplicate", "kept"]


def test_a_question_that_was_dropped_may_be_asked_again() -> None:
    turns = [Turn("question", "What is it?", answer, None, "model") for answer in ("a unicorn", "a dog")]
    assert list(judged(turns, [CAPTION], [], 0.6, 100)) == ["ungrounded", "kept"]


def test_what_rules_found_in_boxes_no_caption_needs_to_say() -> None:
    assert verdict("How many balls are there?", "five", kind="count", source="template") == "kept"
    assert verdict("Where is the ball?", "in the middle", kind="place", source="template") == "kept"


def test_what_a_model_counts_a_caption_must_say() -> None:
    """Its turns have no caption of their own, as those of boxes have none."""
    assert verdict("How many balls are there?", "five", kind="count") == "ungrounded"
    assert verdict("How many circles are there?", "two", kind="count") == "kept"
