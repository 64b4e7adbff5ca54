"""Files that are not plain JPEGs: sound ones that a decoder must take care with, and traps."""

import io
import struct
import zipfile
import zlib
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from infra.miniweb.render import encoded

FRAMES = 300
"""Of an animated GIF."""
BOMB_SIDE = 20_000
NEAR_BOMB_SIDE = 7_000
"""49 megapixels: just under the limit of 50 that a careful decoder has."""
GZIP_BOMB_BYTES = 10 << 30
UPRIGHT = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""By EXIF orientation: what makes the stored picture of an upright one (CIPA DC-008, section 4.6.5)."""

LOGIN = b"<!doctype html>\n<title>Please log in</title>\n<p>This image is for members only.</p>\n"
SVG = (
    b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="300" height="300">'
    b'<script>fetch("http://169.254.169.254/")</script><circle cx="150" cy="150" r="90" fill="red"/></svg>\n'
)


def cmyk(image: Image.Image, quality: int) -> bytes:
    return encoded(image.convert("CMYK"), quality)


def deep_png(image: Image.Image) -> bytes:
    """16 bits per channel, which Pillow reads and does not write."""
    levels_hwc = np.asarray(image).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in levels_hwc)
    header = struct.pack(">IIBBBBB", image.width, image.height, 16, 2, 0, 0, 0)
    return _png(header, zlib.compress(rows, 1))


def palette_alpha(image: Image.Image) -> bytes:
    """A palette of 64 colours with one that is transparent, in the corner."""
    small = image.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = small.getpalette() or []
    clear = len(palette) // 3
    small.putpalette([*palette, 0, 0, 0])
    ImageDraw.Draw(small).rectangle((0, 0, 3, 3), fill=clear)
    data = io.BytesIO()
    small.save(data, "PNG", transparency=clear, compress_level=1)
    return data.getvalue()


def animated_gif(image: Image.Image) -> bytes:
    """The image, and 299 more frames that change one pixel each."""
    data = io.BytesIO()
    image.quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(data, "GIF")
    whole = data.getvalue()
    assert whole[-1:] == b";"
    pixel = b"\x21\xf9\x04\x04\x05\0\0\0" + b"\x2c\0\0\0\0\x01\0\x01\0\0" + b"\x02\x02\x44\x01\0"
    return whole[:-1] + pixel * (FRAMES - 1) + b";"


def animated_webp(image: Image.Image, quality: int) -> bytes:
    """The image, and two frames that fade."""
    others = [image.point([round(level * share) for level in range(256)] * 3) for share in (0.8, 0.6)]
    data = io.BytesIO()
    image.save(data, "WEBP", save_all=True, append_images=others, duration=100, quality=quality, method=0)
    return data.getvalue()


def rotated(image: Image.Image, orientation: int, quality: int) -> bytes:
    """Stored in another position, with the EXIF orientation (2 to 8) that turns it upright."""
    turn = UPRIGHT[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    (image if turn is None else image.transpose(turn)).save(data, "JPEG", quality=quality, exif=exif)
    return data.getvalue()


def polyglot(jpeg: bytes) -> bytes:
    """A JPEG that is a zip archive as well."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(zipfile.ZipInfo("run.sh"), "echo hello\n")
    return jpeg + data.getvalue()


@cache
def png_bomb() -> bytes:
    """Says that it has 400 megapixels, and ends before the first."""
    return _png(struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 1, 0, 0, 0, 0), zlib.compress(b""))


@cache
def png_near_bomb() -> bytes:
    """A whole PNG of one grey."""
    row = b"\0" + b"\x80" * NEAR_BOMB_SIDE
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(row) for _ in range(NEAR_BOMB_SIDE)) + packer.flush()
    return _png(struct.pack(">IIBBBBB", NEAR_BOMB_SIDE, NEAR_BOMB_SIDE, 8, 0, 0, 0, 0), rows)


@cache
def zeros_block() -> tuple[bytes, bytes]:
    """The head of a gzip stream, and a mebibyte of zeros in a kilobyte of it that may be repeated at will.

    A full flush ends at a whole byte and forgets what came before, so that the block can follow itself.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\x02\xff", block


@cache
def placeholder() -> bytes:
    """What hosts send in place of an image that is gone: a grey card with a crossed frame."""
    image = Image.new("RGB", (320, 240), (226, 226, 226))
    brush = ImageDraw.Draw(image)
    brush.rectangle((110, 75, 210, 165), outline=(160, 160, 160), width=5)
    brush.line((110, 75, 210, 165), fill=(160, 160, 160), width=4)
    brush.line((110, 165, 210, 75), fill=(160, 160, 160), width=4)
    brush.rectangle((90, 190, 230, 198), fill=(180, 180, 180))
    return encoded(image, 80)


def _png(header: bytes, data: bytes) -> bytes:
    chunks = (b"IHDR" + header, b"IDAT" + data, b"IEND")
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
