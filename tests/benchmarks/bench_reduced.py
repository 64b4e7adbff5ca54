"""JPEGs decoded at reduced scale against full decoding: how often it happens, and what it costs in PSNR.

The photographs are those of COCO beside the project, whose longer side has 640 pixels: shrunk to 128 as they are, and
to 256 once they are enlarged to 1200 pixels. Without them there is nothing to measure.
"""

from __future__ import annotations

import io
import statistics
import time

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from stages.download.decode import Options, answer
from tests.benchmarks.figures import Figure
from tests.conftest import PROJECT
from tests.stages.download.decoding import options, psnr
from tests.stages.download.doubles import pixels
from tests.stages.download.test_resize import enlarged

PHOTOGRAPHS = PROJECT.parent / "shared" / "data" / "coco_cc_by" / "images"
REPEATS = 3


def measure() -> list[Figure]:
    files = sorted(PHOTOGRAPHS.glob("*.jpg"))
    if not files:
        return [Figure("photographs to measure", 0, "", note=f"there are none at {PHOTOGRAPHS}")]
    plain = [path.read_bytes() for path in files]
    large = [enlarged(data, 1200) for data in plain]
    return [*compared(plain, 128, "640 px to 128"), *compared(large, 256, "1200 px to 256")]


def compared(photographs: list[bytes], side: int, what: str) -> list[Figure]:
    wanted = options(side=side, quality=100)
    draft = JpegImageFile.draft
    found, scales, spent = [], [], {"reduced": 0.0, "full": 0.0}
    for data in photographs:
        scale = scale_of(data, side)
        scales.append(scale)
        reduced, reduced_s = timed(data, wanted)
        try:
            JpegImageFile.draft = lambda *_: None  # type: ignore[method-assign]
            full, full_s = timed(data, wanted)
        finally:
            JpegImageFile.draft = draft  # type: ignore[method-assign]
        spent["reduced"] += reduced_s
        spent["full"] += full_s
        if scale > 1:
            found.append(psnr(pixels(reduced), pixels(full)))
    share = 100 * len(found) / len(photographs)
    saved = spent["full"] / spent["reduced"]
    return [
        Figure(f"{what}: decoded at reduced scale", share, "%", note=f"of {len(photographs)} photographs of COCO"),
        Figure(f"{what}: PSNR to full decoding, median", statistics.median(found), "dB", at_least=40),
        Figure(f"{what}: PSNR to full decoding, least", min(found), "dB"),
        Figure(f"{what}: time of full decoding", saved, "×", note="decoding, shrinking, hashing and encoding"),
    ]


def scale_of(data: bytes, side: int) -> int:
    """What libjpeg divides the sides by: the largest power of two, up to 8, that leaves twice the target."""
    with Image.open(io.BytesIO(data)) as image:
        longest = max(image.size)
    return max(scale for scale in (1, 2, 4, 8) if scale == 1 or longest // scale >= 2 * side)


def timed(data: bytes, wanted: Options) -> tuple[bytes, float]:
    """The JPEG and the least of a few times (s)."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        _, made = answer(data, wanted)
        times.append(time.perf_counter() - started)
    return made, min(times)
