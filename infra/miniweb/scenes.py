"""Scenes with known content: drawn from (seed, number), rendered as JPEG, described in several true wordings.

The same (seed, number) gives the same scene and, with the same Pillow, the same bytes.
"""

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw

RGB = tuple[int, int, int]
Levels = npt.NDArray[np.uint8]
Points = list[tuple[float, float]]

COLOURS: dict[str, RGB] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (250, 216, 44),
    "orange": (245, 130, 32),
    "purple": (122, 46, 176),
    "pink": (244, 140, 190),
    "brown": (120, 72, 36),
    "grey": (128, 128, 128),
    "black": (18, 18, 18),
    "white": (245, 245, 245),
}
SIZES = {"small": 0.45, "medium": 0.7, "large": 0.95}
"""How much of the shorter side of its cell an object spans."""
PLACES = (
    ("in the top left corner", "at the top", "in the top right corner"),
    ("on the left", "in the middle", "on the right"),
    ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
)
PATTERNS = ("plain", "fading", "striped", "checkered", "speckled")
COUNTS = ("no shapes", "one shape", "two shapes", "three shapes", "four shapes")
ASPECTS = (1.0, 1.0, 4 / 3, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9, 9 / 16, 3.6)
SIDES = (64, 900)
MODE = 0.29
"""Where between the bounds the most frequent side lies; with `SIDES`, half of the sides are below about 400 px."""


def _regular(corners: int, inner: float = 1.0) -> Points:
    """A regular polygon in the unit circle, first corner up; every second corner at the radius `inner`."""
    turns = [2 * math.pi * i / corners - math.pi / 2 for i in range(corners)]
    radii = [1.0 if i % 2 == 0 else inner for i in range(corners)]
    return [(r * math.cos(t), r * math.sin(t)) for r, t in zip(radii, turns, strict=True)]


POLYGONS: dict[str, Points] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": _regular(3),
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "hexagon": _regular(6),
    "star": _regular(10, inner=0.42),
    "cross": [
        (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
        (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
    ],
}  # fmt: skip
SHAPES = ("circle", "ring", *POLYGONS)


@dataclass(frozen=True)
class Thing:
    """One object; no two of a scene share both shape and colour, nor the cell."""

    shape: str
    colour: str
    size: str
    row: int
    column: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        return PLACES[self.row][self.column]


@dataclass(frozen=True)
class Scene:
    """What an image shows and how it is stored: things in reading order, on a background of none of their colours."""

    things: tuple[Thing, ...]
    pattern: str
    colour: str
    width: int
    height: int
    noise: int
    """Largest change of a pixel by noise, in levels of 255."""
    quality: int
    grain: str
    """Seeds the noise and the pattern's period."""


def draw_scene(seed: int, number: int, sides: tuple[int, int] = SIDES) -> Scene:
    """The scene of (seed, number); `sides` bounds both sides in px and changes nothing else."""
    dice = random.Random(f"miniweb/{seed}/{number}")
    names = list(COLOURS)
    ground = dice.choice(names)
    names.remove(ground)
    looks = dice.sample([(shape, colour) for shape in SHAPES for colour in names], k=dice.choice((1, 2, 2, 3, 3, 4)))
    cells = sorted(dice.sample(range(9), k=len(looks)))
    things = tuple(
        Thing(shape, colour, dice.choice(list(SIZES)), *divmod(cell, 3))
        for (shape, colour), cell in zip(looks, cells, strict=True)
    )
    pattern, noise, quality = dice.choice(PATTERNS), dice.choice((0, 0, 6, 12, 24)), dice.randint(40, 95)
    low, high = sides
    width = round(dice.triangular(low, high, low + MODE * (high - low)))
    height = min(max(round(width / dice.choice(ASPECTS)), low), high)
    return Scene(things, pattern, ground, width, height, noise, quality, grain=f"{seed}/{number}")


def captions(scene: Scene) -> tuple[str, ...]:
    """Different wordings, each of them true."""
    ground = f"a {scene.pattern} {scene.colour} background"
    things = scene.things
    names = _listed([_a(thing.name) for thing in things])
    placed = _listed([f"{_a(f'{thing.size} {thing.name}')} {thing.place}" for thing in things])
    sized = _listed([_a(f"{thing.size} {thing.name}") for thing in things])
    if len(things) > 1:
        first, second = things[:2]
        beside = "above" if first.row < second.row else "to the left of"
        relation = f"the {first.name} is {beside} the {second.name}"
    else:
        relation = f"the {things[0].name} is {things[0].place}"
    return (
        f"{placed} on {ground}",
        f"A drawing of {names}.",
        f"{relation}, {ground} behind",
        f"{COUNTS[len(things)].capitalize()} on {ground}: {names}",
        f"{ground.capitalize()} with {sized}.",
    )


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def render(scene: Scene) -> bytes:
    """The scene as a JPEG."""
    dice = random.Random(f"grain/{scene.grain}")
    image = _background(scene, dice)
    brush = ImageDraw.Draw(image)
    for thing in scene.things:
        _draw(brush, thing, scene.width / 3, scene.height / 3)
    if scene.noise:
        image = _noisy(image, scene.noise, dice)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=scene.quality)
    return data.getvalue()


