"""Scenes as pixels and as JPEGs: with the same Pillow, the same scene gives the same bytes.

Everything is done by Pillow's own loops on 8-bit images, a few milliseconds per 256 x 256 px: light and warmth are
mixed into the few colours before anything is painted, blur is painting small and enlarging, noise is a tile made once.
"""

import io
import math
import random
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFont

from infra.miniweb.scenes import Group, Scene

RGB = tuple[int, int, int]
Levels = npt.NDArray[np.uint8]
Points = list[tuple[float, float]]

PAINTS: dict[str, RGB] = {
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
SHADE = 12
"""Levels by which a paint's channels may differ from one scene to the next."""
RADII = {"small": 0.041, "large": 0.066}
"""Of the shorter side; a large thing that is alone in its cell has `ALONE`."""
ALONE = 0.135
ROWS = {1: (1,), 2: (2,), 3: (2, 1), 4: (2, 2), 5: (3, 2), 6: (3, 3)}
"""How the things of a group stand in their cell: so many in each row."""
LINES = {"plain": 0.0, "hollow": 0.22, "striped": 0.08, "dotted": 0.08}
"""Width of the line around a thing, in shares of its radius, by texture."""
READABLE = 0.8, 0.6
"""Shares of width and height that a word takes at most, one of them whole."""
TILE = 512


def _regular(corners: int, inner: float = 1.0) -> Points:
    """A regular polygon in the unit circle, first corner up; every second corner at the radius `inner`."""
    turns = [2 * math.pi * i / corners - math.pi / 2 for i in range(corners)]
    radii = [1.0 if i % 2 == 0 else inner for i in range(corners)]
    return [(r * math.cos(t), r * math.sin(t)) for r, t in zip(radii, turns, strict=True)]


def _heart() -> Points:
    turns = [2 * math.pi * i / 40 for i in range(40)]
    up = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(math.sin(t) ** 3, -(y + 2.5) / 15) for t, y in zip(turns, up, strict=True)]


def _crescent() -> Points:
    """A disc without another disc that covers its right half."""
    outer = [math.radians(degrees) for degrees in range(48, 313, 8)]
    inner = [math.radians(degrees) for degrees in range(270, 89, -9)]
    edge = [(math.cos(t) + 0.15, math.sin(t)) for t in outer]
    return edge + [(0.55 * math.cos(t) + 0.75, 0.75 * math.sin(t)) for t in reversed(inner)][::-1]


