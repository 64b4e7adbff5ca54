"""Scenes with known content: groups of shapes on a background, drawn from a seed, and changed in known ways.

What is true of a scene is here; `render` paints it, `captions` tells it.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp, log

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "grey", "black", "white")
SHAPES = ("circle", "square", "triangle", "diamond", "hexagon", "star", "cross", "heart", "crescent")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted", "hollow")
PATTERNS = ("plain", "fading", "speckled", "striped", "checkered", "rough")
PLACES = (
    ("in the top left corner", "at the top", "in the top right corner"),
    ("on the left", "in the middle", "on the right"),
    ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
)
ASPECTS = (1.0, 1.0, 4 / 3, 4 / 3, 4 / 3, 3 / 4, 3 / 4, 3 / 2, 2 / 3, 16 / 9, 9 / 16, 2.4)
MANY = 6
"""Most things of one group."""
FEW = 4
"""Most things of one group that can be large, for all to fit their cell."""
WORDS = ("STOP", "OPEN", "EXIT", "SALE", "TAXI", "CAFE", "BANK", "HOTEL", "MUSIC", "PIZZA", "WATER", "PARK")
"""What can be written over a picture."""
CELLS = 9
CORNERS = (0, 2, 6, 8)
NAMES = {ground: [(shape, colour) for shape in SHAPES for colour in COLOURS if colour != ground] for ground in COLOURS}
"""What can be seen on a background."""


@dataclass(frozen=True)
class Sides:
    """Sides of images: log-normal around a median, between bounds, in px."""

    median: float
    spread: float
    """Standard deviation of the logarithm."""
    low: int
    high: int

    def draw(self, dice: random.Random, aspect: float) -> tuple[int, int]:
        """Width and height; the geometric mean of the two is what is log-normal."""
        mean = exp(dice.gauss(log(self.median), self.spread))
        width, height = round(mean * aspect**0.5), round(mean / aspect**0.5)
        return min(max(width, self.low), self.high), min(max(height, self.low), self.high)


SIDES = {
    "small": Sides(256, 0.5, 64, 1024),
    "medium": Sides(512, 0.6, 64, 3000),
    "large": Sides(1200, 0.5, 64, 3000),
}
"""`small` is quick to render and to fetch; `large` is what cameras and shops publish."""
CROWDS = ("any", "simple")
"""How much is in a scene: whatever was drawn, or what `simplified` leaves of it."""
TINY = Sides(40, 0.3, 16, 63)


@dataclass(frozen=True)
class Group:
    """Things that look the same, in one cell of three by three. No two groups share shape and colour, nor the cell."""

    count: int
    shape: str
    colour: str
    size: str
    texture: str
    row: int
    column: int

    @property
    def place(self) -> str:
        return PLACES[self.row][self.column]

    @property
    def cell(self) -> int:
        return 3 * self.row + self.column


@dataclass(frozen=True)
class Scene:
    """What an image shows and how it is stored: groups in reading order, on a background of none of their colours."""

    groups: tuple[Group, ...]
    pattern: str
    colour: str
    """Of the background."""
    width: int
    height: int
    light: float
    """How bright the whole is; 1 leaves the colours as they are."""
    warmth: float
    """Below 0 bluish, above 0 reddish, in shares of a channel."""
    blur: int
    """Side in px of what was one pixel: 1 is sharp."""
    noise: int
    """Standard deviation of the noise, in levels of 255."""
    quality: int
    """Of the JPEG, 30 to 95."""
    grain: str
    """Seeds what no caption tells: noise, a pattern's period, the places within a cell, the shade of each colour."""
    near: bool = False
    """Seen from near: what stands in the corner cells fills a quarter of the image each, and nothing else is there."""
    written: str | None = None
    """A word across the middle, over all that is shown."""

    def relations(self) -> Iterator[tuple[int, str, int]]:
        """(subject, relation, object): what is to the left of, or above, what, by numbers of groups."""
        for first, one in enumerate(self.groups):
            for second, other in enumerate(self.groups):
                if one.column < other.column:
                    yield first, "to the left of", second
                if one.row < other.row:
                    yield first, "above", second


