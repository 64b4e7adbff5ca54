"""Questions and answers of a sample without any model: from the words of its captions, and from boxes.

Everything that an answer says stands in a caption or follows from the boxes. The wordings are drawn by the sample's own
dice, so that the same sample gets the same questions wherever it lies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

from stages.conversations.boxed import Boxed, asked_of, boxed_by, denied
from stages.conversations.known import Known
from stages.conversations.phrases import (
    GROUNDS,
    RELATIONS,
    Relation,
    Said,
    Thing,
    how_many,
    in_words,
    said_by,
    which_colour,
)
from stages.conversations.turns import DENIED, TEMPLATE, Asked, Kind, Turn

DESCRIBE = (
    "Describe the image in detail.",
    "What do you see in this image?",
    "Give a detailed description of the picture.",
    "What is shown here?",
    "Write a caption for this image.",
)


def turns_of(
    captions: Sequence[Mapping[str, Any]],
    boxes: Sequence[Mapping[str, Any]],
    dice: Random,
    kinds: Collection[Kind],
) -> list[Turn]:
    """All of these kinds that can be asked of a sample: of each of its captions (`caption_id`, `text`) and of its boxes
    (`label`, `box` as left, top, right, bottom). What one caption leaves open or another denies is not asked; of what
    has boxes no caption is asked more than a colour that the label leaves open."""
    found: list[Turn] = []
    boxed = boxed_by(boxes)
    said = [said_by(caption["text"]) for caption in captions]
    true = Known([own for own in said if not denied(own, boxed)])
    for caption, own in zip(captions, said, strict=True):
        identity, text = caption.get("caption_id"), caption["text"]
        known, verdict = (Known([own]), DENIED) if denied(own, boxed) else (true, None)
        told = [("description", dice.choice(DESCRIBE), sentence(text)), *_asked(own, known, dice, boxed)]
        found += [Turn(kind, question, answer, identity, TEMPLATE, verdict) for kind, question, answer in told]
    found += [Turn(kind, question, answer, None, TEMPLATE) for kind, question, answer in asked_of(boxed, dice)]
    return [turn for turn in found if turn.kind in kinds]


def _asked(said: Said, known: Known, dice: Random, boxed: Sequence[Boxed]) -> Iterator[Asked]:
    """Kind, question and answer; also of kinds that are not wanted."""
    unseen = [thing for thing in said.things if not _boxes_of(thing, boxed)]
    for thing in said.things:
        asked = _of_thing(thing, known, dice)
        if thing in unseen:
            yield from asked
        elif _colour_is_open(thing, boxed):
            yield from (one for one in asked if one[0] == "colour")
    for relation in said.relations:
        if relation.one not in unseen and relation.other not in unseen:
            continue
        if known.meant(relation.one) and known.meant(relation.other) and known.undenied(relation):
            yield _of_relation(relation, known, dice)
    for text in said.readings:
        question = dice.choice(("What is written in the image?", "What does the text say?", "What can be read here?"))
        yield "reading", question, text
    yield from _reasoned([thing for thing in unseen if known.meant(thing)], dice)


def _boxes_of(thing: Thing, boxed: Sequence[Boxed]) -> list[Boxed]:
    """Of every label that names it: `red star` does a star, and a red one."""
    return [one for one in boxed if one.thing.name == thing.name or one.thing.name.endswith(f" {thing.name}")]


def _colour_is_open(thing: Thing, boxed: Sequence[Boxed]) -> bool:
    """Whether what has boxes is of one label, which tells no colour, and as many as the caption's: one, or several."""
    found = [one.thing for one in _boxes_of(thing, boxed)]
    return [(one.colour, one.several) for one in found] == [(None, thing.several)]


def _of_thing(thing: Thing, known: Known, dice: Random) -> Iterator[Asked]:
    if not known.meant(thing):
        return
    ground, colour = thing.name in GROUNDS, thing.colour
    by_name = known.colours(thing.name) <= {colour} and known.meant(replace(thing, colour=None))
    if colour is not None and known.names(colour) == {thing.name} and not ground:
        yield "question", f"What kind of thing is {colour}?", thing.name
    if colour is not None and by_name:
        yield "colour", which_colour(thing, dice), colour
    if thing.count is not None and not ground:
        yield "count", how_many(thing, by_name, dice), in_words(thing.count)
    if thing.place is not None and not ground:
        yield "place", f"Where {'are' if thing.several else 'is'} the {thing.shown}?", thing.place


def _of_relation(relation: Relation, known: Known, dice: Random) -> Asked:
    """In the caption's own words, where; or yes or no, from either end, for captions say `in front of` more often than
    `behind`: one way it holds, the other it does not, and no word is right more often than another."""
    one, true, other = relation.one, relation.words, relation.other
    if len(known.relations(one, other)) == 1 and dice.random() < 0.5:  # of two that hold, either would be right
        question = f"Where {'are' if one.several else 'is'} the {one.shown}, seen from the {other.shown}?"
        return "relation", question, true.removesuffix(" than")
    if dice.random() < 0.5:
        one, true, other = other, RELATIONS[true], one
    words, answer = (true, "yes") if dice.random() < 0.5 else (RELATIONS[true], "no")
    return "relation", f"{'Are' if one.several else 'Is'} the {one.shown} {words} the {other.shown}?", answer


def _reasoned(things: Sequence[Thing], dice: Random) -> Iterator[Asked]:
    """Which of two are more, from their numbers."""
    counted = [(thing, thing.count) for thing in things if thing.count is not None and thing.name not in GROUNDS]
    for pair in pairwise(counted):
        (one, count), (other, fewer) = pair if dice.random() < 0.5 else pair[::-1]
        if count != fewer and one.all != other.all:
            verdict = "Yes" if count > fewer else "No"
            answer = f"{verdict}: {in_words(count)} {one.shown}, {in_words(fewer)} {other.shown}."
            yield "reasoning", f"Are there more {one.all} than {other.all}?", answer


def sentence(text: str) -> str:
    """A caption with a capital at its beginning and a stop at its end."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…")) else ".")
