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

from stages.conversations.boxed import Boxed, asked_of_boxes, boxed_by, denied, fitting
from stages.conversations.known import Known
from stages.conversations.phrases import (
    GROUNDS,
    RELATIONS,
    Relation,
    Said,
    Thing,
    how_many,
    in_words,
    is_the,
    said_by,
    which_colour,
)
from stages.conversations.turns import TEMPLATE, Asked, Kind, Turn

DESCRIBE = (
    "Describe the image in detail.",
    "What do you see in this image?",
    "Give a detailed description of the picture.",
    "What is shown here?",
    "Write a caption for this image.",
)
About = tuple[Kind, frozenset[str]]
"""What is asked for, and of what, in words."""


def turns_of(
    captions: Sequence[Mapping[str, Any]],
    boxes: Sequence[Mapping[str, Any]],
    dice: Random,
    kinds: Collection[Kind],
    every_way: bool = False,
) -> list[Turn]:
    """All of these kinds that can be asked of a sample: of each of its captions (`caption_id`, `text`) and of its boxes
    (`label`, `box` as left, top, right, bottom). What one caption leaves open or another denies is not asked; of what
    has boxes no caption is asked more than a colour that the label leaves open. `every_way`: see `asked_of_boxes`."""
    found: list[Turn] = []
    boxed = boxed_by(boxes)
    said = [said_by(caption["text"]) for caption in captions]
    true = Known([own for own in said if not denied(own, boxed)])
    before: set[About] = set()
    for caption, own in zip(captions, said, strict=True):
        identity, text, wrong = caption.get("caption_id"), caption["text"], denied(own, boxed)
        described: Asked = ("description", dice.choice(DESCRIBE), sentence(text))
        told = _of_caption(own, Known([own]) if wrong else true, dice, kinds, boxed)
        for about, asked in [(None, described), *told]:
            again = about in before
            found.append(Turn(*asked, identity, TEMPLATE, "denied" if wrong else "duplicate" if again else None))
            if about is not None and not wrong:
                before.add(about)
    found += [Turn(*asked, None, TEMPLATE) for asked in asked_of_boxes(boxed, dice, kinds, every_way)]
    return [turn for turn in found if turn.kind in kinds]


def _of_caption(
    said: Said, known: Known, dice: Random, kinds: Collection[Kind], boxed: Sequence[Boxed]
) -> Iterator[tuple[About | None, Asked]]:
    """What each is about, and what is asked; also of kinds that are not wanted."""
    unseen = [thing for thing in said.things if not fitting(thing.name, boxed)]
    for thing in said.things:
        for asked in _of_thing(thing, known, dice):
            if thing in unseen or (asked[0] == "colour" and _colour_is_open(thing, boxed)):
                yield (asked[0], frozenset((thing.shown,))), asked
    for relation in said.relations:
        ends = relation.one, relation.other
        if all(thing in unseen and known.meant(thing) for thing in ends) and known.undenied(relation):
            words = *(thing.shown for thing in ends), relation.words, RELATIONS[relation.words]
            yield ("relation", frozenset(words)), _of_relation(relation, known, dice, kinds)
    for text in said.readings:
        question = dice.choice(("What is written in the image?", "What does the text say?", "What can be read here?"))
        yield ("reading", frozenset((text.lower(),))), ("reading", question, text)
    if "medium" in kinds and said.medium is not None and known.media() == {said.medium}:
        question = dice.choice(("What kind of picture is this?", "What kind of image is this?"))
        yield ("medium", frozenset((said.medium,))), ("medium", question, said.medium)
    yield from ((None, asked) for asked in _reasoned([thing for thing in unseen if known.meant(thing)], dice))


def _colour_is_open(thing: Thing, boxed: Sequence[Boxed]) -> bool:
    """Whether what has boxes is of one label, which tells no colour, and as many as the caption's: one, or several."""
    found = [one.thing for one in fitting(thing.name, boxed)]
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


def _of_relation(relation: Relation, known: Known, dice: Random, kinds: Collection[Kind]) -> Asked:
    """In the caption's own words, where; or yes or no, from either end, for captions say `in front of` more often than
    `behind`: one way it holds, the other it does not, and no word is right more often than another. Of two of `kinds`
    one is drawn; where more than one relation holds it is yes or no, wanted or not."""
    one, true, other = relation.one, relation.words, relation.other
    clear = len(known.relations(one, other)) == 1  # of two that hold, either would be right
    if clear and "relation" in kinds and ("verify" not in kinds or dice.random() < 0.5):
        question = f"Where {'are' if one.several else 'is'} the {one.shown}, seen from the {other.shown}?"
        return "relation", question, true.removesuffix(" than")
    if dice.random() < 0.5:
        one, true, other = other, RELATIONS[true], one
    words, answer = (true, "yes") if dice.random() < 0.5 else (RELATIONS[true], "no")
    return "verify", f"{is_the(one)} {words} the {other.shown}?", answer


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