def draw_scene(seed: str, sides: Sides) -> Scene:
    """The scene of a seed; other sides change nothing else."""
    dice = random.Random(f"scene/{seed}")
    ground = dice.choice(COLOURS)
    looks = dice.sample(NAMES[ground], k=dice.choice((1, 2, 2, 2, 3, 3, 4)))
    cells = dice.sample(range(CELLS), k=len(looks))
    groups = [_group(dice, shape, colour, cell) for (shape, colour), cell in zip(looks, cells, strict=True)]
    scene = Scene(in_order(groups), dice.choice(PATTERNS), ground, 0, 0, 1.0, 0.0, 1, 0, 75, seed)
    return taken(scene, dice, sides)


def taken(scene: Scene, dice: random.Random, sides: Sides, aspect: float | None = None) -> Scene:
    """The same scene by another camera: size, light, warmth, blur, noise and quality are drawn anew."""
    light = dice.uniform(0.75, 1.1)
    warmth = dice.uniform(-0.1, 0.1)
    blur, noise = dice.choice((1, 1, 1, 2, 2, 3)), dice.choice((0, 0, 3, 6, 12))
    quality = dice.randint(30, 95)
    width, height = sides.draw(dice, dice.choice(ASPECTS) if aspect is None else aspect)
    return replace(
        scene, light=light, warmth=warmth, blur=blur, noise=noise, quality=quality, width=width, height=height
    )


def simplified(scene: Scene) -> Scene:
    """The same from near with one group or two, all large and plain: what a model of 64 px can see after some minutes.

    Groups stand in the corners, to each other as they stood.
    """
    shown = scene.groups if scene.near else scene.groups[: 2 if len(scene.groups) > 2 else 1]
    rows, columns = _ends([group.row for group in shown]), _ends([group.column for group in shown])
    plain = tuple(
        replace(group, count=min(group.count, FEW), size="large", texture="plain", row=row, column=column)
        for group, row, column in zip(shown, rows, columns, strict=True)
    )
    return replace(scene, groups=in_order(plain), near=True)


