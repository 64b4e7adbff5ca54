"""One picture again: what happens to it on its way through the web. The same captions stay true of it."""

import io
import random
from collections.abc import Callable

from PIL import Image, ImageEnhance

from infra.miniweb.render import encoded

Body = tuple[bytes, str]
"""Bytes and their content type."""
Alteration = Callable[[Image.Image, random.Random], Body]

FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def reencoded(image: Image.Image, dice: random.Random) -> Body:
    """The same pixels in another file: a JPEG of another quality, a WebP or a PNG."""
    kind = dice.choice(("JPEG", "JPEG", "WEBP", "PNG"))
    data = io.BytesIO()
    image.save(data, kind, **({} if kind == "PNG" else {"quality": dice.randint(25, 90)}))
    return data.getvalue(), FORMATS[kind]


def resized(image: Image.Image, dice: random.Random) -> Body:
    """Smaller or a little larger, with the same ratio."""
    scale = dice.choice((0.5, 0.6, 0.7, 0.8, 1.25, 1.5))
    size = max(16, round(image.width * scale)), max(16, round(image.height * scale))
    return encoded(image.resize(size, Image.Resampling.BICUBIC), 85), "image/jpeg"


def cropped(image: Image.Image, dice: random.Random) -> Body:
    """Without 2 to 7 % at every edge, and never without a whole group."""
    left, top, right, bottom = (dice.uniform(0.02, 0.07) for _ in range(4))
    box = (
        round(left * image.width),
        round(top * image.height),
        round((1 - right) * image.width),
        round((1 - bottom) * image.height),
    )
    return encoded(image.crop(box), 90), "image/jpeg"


def recoloured(image: Image.Image, dice: random.Random) -> Body:
    """Brighter or darker, with more or less contrast and saturation: no colour takes another's name."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(dice.choice((0.85, 0.9, 1.1, 1.15)))
    return encoded(image, 90), "image/jpeg"


ALTERATIONS: tuple[Alteration, ...] = (reencoded, resized, cropped, recoloured)
