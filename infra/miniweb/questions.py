"""What an evaluation set asks: a scene, and what is to be told of it. Number n of a set from (set, seed, n) alone.

Scenes are drawn from seeds that no page of any web has (`held-out/…`), square, so that no model's crop cuts off what a
caption tells. Where a shape, a number or a place is asked for, things are large: at 64 px a small one is a dot.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count

from infra.miniweb.captions import NUMBERS, Caption, Look, Relation, caption, plural, with_article
from infra.miniweb.scenes import (
    COLOURS,
    FEW,
    SHAPES,
    SIDES,
    Group,
    Scene,
    draw_scene,
    simplified,
    swapped_colours,
    taken,
)

CAPTION_TRIES = 60
"""Wordings of a scene that are tried, for each that is wanted, before another scene is drawn."""
OPPOSITES = {"is to the left of": "is to the right of", "is above": "is below"}


@dataclass(frozen=True)
class Question:
    """An image, and what is right of it."""

    scene: Scene
    label: str | None = None
    """Its class, in a set for classification."""
    captions: tuple[Caption, ...] = ()
    """All true, in a set for retrieval; the first alone, where one is to be chosen."""


def held_out(name: str, seed: int, number: int, scenes: str = "any") -> Iterator[Scene]:
    """Scenes for question `number` of a set, as many as are asked for; `scenes` as a web has them (`CROWDS`)."""
    for turn in count():
        drawn = f"held-out/{name}/{seed}/{number}/{turn}"
        scene = draw_scene(drawn, SIDES["small"])
        scene = simplified(scene) if scenes == "simple" else scene
        yield taken(scene, random.Random(f"square/{drawn}"), SIDES["small"], aspect=1.0)


def first(
    name: str, seed: int, number: int, ask: Callable[[Scene, random.Random], Question | None], scenes: str = "any"
) -> Question:
    """What `ask` makes of the first scene of which it makes something."""
    dice = random.Random(f"{name}/{seed}/{number}")
    return next(found for scene in held_out(name, seed, number, scenes) if (found := ask(scene, dice)) is not None)


# -- classes -----------------------------------------------------------------------------------------------------------


def shape(scene: Scene, dice: random.Random) -> Question:
    """One large thing: of what shape is it?"""
    group = replace(scene.groups[0], shape=dice.choice(SHAPES), count=1, size="large")
    return Question(replace(scene, groups=(group,)), label=group.shape)


def colour(scene: Scene, dice: random.Random) -> Question:
    """One group, of any size and number: of what colour is it?"""
    group = replace(scene.groups[0], colour=dice.choice([name for name in COLOURS if name != scene.colour]))
    return Question(replace(scene, groups=(group,)), label=group.colour)


def ground(scene: Scene, dice: random.Random) -> Question:
    """Of what colour is the background? What a model learns first, for it is most of the picture."""
    return Question(scene, label=scene.colour)


# -- one caption among others ------------------------------------------------------------------------------------------


def _thing(group: Group) -> str:
    """Such as `three red circles`, in words that every caption of the web may have."""
    noun = f"{group.colour} {group.shape}"
    return with_article(noun) if group.count == 1 else f"{NUMBERS[group.count]} {group.colour} {plural(group.shape)}"


def _look(group: Group) -> Look:
    return Look(group.shape, group.colour, group.count)


def _listed(groups: tuple[Group, ...]) -> Caption:
    return Caption(" and ".join(_thing(group) for group in groups), tuple(_look(group) for group in groups))


def _chosen(scene: Scene, right: Caption, wrong: list[Caption]) -> Question | None:
    """None where one of the wrong ones happens to be true."""
    assert right.true_of(scene)
    return None if any(said.true_of(scene) for said in wrong) else Question(scene, captions=(right, *wrong))


def binding(scene: Scene, dice: random.Random) -> Question | None:
    """Which of two things has which colour? The wrong caption swaps them: the same words in another order."""
    if len(scene.groups) < 2:
        return None
    scene = replace(scene, groups=tuple(replace(group, count=1, size="large") for group in scene.groups[:2]))
    swapped = swapped_colours(scene, dice)
    if swapped is None:
        return None
    order = dice.sample((0, 1), k=2)
    told = [_listed((one.groups[order[0]], one.groups[order[1]])) for one in (scene, swapped)]
    return _chosen(scene, told[0], told[1:])


def counting(scene: Scene, dice: random.Random) -> Question | None:
    """How many are there, of one to four? All other numbers are wrong."""
    group = replace(scene.groups[0], count=dice.randint(1, FEW), size="large")
    scene = replace(scene, groups=(group,))
    others = [number for number in range(1, FEW + 1) if number != group.count]
    return _chosen(scene, _listed((group,)), [_listed((replace(group, count=number),)) for number in others])


def relations(scene: Scene, dice: random.Random) -> Question | None:
    """Does the one lie left of the other or right of it, above or below? Of two things, one way is wrong."""
    groups = tuple(replace(group, count=1, size="large") for group in scene.groups[:2])
    scene = replace(scene, groups=groups)
    found = list(scene.relations())
    if not found:
        return None
    one, relation, other = dice.choice(found)
    here, there = scene.groups[one], scene.groups[other]
    words = next(words for words in OPPOSITES if words.endswith(relation))
    right, wrong = (here, words, there), (here, OPPOSITES[words], there)
    if dice.random() < 0.5:  # told from the other end, so that no word is right more often than another
        right, wrong = (there, OPPOSITES[words], here), (there, words, here)
    return _chosen(scene, _related(right, relation, (here, there)), [_related(wrong, relation, (there, here))])


def _related(told: tuple[Group, str, Group], relation: str, claimed: tuple[Group, Group]) -> Caption:
    """In words, and as the claim that the first of two groups stands so to the second."""
    (one, words, other), looks = told, [Look(group.shape, group.colour) for group in claimed]
    text = f"the {one.colour} {one.shape} {words} the {other.colour} {other.shape}"
    return Caption(text, (Relation(looks[0], relation, looks[1]),))


# -- retrieval ---------------------------------------------------------------------------------------------------------


def retrieval(seed: int, samples: int, captions: int, crowd: str = "any") -> Iterator[Question]:
    """Scenes as those of the web, each with `captions` wordings that are true of no other scene of the set.

    Every caption names a shape with its colour, so that only the scenes that have it need to be looked at. `crowd`: how
    much is in them (`CROWDS`).
    """
    scenes: dict[tuple[str, str], list[Scene]] = {}
    told: dict[tuple[str, str], list[Caption]] = {}
    for number in range(samples):
        dice = random.Random(f"retrieval/{seed}/{number}")
        for scene in held_out("retrieval", seed, number, crowd):
            looks = [(group.shape, group.colour) for group in scene.groups]
            if any(said.true_of(scene) for look in looks for said in told.get(look, ())):
                continue
            found = dict[str, Caption]()
            for _ in range(CAPTION_TRIES * captions):
                said = caption(scene, dice)
                if not any(said.true_of(other) for other in scenes.get(_named(said), ())):
                    found.setdefault(said.text, said)
                if len(found) == captions:
                    break
            else:
                continue
            break
        for look in looks:
            scenes.setdefault(look, []).append(scene)
        for said in found.values():
            told.setdefault(_named(said), []).append(said)
        yield Question(scene, captions=tuple(found.values()))


def _named(said: Caption) -> tuple[str, str]:
    """A shape and its colour that a caption claims."""
    for claim in said.claims:
        look = claim.one if isinstance(claim, Relation) else claim
        if isinstance(look, Look) and look.colour is not None:
            return look.shape, look.colour
    raise AssertionError(f"{said.text!r} names no shape with its colour")