OUTLINES: dict[str, Points] = {
    "circle": _regular(60),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": _regular(3),
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "hexagon": _regular(6),
    "star": _regular(10, inner=0.42),
    "cross": [
        (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
        (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
    ],
    "heart": _heart(),
    "crescent": _crescent(),
}  # fmt: skip


def jpeg(scene: Scene) -> bytes:
    """The scene as its page publishes it."""
    return encoded(paint(scene), scene.quality)


def encoded(image: Image.Image, quality: int) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return data.getvalue()


def paint(scene: Scene) -> Image.Image:
    """The scene in RGB, as large as it says."""
    width, height = max(1, scene.width // scene.blur), max(1, scene.height // scene.blur)
    dice = random.Random(f"grain/{scene.grain}")
    paints = {name: _lit(PAINTS[name], scene, dice) for name in PAINTS}
    image = _background(scene, paints[scene.colour], (width, height), dice)
    for group in scene.groups:
        for thing in things(scene, group, image.size):
            _stamp(image, group, paints[group.colour], thing)
    if scene.blur > 1:
        image = image.resize((scene.width, scene.height), Image.Resampling.BILINEAR)
    if scene.written is not None:
        _write(image, scene.written)
    return _noisy(image, scene.noise, dice) if scene.noise else image


def _lit(colour: RGB, scene: Scene, dice: random.Random) -> RGB:
    """A paint under the light of a scene."""
    gains = (scene.light * (1 + scene.warmth), scene.light, scene.light * (1 - scene.warmth))
    levels = [gain * (level + dice.uniform(-SHADE, SHADE)) for gain, level in zip(gains, colour, strict=True)]
    red, green, blue = (min(max(round(level), 0), 255) for level in levels)
    return red, green, blue


def _background(scene: Scene, colour: RGB, size: tuple[int, int], dice: random.Random) -> Image.Image:
    """The scene's colour, in a pattern with a lighter or darker shade of it."""
    image = Image.new("RGB", size, colour)
    if scene.pattern == "plain":
        return image
    target = 0 if sum(colour) > 450 else 255
    red, green, blue = (round(level + 0.3 * (target - level)) for level in colour)
    image.paste((red, green, blue), (0, 0, *size), _mask(scene.pattern, size, dice))
    return image


def _mask(pattern: str, size: tuple[int, int], dice: random.Random) -> Image.Image:
    """Where the shade of a pattern lies: 0 is nowhere, 255 everywhere. Periods are shares of the image's sides."""
    cells = dice.randint(5, 14)
    turned = dice.random() < 0.5
    match pattern:
        case "fading":
            ramp = Image.linear_gradient("L")
            return (ramp.transpose(Image.Transpose.ROTATE_90) if turned else ramp).resize(size)
        case "striped":
            line = (np.arange(2 * cells) % 2 * 255).astype(np.uint8)
            small = Image.fromarray(line[None, :] if turned else line[:, None])
        case "checkered":
            across = max(1, round(cells * size[0] / size[1]))
            board = (np.arange(across)[None, :] + np.arange(cells)[:, None]) % 2 * 255
            small = Image.fromarray(board.astype(np.uint8))
        case "rough":
            levels = np.frombuffer(dice.randbytes(12 * 12), np.uint8).reshape(12, 12)
            return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)
        case _:
            columns, rows = (max(1, round(90 * side / max(size))) for side in size)
            dots = np.frombuffer(dice.randbytes(rows * columns), np.uint8).reshape(rows, columns) > 225
            small = Image.fromarray(dots.astype(np.uint8) * 255)
    return small.resize(size, Image.Resampling.NEAREST)


class Thing(NamedTuple):
    """Where one is drawn: its centre and its radius, in px."""

    x: float
    y: float
    radius: float


def things(scene: Scene, group: Group, size: tuple[int, int]) -> Iterator[Thing]:
    """All of a group in their cell, each a little off its place, in a picture of that width and height."""
    dice = random.Random(f"places/{scene.grain}/{group.cell}")
    across, column, row = (2, group.column // 2, group.row // 2) if scene.near else (3, group.column, group.row)
    side = min(size)
    share = ALONE if group.size == "large" and group.count == 1 else RADII[group.size]
    radius = share * 3 / across * side * dice.uniform(0.9, 1.1)
    cell_x, cell_y = size[0] / across, size[1] / across
    rows = ROWS[group.count]
    for down, many in enumerate(rows):
        for right in range(many):
            x = (column + (right + 0.5) / many) * cell_x + dice.uniform(-0.01, 0.01) * side
            y = (row + (down + 0.5) / len(rows)) * cell_y + dice.uniform(-0.01, 0.01) * side
            yield Thing(x, y, radius)


def _stamp(image: Image.Image, group: Group, colour: RGB, thing: Thing) -> None:
    """One thing: its outline filled with its texture."""
    x, y, radius = thing
    points = [(x + radius * dx, y + radius * dy) for dx, dy in OUTLINES[group.shape]]
    brush = ImageDraw.Draw(image)
    if group.texture == "plain":
        brush.polygon(points, fill=colour)
        return
    if group.texture == "hollow":
        brush.line(
            [*points, points[0], points[1]], fill=colour, width=max(1, round(radius * LINES["hollow"])), joint="curve"
        )
        return
    left, top = math.floor(x - radius), math.floor(y - radius)
    side = math.ceil(2 * radius) + 2
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon([(px - left, py - top) for px, py in points], fill=255)
    image.paste(colour, (left, top), ImageChops.multiply(mask, _texture(group.texture, side)))
    brush.line([*points, points[0]], fill=colour, width=max(1, round(radius * LINES[group.texture])))


@lru_cache(64)
def _texture(texture: str, side: int) -> Image.Image:
    """What of a thing is painted: seven stripes, or dots in rows."""
    place = np.arange(side) * 7 // side
    if texture == "striped":
        return Image.fromarray(np.where((place % 2 == 0)[:, None], 255, 0).repeat(side, 1).astype(np.uint8))
    inside = np.abs(np.arange(side) * 7 / side % 1 - 0.5)
    dots = np.hypot(inside[:, None], inside[None, :]) < 0.36
    return Image.fromarray(dots.astype(np.uint8) * 255)


def _write(image: Image.Image, word: str) -> None:
    """Across the middle, white in a black frame, so that any ground lets it be read."""
    draw = ImageDraw.Draw(image)
    size = 10.0
    for _ in range(3):  # widths grow nearly as sizes do
        left, top, right, bottom = draw.textbbox((0, 0), word, ImageFont.load_default(size))
        size *= min(READABLE[0] * image.width / (right - left), READABLE[1] * image.height / (bottom - top))
    draw.text(
        (image.width / 2, image.height / 2),
        word,
        (255, 255, 255),
        ImageFont.load_default(size),
        anchor="mm",
        stroke_width=max(1, round(min(image.width / 60, size / 12))),
        stroke_fill=(0, 0, 0),
    )


def _noisy(image: Image.Image, noise: int, dice: random.Random) -> Image.Image:
    """Every pixel lighter or darker, by a normal number of levels."""
    tile = _grain(noise)
    left, top = dice.randrange(TILE), dice.randrange(TILE)
    grain = Image.new("L", image.size)
    for y in range(-top, image.height, TILE):
        for x in range(-left, image.width, TILE):
            grain.paste(tile, (x, y))
    return ImageChops.add(image, Image.merge("RGB", (grain, grain, grain)), offset=-128)


@cache
def _grain(noise: int) -> Image.Image:
    """128 and about, from raw bits whose sequence never changes: the sum of four bytes is nearly normal."""
    bits = np.frombuffer(np.random.Generator(np.random.PCG64(noise)).bytes(4 * TILE * TILE), np.uint8)
    sums = bits.reshape(4, TILE, TILE).astype(np.float32).sum(0) - 4 * 127.5
    levels = np.clip(np.rint(sums * (noise / 147.8) + 128), 0, 255)  # 147.8: the standard deviation of four bytes
    return Image.fromarray(levels.astype(np.uint8))
