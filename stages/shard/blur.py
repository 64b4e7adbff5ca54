"""Boxes of an image made unrecognisable, as Yang et al. 2021 (A Study of Face Obfuscation in ImageNet) blur faces.

Each box grows by a tenth of its diagonal on every side and is blurred with a Gaussian of that deviation. A JPEG is
written with its own quantisation tables and subsampling, so what lies outside hardly changes; WebP with quality 95, PNG
without loss, a GIF as PNG. Colour profile and orientation stay, other EXIF goes: it may tell where a face was.
"""

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageFilter

from pipeline.rows import FORMATS

SHARE = 0.1
"""Of a box's diagonal: how far it grows, and the deviation of the Gaussian."""
LEAST_SIGMA = 3.0
"""Pixels, for faces so small that a tenth would leave them as they are."""
REACH = 3
"""Deviations beyond which a Gaussian adds nothing."""
ORIENTATION = 0x0112
"""The EXIF tag."""
PLAIN = ("L", "LA", "RGB", "RGBA", "CMYK")
"""Modes whose values can be averaged."""


def blurred(data: bytes, boxes: Sequence[Sequence[float]]) -> bytes:
    """The image file with its boxes blurred; each box x0, y0, x1, y1 in shares of width and height."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.load()
        orientation = image.getexif().get(ORIENTATION)
        kind, profile = image.format, image.info.get("icc_profile")
        canvas: Image.Image = image
        if image.mode not in PLAIN:
            canvas = image.convert("RGBA" if image.has_transparency_data else "RGB")
        for box in boxes:
            _blur(canvas, box)
        exif = Image.Exif()
        if orientation is not None:
            exif[ORIENTATION] = orientation
        sink = io.BytesIO()
        if kind == "JPEG":
            canvas.save(sink, "JPEG", quality="keep", icc_profile=profile, exif=exif)
        elif kind == "MPO":  # a JPEG with further pictures behind it, which are left out
            canvas.save(sink, "JPEG", quality=95, icc_profile=profile, exif=exif)
        elif kind == "WEBP":
            canvas.save(sink, "WEBP", quality=95, icc_profile=profile, exif=exif)
        else:
            canvas.save(sink, "PNG", icc_profile=profile, exif=exif)
        return sink.getvalue()


def _blur(canvas: Image.Image, box: Sequence[float]) -> None:
    """Blur one box in place; what is around it is looked at, and stays."""
    width, height = canvas.size
    left, top, right, bottom = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    grow = SHARE * math.hypot(right - left, bottom - top)
    sigma = max(LEAST_SIGMA, grow)
    inner = _within(canvas, left - grow, top - grow, right + grow, bottom + grow)
    if inner[0] >= inner[2] or inner[1] >= inner[3]:  # it lies outside of the image
        return
    reach = REACH * sigma
    outer = _within(canvas, inner[0] - reach, inner[1] - reach, inner[2] + reach, inner[3] + reach)
    soft = canvas.crop(outer).filter(ImageFilter.GaussianBlur(sigma))
    x, y = inner[0] - outer[0], inner[1] - outer[1]
    canvas.paste(soft.crop((x, y, x + inner[2] - inner[0], y + inner[3] - inner[1])), inner)


def _within(canvas: Image.Image, left: float, top: float, right: float, bottom: float) -> tuple[int, int, int, int]:
    """The whole pixels that a rectangle touches, inside of the image."""
    return (
        min(max(0, math.floor(left)), canvas.width),
        min(max(0, math.floor(top)), canvas.height),
        max(0, min(canvas.width, math.ceil(right))),
        max(0, min(canvas.height, math.ceil(bottom))),
    )
