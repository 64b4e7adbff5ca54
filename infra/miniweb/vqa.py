"""What people ask about a picture, and what ten of them answer: number n of a set from (set, seed, n) alone.

Scenes that no web shows, simple ones: a question is about one thing in a picture, large enough to be seen at 64 px.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from infra.miniweb.captions import COLOUR_WORDS, NUMBERS, plural
from infra.miniweb.questions import OPPOSITES, held_out
from infra.miniweb.scenes import FEW, WORDS, Scene, in_order, simplified

PEOPLE = 10
"""Who answer each question, as VQAv2 has it."""


@dataclass(frozen=True)
class Question:
    """A picture, a question about it, and the answers of ten people."""

    scene: Scene
    text: str
    answers: tuple[str, ...]
    kind: str
    """What is asked for: questions of one kind can be guessed alike."""


Ask = Callable[[Scene, random.Random], Question | None]


def question(name: str, seed: int, number: int) -> Question:
    """Question `number` of a set: of `questions` the kinds take turns."""
    asks = ASKS[name]
    ask, dice = asks[number % len(asks)], random.Random(f"{name}/{seed}/{number}")
    return next(found for scene in held_out(name, seed, number) if (found := ask(scene, dice)) is not None)


def ground(scene: Scene, dice: random.Random) -> Question:
    return Question(simplified(scene), "What colour is the background?", _coloured(scene.colour), "background")


def colour(scene: Scene, dice: random.Random) -> Question:
    """Of one thing among one or two of other shapes and colours."""
    scene = simplified(scene)
    groups = tuple(replace(group, count=1) for group in scene.groups)
    if len({group.shape for group in groups}) < len(groups):
        groups = groups[:1]
    asked = dice.choice(groups)
    answers = _coloured(asked.colour)
    return Question(replace(scene, groups=groups), f"What colour is the {asked.shape}?", answers, "colour")


def count(scene: Scene, dice: random.Random) -> Question:
    """Of one to four things, each number as often."""
    scene = simplified(scene)
    group = replace(scene.groups[0], count=dice.randint(1, FEW))
    text = f"How many {group.colour} {plural(group.shape)} are there?"
    return Question(replace(scene, groups=(group,)), text, (NUMBERS[group.count],) * PEOPLE, "count")


def place(scene: Scene, dice: random.Random) -> Question:
    """Of one thing, alone or among two: in which corner is it? In each as often, which is why scenes are mirrored."""
    scene = simplified(scene)
    down, across = dice.random() < 0.5, dice.random() < 0.5
    groups = tuple(
        replace(
            group,
            count=1,
            row=2 - group.row if down else group.row,
            column=2 - group.column if across else group.column,
        )
        for group in scene.groups
    )
    scene = replace(scene, groups=in_order(groups))
    asked = dice.choice(scene.groups)
    people = PEOPLE // 2
    answers = (asked.place,) * people + (asked.place.removesuffix(" corner"),) * people
    return Question(scene, f"Where is the {asked.colour} {asked.shape}?", answers, "place")


def relation(scene: Scene, dice: random.Random, verify: bool = False) -> Question | None:
    """On which side of one thing another is: left or right, above or below, each from either end, so that no word is
    right more often than another. `verify`: whether it is on a side, yes or no (so called in GQA, Hudson & Manning
    2019)."""
    scene = simplified(scene)
    scene = replace(scene, groups=tuple(replace(group, count=1) for group in scene.groups))
    found = list(scene.relations())
    if not found:
        return None
    one, words, other = dice.choice(found)
    wrong = OPPOSITES[f"is {words}"].removeprefix("is ")
    sides = f"{words} or {wrong}"
    if dice.random() < 0.5:
        one, words, other, wrong = other, wrong, one, words
    names = [f"the {scene.groups[place].colour} {scene.groups[place].shape}" for place in (one, other)]
    if verify:
        true = dice.random() < 0.5
        said = "yes" if true else "no"
        return Question(scene, f"Is {names[0]} {words if true else wrong} {names[1]}?", (said,) * PEOPLE, "verify")
    brief = words.removeprefix("to the ").removesuffix(" of")
    answers = (words,) * (PEOPLE // 2) + (brief,) * (PEOPLE // 2)
    return Question(scene, f"Is {names[0]} {sides} {names[1]}?", answers, "relation")


def reading(scene: Scene, dice: random.Random) -> Question:
    """A word over the picture, which is sharp: asked is whether it can be read, and not through what."""
    word = dice.choice(WORDS)
    scene = replace(simplified(scene), noise=0, blur=1, written=word)
    return Question(scene, "What is written in the image?", (word.lower(),) * PEOPLE, "reading")


ASKS: dict[str, tuple[Ask, ...]] = {
    "questions": (ground, colour, count, place, relation, reading),
    "verify": (partial(relation, verify=True),),
}


def _coloured(name: str) -> tuple[str, ...]:
    """What ten people call a colour: each of its names four of them or more, so that all are right."""
    names = tuple(dict.fromkeys(COLOUR_WORDS[name]))
    return tuple(names[person % len(names)] for person in range(PEOPLE))
