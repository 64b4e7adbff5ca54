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

from stages.conversations.known import Known
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
from stages.conversations.turns import TEMPLATE, Kind, Turn

DESCRIBE = (
    "Describe the image in detail.",
    "What do you see in this image?",
    "Give a detailed description of the picture.",
    "What is shown here?",
    "Write a caption for this image.",
)
NEAR = 0.05
"""Share of a side: centres of boxes that differ by more are left and right of each other, or above and below."""


def turns_of(
    captions: Sequence[Mapping[str, Any]],
    boxes: Sequence[Mapping[str, Any]],
    dice: Random,
    kinds: Collection[Kind],
) -> list[Turn]:
    """All of these kinds that can be asked of a sample: of each of its captions (`caption_id`, `text`) and of its boxes
    (`label`, `box` as left, top, right, bottom). What one caption leaves open or another denies is not asked. How many
    there are of what has boxes, and how it lies to what has some too, the boxes say and no caption."""
    found: list[Turn] = []
    said = [said_by(caption["text"]) for caption in captions]
    known = Known(said)
    boxed = frozenset(singular(str(box["label"]).lower()) for box in boxes)
    for caption, own in zip(captions, said, strict=True):
        identity, text = caption.get("caption_id"), caption["text"]
        told = [("description", dice.choice(DESCRIBE), sentence(text)), *_asked(own, known, dice, kinds, boxed)]
        found += [Turn(kind, question, answer, identity, TEMPLATE) for kind, question, answer in told]
    found += [Turn(kind, question, answer, None, TEMPLATE) for kind, question, answer in _of_boxes(boxes, dice)]
    return [turn for turn in found if turn.kind in kinds]


Asked = tuple[Kind, str, str]


def _asked(said: Said, known: Known, dice: Random, kinds: Collection[Kind], boxed: Collection[str]) -> Iterator[Asked]:
    """Kind, question and answer; also of kinds that are not wanted. `boxed`: labels of boxes, in the singular."""
    for thing in said.things:
        asked = _of_thing(thing, known, dice, kinds)
        yield from (one for one in asked if one[0] != "count" or not _has_boxes(thing, boxed))
    for relation in said.relations:
        if _has_boxes(relation.one, boxed) and _has_boxes(relation.other, boxed):
            continue
        if known.meant(relation.one) and known.meant(relation.other) and known.undenied(relation):
            yield from _of_relation(relation, known, dice)
    for text in said.readings:
        question = dice.choice(("What is written in the image?", "What does the text say?", "What can be read here?"))
        yield "reading", question, text
    yield from _reasoned([one for one in said.things if known.meant(one) and not _has_boxes(one, boxed)], dice)


def _has_boxes(thing: Thing, boxed: Collection[str]) -> bool:
    """Whether a label names it: `red star` does a star, and a red one."""
    return any(label == thing.name or label.endswith(f" {thing.name}") for label in boxed)


def _of_thing(thing: Thing, known: Known, dice: Random, kinds: Collection[Kind]) -> Iterator[Asked]:
    """What is asked before how many there are is asked so that it does not tell: of any star, of a kind of thing."""
    if not known.meant(thing):
        return
    ground, colour = thing.name in GROUNDS, thing.colour
    by_name = known.colours(thing.name) == {colour} and known.meant(replace(thing, colour=None))
    by_colour = colour is not None and known.names(colour) == {thing.name}
    both_asked = "colour" in kinds and "question" in kinds
    if by_name and by_colour and both_asked and not ground:  # each gives the other away
        by_name, by_colour = (True, False) if dice.random() < 0.5 else (False, True)
    if colour is not None and by_name:
        the = "the" if ground else "any"
        wordings = (f"What colour is {the} {thing.name}?", f"Which colour does {the} {thing.name} have?")
        yield "colour", dice.choice(wordings), colour
    if by_colour and not ground:
        yield "question", f"What kind of thing is {colour}?", thing.name
    if thing.count is not None and not ground:
        wordings = (f"How many {thing.all} are there?", f"What is the number of {thing.all}?")
        yield "count", dice.choice(wordings), in_words(thing.count)
    if thing.place is not None and not ground:
        yield "place", f"Where {'are' if thing.several else 'is'} the {thing.shown}?", thing.place


def _of_relation(relation: Relation, known: Known, dice: Random) -> Iterator[Asked]:
    """Yes or no from either end, for captions say `in front of` more often than `behind`; one way it holds, the other
    it does not: no word is right more often than another. And in the caption's own words, where."""
    one, true, other = relation.one, relation.words, relation.other
    if dice.random() < 0.5:
        one, true, other = other, RELATIONS[true], one
    words, answer = (true, "yes") if dice.random() < 0.5 else (RELATIONS[true], "no")
    yield "relation", f"{'Are' if one.several else 'Is'} the {one.shown} {words} the {other.shown}?", answer
    if len(known.relations(one, other)) == 1:  # of two that hold, either would be right
        one, other = relation.one, relation.other
        yield (
            "relation",
            f"Where {'are' if one.several else 'is'} the {one.shown}, seen from the {other.shown}?",
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
    """How many there are of each label, and how all of one label lie to all of the next."""
    centres: dict[str, list[tuple[float, float]]] = {}
    for box in boxes:
        centres.setdefault(str(box["label"]).lower(), []).append(_centre(box["box"]))
    for label, some in centres.items():
        yield "count", f"How many {plural(singular(label))} are there?", in_words(len(some))
    for pair in pairwise(centres.items()):  # from either end, for lists of boxes often begin at the top left
        (one, here), (other, there) = pair if dice.random() < 0.5 else pair[::-1]
        names = [
            singular(label) if len(some) == 1 else plural(singular(label))
            for label, some in ((one, here), (other, there))
        ]
        for axis, before in enumerate(("to the left of", "above")):
            mine, theirs = ([centre[axis] for centre in some] for some in (here, there))
            if max(mine) + NEAR < min(theirs):
                true = before
            elif max(theirs) + NEAR < min(mine):
                true = RELATIONS[before]
            else:
                continue
            words, answer = (true, "yes") if dice.random() < 0.5 else (RELATIONS[true], "no")
            yield "relation", f"{'Is' if len(here) == 1 else 'Are'} the {names[0]} {words} the {names[1]}?", answer


def _centre(box: Sequence[float]) -> tuple[float, float]:
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2


def sentence(text: str) -> str:
    """A caption with a capital at its beginning and a stop at its end."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…")) else ".")