def _background(scene: Scene, dice: random.Random) -> Image.Image:
    """The scene's colour, in a pattern with a lighter or darker shade of it."""
    colour = np.array(COLOURS[scene.colour], np.float64)
    shade = colour + 0.35 * ((0 if colour.mean() > 150 else 255) - colour)
    palette = np.linspace(colour, shade, 256).round().astype(np.uint8)
    levels_hw = np.broadcast_to(_pattern(scene, dice), (scene.height, scene.width))
    image = Image.fromarray(np.ascontiguousarray(levels_hw, np.uint8))
    image.putpalette(palette.tobytes())  # Pillow maps colours ten times faster than NumPy indexes rows of three
    return image.convert("RGB")


def _pattern(scene: Scene, dice: random.Random) -> Levels:
    """From 0 (the colour) to 255 (its shade), of a shape that broadcasts to (height, width)."""
    y_h1, x_1w = np.arange(scene.height, dtype=np.int32)[:, None], np.arange(scene.width, dtype=np.int32)[None, :]
    period = max(3, round(min(scene.width, scene.height) * dice.uniform(0.04, 0.15)))
    match scene.pattern:
        case "plain":
            return np.zeros((1, 1), np.uint8)
        case "fading":
            fading = x_1w * 255 // scene.width if dice.random() < 0.5 else y_h1 * 255 // scene.height
            return fading.astype(np.uint8)
        case "striped":
            turn = dice.randrange(3)
            return _odd((x_1w if turn == 0 else y_h1 if turn == 1 else x_1w + y_h1) // period)
        case "checkered":
            return _odd(x_1w // period) ^ _odd(y_h1 // period)
        case _:
            rows, columns = -(-scene.height // 3), -(-scene.width // 3)
            dots = (_grain(rows * columns, dice).reshape(rows, columns) > 230).astype(np.uint8) * 255
            return dots.repeat(3, 0).repeat(3, 1)[: scene.height, : scene.width]


def _odd(numbers: npt.NDArray[np.int32]) -> Levels:
    return (numbers & 1).astype(np.uint8) * np.uint8(255)


def _grain(count: int, dice: random.Random) -> Levels:
    """Even noise, from the generator of NumPy whose raw bits never change; Python's own is four times slower."""
    return np.frombuffer(np.random.Generator(np.random.PCG64(dice.getrandbits(64))).bytes(count), np.uint8)


def _noisy(image: Image.Image, noise: int, dice: random.Random) -> Image.Image:
    """Every pixel lighter or darker by up to `noise` levels, evenly distributed."""
    grain = Image.frombytes("L", image.size, _grain(image.width * image.height, dice).tobytes())
    grain = grain.point([level * (2 * noise + 1) // 256 for level in range(256)])
    return ImageChops.add(image, Image.merge("RGB", (grain, grain, grain)), offset=-noise)


def _draw(brush: ImageDraw.ImageDraw, thing: Thing, cell_width: float, cell_height: float) -> None:
    radius = SIZES[thing.size] * min(cell_width, cell_height) / 2
    x, y = (thing.column + 0.5) * cell_width, (thing.row + 0.5) * cell_height
    fill, box = COLOURS[thing.colour], (x - radius, y - radius, x + radius, y + radius)
    if thing.shape == "circle":
        brush.ellipse(box, fill=fill)
    elif thing.shape == "ring":
        brush.ellipse(box, outline=fill, width=max(1, round(radius * 0.4)))
    else:
        brush.polygon([(x + radius * dx, y + radius * dy) for dx, dy in POLYGONS[thing.shape]], fill=fill)
