"""What boxes show: how many of which label, in which colour, where, and how two labels lie to each other.

Who drew them saw the image, and a caption of the web is often another image's: of what has boxes these are asked, and a
caption that calls it by another colour is asked nothing. An adjective of colour before a label's name is its colour.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from statistics import fmean
from typing import Any

from stages.conversations.phrases import (
    GROUNDS,
    PLAIN,
    RELATIONS,
    SHADES,
    Said,
    Thing,
    how_many,
    in_words,
    is_the,
    said_by,
    singular,
    which_colour,
)
from stages.conversations.turns import Asked, Kind

NEAR = 0.05
"""Share of a side: centres of boxes that differ by more are left and right of each other, or above and below."""
TOGETHER = 0.18
"""Share of a side, along it: things no farther than this from their middle are in one place, the middle's."""
CLEAR = 0.02
"""Share of a side, along it: who stands nearer to the line between two ninths is in none of them."""
PLACES = (
    ("in the top left corner", "at the top", "in the top right corner"),
    ("on the left", "in the middle", "on the right"),
    ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
)
"""Of the ninths of an image."""


@dataclass(frozen=True)
class Boxed:
    """All of one label."""

    thing: Thing
    centres: tuple[tuple[float, float], ...]
    """From left and from above, in shares of the sides."""


def label_of(box: Mapping[str, Any]) -> str:
    """Of one thing, as it is written in a sentence: `Traffic_lights` is `traffic light`."""
    return singular(" ".join(str(box["label"]).lower().replace("_", " ").split()))


def boxed_by(boxes: Sequence[Mapping[str, Any]]) -> list[Boxed]:
    """Label by label, in the order in which they come."""
    centres: dict[str, list[tuple[float, float]]] = {}
    for box in boxes:
        centres.setdefault(label_of(box), []).append(_centre(box["box"]))
    return [Boxed(_thing(label, some), tuple(some)) for label, some in centres.items()]


def _thing(label: str, centres: Sequence[tuple[float, float]]) -> Thing:
    found = said_by(f"the {label}").things
    name, colour = (found[0].name, found[0].colour) if len(found) == 1 else (label, None)
    return Thing(name, len(centres) > 1, len(centres), colour, _place(centres))


def _place(centres: Sequence[tuple[float, float]]) -> str | None:
    """Where one thing is, or several that stand together; None where nobody would be sure."""
    middle = (fmean(x for x, _ in centres), fmean(y for _, y in centres))
    scattered = any(abs(at - mid) > TOGETHER for centre in centres for at, mid in zip(centre, middle, strict=True))
    between = any(abs(at - line / 3) < CLEAR for at in middle for line in (1, 2))
    empty = _ninth(middle) not in map(_ninth, centres)  # between two of them there may be none
    column, row = _ninth(middle)
    return None if scattered or between or empty else PLACES[row][column]


def _ninth(centre: tuple[float, float]) -> tuple[int, int]:
    """Column and row."""
    return min(int(3 * centre[0]), 2), min(int(3 * centre[1]), 2)


def fitting(name: str, boxed: Sequence[Boxed]) -> list[Boxed]:
    """Of every label that a name fits: `ball` does one of a tennis ball."""
    return [one for one in boxed if one.thing.name == name or one.thing.name.endswith(f" {name}")]


def denied(said: Said, boxed: Sequence[Boxed]) -> bool:
    """Whether a caption calls something that has boxes by another colour than all of them. Of words that are not one
    of `PLAIN` nobody knows where they end: a turquoise car may be a blue one."""
    for thing in (thing for thing in said.things if thing.colour is not None):
        colours = {_plain(one.thing.colour) for one in fitting(thing.name, boxed)}
        if colours and {*colours, _plain(thing.colour)} <= PLAIN and _plain(thing.colour) not in colours:
            return True
    return False


def _meant(one: Boxed, boxed: Sequence[Boxed]) -> bool:
    """Whether its words fit no other label: beside red stars, who knows which are stars?"""
    rivals = [_plain(other.thing.colour) for other in fitting(one.thing.name, boxed) if other is not one]
    return not {_plain(one.thing.colour), ""} & {*rivals} if one.thing.colour else not rivals


def _plain(colour: str | None) -> str:
    return SHADES.get(colour, colour) if colour else ""


def asked_of_boxes(
    boxed: Sequence[Boxed], dice: Random, kinds: Collection[Kind], every_way: bool = False
) -> Iterator[Asked]:
    """Kind, question and answer; perhaps also of kinds that are not wanted. How two lie to each other is asked in one
    of the ways that `kinds` has; with `every_way` in all, though one answer tells the others."""
    meant = [one for one in boxed if one.thing.name not in GROUNDS and _meant(one, boxed)]
    for one in meant:
        thing, alone = one.thing, len(fitting(one.thing.name, boxed)) == 1
        if alone and thing.colour is not None:
            yield "colour", which_colour(thing, dice), thing.colour
        yield "count", how_many(thing, alone, dice), in_words(len(one.centres))
        if thing.place is not None:
            yield "place", f"Where {'are' if thing.several else 'is'} the {thing.shown}?", thing.place
    for pair in pairwise(meant):  # from either end, for lists of boxes often begin at the top left
        one, other = pair if dice.random() < 0.5 else pair[::-1]
        for axis, before in enumerate(("to the left of", "above")):
            mine, theirs = ([centre[axis] for centre in some.centres] for some in (one, other))
            if max(mine) + NEAR < min(theirs):
                true = before
            elif max(theirs) + NEAR < min(mine):
                true = RELATIONS[before]
            else:
                continue
            sides = f"{before} or {RELATIONS[before]}"
            wanted = [way for way in _ways(one.thing, other.thing, sides, true) if way[0] in kinds]
            if wanted:
                yield from wanted if every_way else [dice.choice(wanted)]


def _ways(one: Thing, other: Thing, sides: str, true: str) -> Iterator[Asked]:
    """How to ask for a relation: on which of two sides, from either end, or whether it is on one of them."""
    for first, second, answer in (one, other, true), (other, one, RELATIONS[true]):
        yield "relation", f"{is_the(first)} {sides} the {second.shown}?", answer
    for words, answer in (true, "yes"), (RELATIONS[true], "no"):
        yield "verify", f"{is_the(one)} {words} the {other.shown}?", answer


def _centre(box: Sequence[float]) -> tuple[float, float]:
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2
