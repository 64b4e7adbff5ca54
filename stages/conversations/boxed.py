"""What boxes show: how many of which label, in which colour, where, and how two labels lie to each other.

Who drew them saw the image, and a caption of the web is often another image's: what has boxes is asked of these alone,
and a caption that they deny is asked nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

from stages.conversations.phrases import (
    COLOURS,
    RELATIONS,
    SHADES,
    Said,
    Thing,
    how_many,
    in_words,
    singular,
    which_colour,
)
from stages.conversations.turns import Asked

NEAR = 0.05
"""Share of a side: centres of boxes that differ by more are left and right of each other, or above and below."""
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


def boxed_by(boxes: Sequence[Mapping[str, Any]]) -> list[Boxed]:
    """Label by label, in the order in which they come."""
    centres: dict[str, list[tuple[float, float]]] = {}
    for box in boxes:
        label = singular(" ".join(str(box["label"]).lower().split()))
        centres.setdefault(label, []).append(_centre(box["box"]))
    found = []
    for label, some in centres.items():
        first, _, rest = label.partition(" ")
        colour, name = (first, rest) if first in COLOURS and rest else (None, label)
        ninths = {PLACES[min(int(3 * y), 2)][min(int(3 * x), 2)] for x, y in some}
        place = ninths.pop() if len(ninths) == 1 else None
        found.append(Boxed(Thing(name, len(some) > 1, len(some), colour, place), tuple(some)))
    return found


def denied(said: Said, boxed: Sequence[Boxed]) -> bool:
    """Whether a caption calls something that has boxes by another colour than all of them."""
    colours: dict[str, set[str | None]] = {}
    for one in boxed:
        colours.setdefault(one.thing.name, set()).add(_plain(one.thing.colour))
    return any(
        thing.name in colours and None not in colours[thing.name] and _plain(thing.colour) not in colours[thing.name]
        for thing in said.things
        if thing.colour is not None
    )


def _plain(colour: str | None) -> str | None:
    return SHADES.get(colour, colour) if colour else None


def asked_of(boxed: Sequence[Boxed], dice: Random) -> Iterator[Asked]:
    """Kind, question and answer; also of kinds that are not wanted."""
    names = Counter(one.thing.name for one in boxed)
    for one in boxed:
        thing, alone = one.thing, names[one.thing.name] == 1
        if alone and thing.colour is not None:
            yield "colour", which_colour(thing, dice), thing.colour
        yield "count", how_many(thing, alone, dice), in_words(len(one.centres))
        if thing.place is not None:
            yield "place", f"Where {'are' if thing.several else 'is'} the {thing.shown}?", thing.place
    for pair in pairwise(boxed):  # from either end, for lists of boxes often begin at the top left
        one, other = pair if dice.random() < 0.5 else pair[::-1]
        for axis, before in enumerate(("to the left of", "above")):
            mine, theirs = ([centre[axis] for centre in some.centres] for some in (one, other))
            if max(mine) + NEAR < min(theirs):
                true = before
            elif max(theirs) + NEAR < min(mine):
                true = RELATIONS[before]
            else:
                continue
            verb, shown = "Are" if one.thing.several else "Is", one.thing.shown
            if dice.random() < 0.5:
                words, answer = (true, "yes") if dice.random() < 0.5 else (RELATIONS[true], "no")
            else:
                words, answer = f"{before} or {RELATIONS[before]}", true
            yield "relation", f"{verb} the {shown} {words} the {other.thing.shown}?", answer


def _centre(box: Sequence[float]) -> tuple[float, float]:
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2
