"""What can be said of a scene, in many wordings: templates, times synonyms, times orders.

A caption is told with the claims that it makes, so that whether it is true of another scene can be worked out.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from infra.miniweb.scenes import Group, Scene


@dataclass(frozen=True)
class Look:
    """What a caption says of one group; None where it does not say."""

    shape: str
    colour: str | None = None
    count: int | None = None
    size: str | None = None
    texture: str | None = None
    place: str | None = None
    several: bool = False
    """Whether it is told in the plural; no claim, since `several` of two would be a matter of taste."""

    def fits(self, group: Group) -> bool:
        said = (self.colour, self.count, self.size, self.texture, self.place)
        found = (group.colour, group.count, group.size, group.texture, group.place)
        return self.shape == group.shape and all(s is None or s == f for s, f in zip(said, found, strict=True))


@dataclass(frozen=True)
class Relation:
    """The one stands so to the other."""

    one: Look
    relation: str
    other: Look


@dataclass(frozen=True)
class Ground:
    """What a caption says of the background."""

    colour: str
    pattern: str | None = None


@dataclass(frozen=True)
class Written:
    """What a caption says is to be read."""

    word: str


Claim = Look | Relation | Ground | Written


@dataclass(frozen=True)
class Caption:
    """A text and everything that it claims."""

    text: str
    claims: tuple[Claim, ...]

    def true_of(self, scene: Scene) -> bool:
        return not self.false_of(scene)

    def false_of(self, scene: Scene) -> list[Claim]:
        """The claims that do not hold."""
        return [claim for claim in self.claims if not holds(claim, scene)]


def holds(claim: Claim, scene: Scene) -> bool:
    """Whether a claim is true of a scene."""
    match claim:
        case Look():
            return any(claim.fits(group) for group in scene.groups)
        case Ground(colour, pattern):
            return colour == scene.colour and pattern in (None, scene.pattern)
        case Written(word):
            return word == scene.written
        case Relation(one, relation, other):
            found = {(a, b) for a, said, b in scene.relations() if said == relation}
            pairs = ((scene.groups[a], scene.groups[b]) for a, b in found)
            return any(one.fits(a) and other.fits(b) for a, b in pairs)


# -- words -------------------------------------------------------------------------------------------------------------

Words = dict[str, tuple[str, ...]]
"""What is true, and how it may be said."""

SHAPE_WORDS: Words = {
    "circle": ("circle", "disc", "round shape"),
    "crescent": ("crescent", "half moon"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "diamond": ("diamond", "rhombus"),
    "hexagon": ("hexagon", "six-sided shape"),
    "star": ("star", "five-pointed star"),
    "cross": ("cross", "plus sign"),
    "heart": ("heart", "heart shape"),
}
PLURALS = {"box": "boxes", "cross": "crosses", "rhombus": "rhombuses"}
COLOUR_WORDS: Words = {
    "red": ("red", "red", "crimson"),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow",),
    "orange": ("orange",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "brown": ("brown",),
    "grey": ("grey", "gray"),
    "black": ("black",),
    "white": ("white",),
}
SIZE_WORDS: Words = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
TEXTURE_WORDS: Words = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "hollow": ("hollow", "outlined"),
}
PATTERN_WORDS: Words = {
    "plain": ("plain", "flat"),
    "fading": ("fading", "gradient"),
    "speckled": ("speckled", "grainy"),
    "striped": ("striped",),
    "checkered": ("checkered", "chequered"),
    "rough": ("rough", "uneven"),
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
VIEWS = ("A picture of", "A drawing of", "An image showing", "Here you see", "This shows", "Illustration of", "")
BACKGROUNDS = ("on {}", "against {}", "in front of {}", "with {} behind")
WRITINGS = ('with the word "{}" across', 'and the text "{}"', 'and the word "{}" on top')
RELATIONS = {
    "to the left of": (("is to the left of", 1), ("is left of", 1), ("is to the right of", -1)),
    "above": (("is above", 1), ("is higher up than", 1), ("is below", -1)),
}
"""Wordings of a relation; -1 tells it from the other end."""


def caption(scene: Scene, dice: random.Random) -> Caption:
    """One true wording; each tells at least one group with its colour, and the word, where there is one."""
    tell = dice.choice((_list, _list, _view, _relation, _relation, _ground_first, _detail))
    said = tell(scene, dice)
    if scene.written is None:
        return said
    text, read = said.text.removesuffix("."), dice.choice(WRITINGS).format(scene.written)
    return Caption(f"{text} {read}{said.text[len(text) :]}", (*said.claims, Written(scene.written)))


def _list(scene: Scene, dice: random.Random) -> Caption:
    """Everything that is there."""
    looks = [_look(group, dice) for group in _shuffled(scene.groups, dice)]
    texts = _listed([_phrase(look, dice) for look in looks], dice)
    ground = _maybe_ground(scene, dice)
    return _sentence([texts, _behind(ground, dice)], (*looks, *ground), dice)


def _view(scene: Scene, dice: random.Random) -> Caption:
    """What kind of picture it is, and some of what is there."""
    shown = _shuffled(scene.groups, dice)[: dice.randint(1, len(scene.groups))]
    looks = [_look(group, dice) for group in shown]
    text = _listed([_phrase(look, dice) for look in looks], dice)
    ground = _maybe_ground(scene, dice)
    return _sentence([dice.choice(VIEWS), text, _behind(ground, dice)], (*looks, *ground), dice)


def _relation(scene: Scene, dice: random.Random) -> Caption:
    """Where one group stands to another."""
    relations = list(scene.relations())
    if not relations:
        return _detail(scene, dice)
    a, relation, b = dice.choice(relations)
    one, other = (Look(group.shape, group.colour) for group in (scene.groups[a], scene.groups[b]))
    counts = scene.groups[a].count, scene.groups[b].count
    words, direction = dice.choice(RELATIONS[relation])
    first, second = ((one, counts[0]), (other, counts[1]))[::direction]
    if first[1] > 1:
        words = words.replace("is ", "are ", 1)
    text = f"{_the(*first, dice)} {words} {_the(*second, dice)}"
    ground = _maybe_ground(scene, dice)
    return _sentence([text, _behind(ground, dice)], (Relation(one, relation, other), *ground), dice)


def _ground_first(scene: Scene, dice: random.Random) -> Caption:
    """The background, and what stands before it."""
    ground = Ground(scene.colour, scene.pattern if dice.random() < 0.6 else None)
    looks = [_look(group, dice) for group in _shuffled(scene.groups, dice)]
    things = _listed([_phrase(look, dice) for look in looks], dice)
    return _sentence([_ground(ground, dice), dice.choice(("with", "behind", "and")), things], (ground, *looks), dice)


def _detail(scene: Scene, dice: random.Random) -> Caption:
    """One group, in every respect."""
    group = dice.choice(scene.groups)
    look = replace(_look(group, dice), size=group.size, texture=group.texture, place=group.place)
    ground = _maybe_ground(scene, dice)
    return _sentence([dice.choice(VIEWS), _phrase(look, dice), _behind(ground, dice)], (look, *ground), dice)


# -- phrases -----------------------------------------------------------------------------------------------------------


def _look(group: Group, dice: random.Random) -> Look:
    """The group with its colour, the rest now and then."""
    told = dice.random() < (0.8 if group.count > 1 else 0.15)
    return Look(
        group.shape,
        group.colour,
        count=group.count if told else None,
        size=group.size if dice.random() < 0.4 else None,
        texture=group.texture if group.texture != "plain" and dice.random() < 0.5 else None,
        place=group.place if dice.random() < 0.3 else None,
        several=group.count > 1,
    )


def _phrase(look: Look, dice: random.Random) -> str:
    """Such as `three small red circles at the top`."""
    noun = dice.choice(SHAPE_WORDS[look.shape])
    words = [dice.choice(table[said]) for table, said in _adjectives(look) if said is not None]
    if not look.several:
        counted = dice.choice(("one", "a single", "exactly one"))
        text = " ".join([*words, noun])
        text = with_article(text) if look.count is None else f"{counted} {text}"
    else:
        number = dice.choice(("some", "several", "a few"))
        if look.count is not None:
            number = NUMBERS[look.count] if dice.random() < 0.8 else str(look.count)
        text = " ".join([number, *words, plural(noun)])
    return text if look.place is None else f"{text} {look.place}"


def _adjectives(look: Look) -> list[tuple[Words, str | None]]:
    return [(SIZE_WORDS, look.size), (TEXTURE_WORDS, look.texture), (COLOUR_WORDS, look.colour)]


def _the(look: Look, count: int, dice: random.Random) -> str:
    noun = dice.choice(SHAPE_WORDS[look.shape])
    colour = dice.choice(COLOUR_WORDS[look.colour]) if look.colour else ""
    return f"the {colour} {noun if count == 1 else plural(noun)}"


def _maybe_ground(scene: Scene, dice: random.Random) -> tuple[Ground, ...]:
    chance = dice.random()
    if chance < 0.5:
        return ()
    return (Ground(scene.colour, scene.pattern if chance < 0.7 else None),)


def _ground(ground: Ground, dice: random.Random) -> str:
    words = [dice.choice(COLOUR_WORDS[ground.colour]), dice.choice(("background", "backdrop"))]
    if ground.pattern is not None:
        words.insert(0, dice.choice(PATTERN_WORDS[ground.pattern]))
    return with_article(" ".join(words))


def _behind(ground: Sequence[Ground], dice: random.Random) -> str:
    return dice.choice(BACKGROUNDS).format(_ground(ground[0], dice)) if ground else ""


def _sentence(pieces: Sequence[str], claims: tuple[Claim, ...], dice: random.Random) -> Caption:
    text = " ".join(piece for piece in pieces if piece)
    if dice.random() < 0.7:
        text = text[0].upper() + text[1:]
    if dice.random() < 0.5:
        text += "."
    return Caption(text, claims)


def _listed(words: Sequence[str], dice: random.Random) -> str:
    if len(words) == 1:
        return words[0]
    last = dice.choice((" and ", " and ", " next to ", " with ", ", "))
    return ", ".join(words[:-1]) + last + words[-1]


def _shuffled(groups: Sequence[Group], dice: random.Random) -> list[Group]:
    return dice.sample(groups, k=len(groups))


def plural(noun: str) -> str:
    return PLURALS.get(noun, f"{noun}s")


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
