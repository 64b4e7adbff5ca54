"""Pairs of images: copies of every kind, and look-alikes that differ in one thing."""

import io
import random
from collections.abc import Callable, Sequence

from PIL import Image, ImageEnhance

from infra.miniweb.copies import cropped as trimmed
from infra.miniweb.copies import opened, recoloured, reencoded, resized
from infra.miniweb.render import jpeg
from infra.miniweb.scenes import ATTRIBUTES, SIDES, draw_scene, swapped_colours

Pair = tuple[str, bool, bytes, bytes]
"""Kind, whether it is a copy, and the two images."""


def encoded(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=85)
    return sink.getvalue()


def cropped(image: Image.Image, dice: random.Random) -> Image.Image:
    side = dice.uniform(0.62, 0.95) ** 0.5
    width, height = round(image.width * side), round(image.height * side)
    left, top = dice.randint(0, image.width - width), dice.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def shrunk(image: Image.Image, dice: random.Random) -> Image.Image:
    scale = dice.uniform(0.5, 0.9)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def tinted(image: Image.Image, dice: random.Random) -> Image.Image:
    red, green, blue = (dice.randint(0, 255) for _ in range(3))
    return Image.blend(image, Image.new("RGB", image.size, (red, green, blue)), 0.2)


COPIES: dict[str, Callable[[Image.Image, random.Random], bytes]] = {
    "reencoded": lambda image, dice: reencoded(image, dice)[0],
    "resized": lambda image, dice: resized(image, dice)[0],
    "trimmed": lambda image, dice: trimmed(image, dice)[0],
    "recoloured": lambda image, dice: recoloured(image, dice)[0],
    "cropped": lambda image, dice: encoded(cropped(image, dice)),
    "cropped and shrunk": lambda image, dice: encoded(shrunk(cropped(image, dice), dice)),
    "brighter": lambda image, dice: encoded(ImageEnhance.Brightness(image).enhance(dice.choice((0.7, 1.3)))),
    "contrast": lambda image, dice: encoded(ImageEnhance.Contrast(image).enhance(dice.choice((0.6, 1.4)))),
    "saturation": lambda image, dice: encoded(ImageEnhance.Color(image).enhance(dice.choice((0.4, 1.6)))),
    "tinted": lambda image, dice: encoded(tinted(image, dice)),
    "greyscale": lambda image, dice: encoded(image.convert("L").convert("RGB")),
}


def scene_pairs(seed: int, each: int, sides: str = "medium") -> list[Pair]:
    """`each` pairs of rendered scenes of every kind of copy, and of every attribute in which a look-alike differs."""
    dice = random.Random(seed)
    found: list[Pair] = []
    for number in range(each):
        for kind, copy in COPIES.items():
            original = jpeg(draw_scene(f"{seed}/{kind}/{number}", SIDES[sides]))
            found.append((kind, True, original, copy(opened(original).convert("RGB"), dice)))
        for attribute, change in {**ATTRIBUTES, "binding": swapped_colours}.items():
            scene = draw_scene(f"{seed}/{attribute}/{number}", SIDES[sides])
            other = change(scene, dice)
            if other is not None:
                found.append((f"other {attribute}", False, jpeg(scene), jpeg(other)))
        a, b = (draw_scene(f"{seed}/other/{number}/{side}", SIDES[sides]) for side in "ab")
        found.append(("other scene", False, jpeg(a), jpeg(b)))
    return found


def photo_pairs(images: Sequence[bytes], seed: int, each: int) -> list[Pair]:
    """`each` copies of every kind of real images, and pairs of different ones."""
    dice = random.Random(seed)
    found: list[Pair] = []
    for kind, copy in COPIES.items():
        for data in dice.sample(images, min(each, len(images))):
            found.append((kind, True, data, copy(opened(data).convert("RGB"), dice)))
    for _ in range(4 * each):
        a, b = dice.sample(images, 2)
        found.append(("other image", False, a, b))
    return found
