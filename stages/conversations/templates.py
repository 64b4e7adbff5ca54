"""Questions and answers of a sample without any model: from the words of its captions, and from boxes.

Everything that an answer says stands in a caption or follows from the boxes. The wordings are drawn by the sample's own
dice, so that the same sample gets the same questions wherever it lies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import Any

from stages.conversations.phrases import (
    GROUNDS,
    RELATIONS,
    Relation,
    Said,
    Thing,
    in_words,
    plural,
    said_by,
    singular,
)
from stages.conversations.turns import Kind, Turn

SOURCE = "template"
DESCRIBE = (
    "Describe the image in detail.",
    "What do you see in this image?",
    "Give a detailed description of the picture.",
    "What is shown here?",
    "Write a caption for this image.",
)
NEAR = 0.05
"""Shares of a side by which the centres of two boxes must differ for one to be left of the other, or above it."""


def turns_of(captions: Sequence[Mapping[str, Any]], boxes: Sequence[Mapping[str, Any]], dice: Random) -> list[Turn]:
    """All that can be asked of a sample: of each of its captions (`caption_id`, `text`) and of its boxes (`label`,
    `box` as left, top, right, bottom)."""
    found: list[Turn] = []
    for caption in captions:
        identity, text = caption.get("caption_id"), caption["text"]
        told = [("description", dice.choice(DESCRIBE), sentence(text)), *_asked(said_by(text), dice)]
        found += [Turn(kind, question, answer, identity, SOURCE) for kind, question, answer in told]
    found += [Turn(kind, question, answer, None, SOURCE) for kind, question, answer in _of_boxes(boxes, dice)]
    return found


Asked = tuple[Kind, str, str]


def _asked(said: Said, dice: Random) -> Iterator[Asked]:
    """Kind, question and answer."""
    names = Counter(thing.name for thing in said.things)
    for thing in said.things:
        if names[thing.name] > 1 and thing.colour is None:
            continue  # which of them is meant?
        yield from _of_thing(thing, names[thing.name] == 1, dice)
    for relation in said.relations:
        yield from _of_relation(relation, dice)
    for text in said.readings:
        question = dice.choice(("What is written in the image?", "What does the text say?", "What can be read here?"))
        yield "reading", question, text
    yield from _reasoned(said.things, dice)


def _of_thing(thing: Thing, alone: bool, dice: Random) -> Iterator[Asked]:
    are = "are" if thing.several else "is"
    noun = plural(thing.name) if thing.several else thing.name
    ground = thing.name in GROUNDS
    if thing.colour is not None and alone:
        wordings = (
            f"What colour {are} the {noun}?",
            f"Which colour {'do' if thing.several else 'does'} the {noun} have?",
        )
        yield "colour", dice.choice(wordings), thing.colour
    if thing.count is not None and not ground:
        many = f"{thing.colour} {plural(thing.name)}" if thing.colour else plural(thing.name)
        yield (
            "count",
            dice.choice((f"How many {many} are there?", f"What is the number of {many}?")),
            in_words(thing.count),
        )
    if thing.colour is not None and not ground:
        yield "question", f"What is {thing.colour}?", f"the {noun}"
    if thing.place is not None and not ground:
        yield "place", f"Where {are} the {thing.shown}?", thing.place


def _of_relation(relation: Relation, dice: Random) -> Iterator[Asked]:
    """One way it holds, the other it does not: neither word is right more often."""
    one, other = relation.one, relation.other
    are = "Are" if one.several else "Is"
    words, answer = (relation.words, "yes") if dice.random() < 0.5 else (RELATIONS[relation.words], "no")
    yield "relation", f"{are} the {one.shown} {words} the {other.shown}?", answer
    yield (
        "relation",
        f"Where {are.lower()} the {one.shown}, seen from the {other.shown}?",
        relation.words.removesuffix(" than"),
    )


def _reasoned(things: Sequence[Thing], dice: Random) -> Iterator[Asked]:
    """Which of two are more, from their numbers."""
    counted = [(thing, thing.count) for thing in things if thing.count is not None and thing.name not in GROUNDS]
    for pair in pairwise(counted):
        (one, count), (other, fewer) = pair if dice.random() < 0.5 else pair[::-1]
        if count != fewer and one.all != other.all:
            verdict = "Yes" if count > fewer else "No"
            answer = f"{verdict}: {in_words(count)} {one.shown}, {in_words(fewer)} {other.shown}."
            yield "reasoning", f"Are there more {one.all} than {other.all}?", answer


def _of_boxes(boxes: Sequence[Mapping[str, Any]], dice: Random) -> Iterator[Asked]:
    counts = Counter(str(box["label"]).lower() for box in boxes)
    for label, count in counts.items():
        yield "count", f"How many {plural(label)} are there?", in_words(count)
    single = [box for box in boxes if counts[str(box["label"]).lower()] == 1]
    for one, other in pairwise(single):
        names = [singular(str(box["label"]).lower()) for box in (one, other)]
        (x, y), (across, down) = _centre(one["box"]), _centre(other["box"])
        for distance, before in ((across - x, "to the left of"), (down - y, "above")):
            if abs(distance) > NEAR:
                true = before if distance > 0 else RELATIONS[before]
                words, answer = (true, "yes") if dice.random() < 0.5 else (RELATIONS[true], "no")
                yield "relation", f"Is the {names[0]} {words} the {names[1]}?", answer


def _centre(box: Sequence[float]) -> tuple[float, float]:
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2


def sentence(text: str) -> str:
    """A caption with a capital at its beginning and a stop at its end."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…")) else ".")