def _ends(places: Sequence[int]) -> list[int]:
    """One place or two of 0 to 2, moved to 0 or 2 in the same order."""
    if len(set(places)) == 1:
        return [2 * (place // 2) for place in places]
    return [2 * (place == max(places)) for place in places]


def _cells(scene: Scene) -> Sequence[int]:
    """Where groups may stand."""
    return CORNERS if scene.near else range(CELLS)


def in_order(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Groups as they are read."""
    return tuple(sorted(groups, key=lambda group: group.cell))


def _group(dice: random.Random, shape: str, colour: str, cell: int) -> Group:
    count = dice.choice((1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6))
    size = dice.choice(SIZES) if count <= FEW else "small"
    return Group(count, shape, colour, size, dice.choice((*TEXTURES, "plain", "plain")), *divmod(cell, 3))


# -- changes -----------------------------------------------------------------------------------------------------------

Change = Callable[[Scene, random.Random], Scene | None]
"""Changes one attribute and leaves shapes, background and camera as they are; None where the scene has no way to."""


def _with(scene: Scene, changed: dict[int, Group]) -> Scene | None:
    groups = [changed.get(number, group) for number, group in enumerate(scene.groups)]
    names = {(group.shape, group.colour) for group in groups}
    return replace(scene, groups=in_order(groups)) if len(names) == len(groups) else None


def _one(scene: Scene, dice: random.Random) -> tuple[int, Group]:
    number = dice.randrange(len(scene.groups))
    return number, scene.groups[number]


def other_colour(scene: Scene, dice: random.Random) -> Scene | None:
    """One group in a colour that is nowhere in the scene."""
    number, group = _one(scene, dice)
    there = {scene.colour, *(other.colour for other in scene.groups)}
    return _with(scene, {number: replace(group, colour=dice.choice([c for c in COLOURS if c not in there]))})


def swapped_colours(scene: Scene, dice: random.Random) -> Scene | None:
    """Two groups exchange their colours: the same colours and the same shapes, bound otherwise."""
    numbers = dice.sample(range(len(scene.groups)), k=min(2, len(scene.groups)))
    if len(numbers) < 2:
        return None
    one, other = (scene.groups[number] for number in numbers)
    if one.colour == other.colour or one.shape == other.shape:
        return None
    pair = (replace(one, colour=other.colour), replace(other, colour=one.colour))
    return _with(scene, dict(zip(numbers, pair, strict=True)))


def other_count(scene: Scene, dice: random.Random) -> Scene | None:
    """One group with one or two things more or less."""
    number, group = _one(scene, dice)
    most = MANY if group.size == "small" else FEW
    counts = [count for count in range(1, most + 1) if 0 < abs(count - group.count) <= 2]
    return _with(scene, {number: replace(group, count=dice.choice(counts))})


def other_size(scene: Scene, dice: random.Random) -> Scene | None:
    """A group of small things becomes large, or the reverse."""
    number, group = _one(scene, dice)
    if group.count > FEW:
        return None
    return _with(scene, {number: replace(group, size="small" if group.size == "large" else "large")})


def other_texture(scene: Scene, dice: random.Random) -> Scene | None:
    number, group = _one(scene, dice)
    return _with(scene, {number: replace(group, texture=dice.choice([t for t in TEXTURES if t != group.texture]))})


def other_place(scene: Scene, dice: random.Random) -> Scene | None:
    """A group exchanges its cell with another group, or moves to an empty one."""
    number, group = _one(scene, dice)
    cell = dice.choice([cell for cell in _cells(scene) if cell != group.cell])
    row, column = divmod(cell, 3)
    changed = {number: replace(group, row=row, column=column)}
    for other, found in enumerate(scene.groups):
        if found.cell == cell:
            changed[other] = replace(found, row=group.row, column=group.column)
    return _with(scene, changed)


def other_shape(scene: Scene, dice: random.Random) -> Scene | None:
    """One group in a shape that is nowhere in the scene: another class of object."""
    number, group = _one(scene, dice)
    there = {other.shape for other in scene.groups}
    return _with(scene, {number: replace(group, shape=dice.choice([s for s in SHAPES if s not in there]))})


ATTRIBUTES: dict[str, Change] = {
    "colour": other_colour,
    "count": other_count,
    "size": other_size,
    "texture": other_texture,
    "place": other_place,
    "shape": other_shape,
}
"""Those that touch one attribute of one group; a place may be exchanged."""


def another(scene: Scene, dice: random.Random, recoloured: bool = False) -> Scene:
    """Another picture of the same classes of objects, drawn anew in all else.

    Every colour, the background's too, becomes another one of the scene's own, or with `recoloured` any other one: by
    the colours alone the two pictures are then as alike as can be, or are not. A word, where there is one, is another.
    """
    there = sorted({scene.colour, *(group.colour for group in scene.groups)})
    while True:
        colours = dict(zip(there, dice.sample(COLOURS if recoloured else there, k=len(there)), strict=True))
        if all(before != after for before, after in colours.items()):
            break
    cells = dice.sample(_cells(scene), k=len(scene.groups))
    drawn = [
        _group(dice, group.shape, colours[group.colour], cell) for group, cell in zip(scene.groups, cells, strict=True)
    ]
    found = replace(scene, groups=in_order(drawn), pattern=dice.choice(PATTERNS), colour=colours[scene.colour])
    if scene.written is not None:
        found = replace(found, written=dice.choice([word for word in WORDS if word != scene.written]))
    return simplified(found) if scene.near else found
