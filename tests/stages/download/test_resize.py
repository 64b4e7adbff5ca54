"""Sizes and pixels after resizing, against img2dataset's own Resizer."""

import io
import itertools
import os
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from stages.download.decode import UPRIGHT, answer
from tests.stages.download.decoding import options, psnr
from tests.stages.download.doubles import encoded, picture, pixels

MODES = ("no", "keep_ratio", "keep_ratio_largest", "center_crop", "border")
SIZES = [
    (64, 64), (63, 64), (64, 65), (200, 100), (100, 200), (257, 191), (191, 257), (128, 96), (1000, 61), (61, 1000),
    (333, 500), (12, 9), (9, 12), (700, 7), (7, 700), (513, 512), (1, 1), (300, 1),
]  # fmt: skip
Resize = Callable[[bytes], tuple[np.ndarray, tuple[int, int]]]


@pytest.fixture(scope="module")
def peer() -> Callable[..., Resize]:
    """img2dataset's Resizer: (pixels, original size) of an image's bytes."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask PyPI for its newest version
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resizer = pytest.importorskip("img2dataset.resizer")

    def of(mode: str, side: int, only_if_bigger: bool) -> Resize:
        resize = resizer.Resizer(side, mode, only_if_bigger, encode_quality=95)

        def resized(data: bytes) -> tuple[np.ndarray, tuple[int, int]]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made, width, height, original_width, original_height, error = resize(io.BytesIO(data))
            assert error is None
            assert pixels(made).shape == (height, width, 3)
            return pixels(made), (original_width, original_height)

        return resized

    return of


@pytest.mark.parametrize("only_if_bigger", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_sizes_are_img2datasets(peer: Callable[..., Resize], mode: str, only_if_bigger: bool) -> None:
    for size, side in itertools.product(SIZES, (16, 64, 100)):
        data = encoded(picture(*size))
        theirs, original = peer(mode, side, only_if_bigger)(data)
        facts, ours = answer(data, options(resize=mode, side=side, resize_only_if_bigger=only_if_bigger))
        assert pixels(ours).shape == theirs.shape == (facts["height"], facts["width"], 3), (size, side)
        assert (facts["original_width"], facts["original_height"]) == original == size


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", [100, 400])
def test_pixels_are_img2datasets_up_to_the_filter(peer: Callable[..., Resize], mode: str, side: int) -> None:
    """Both go through a JPEG of quality 95 once more, which alone leaves some 43 dB."""
    found = []
    for seed, size in enumerate([(640, 480), (480, 640), (500, 500), (900, 250), (1000, 999)]):
        data = encoded(picture(*size, seed), quality=92)
        theirs, _ = peer(mode, side, False)(data)
        _, ours = answer(data, options(resize=mode, side=side, resize_only_if_bigger=False))
        found.append(psnr(pixels(ours), theirs))
    assert min(found) > 37, found


def test_an_upright_picture_is_what_gets_resized() -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(picture(300, 100), exif=exif)
        stored = Image.open(io.BytesIO(data))
        upright = stored.transpose(UPRIGHT[orientation]) if orientation > 1 else stored
        for mode in MODES:
            wanted = options(resize=mode, side=64, quality=100)
            _, turned = answer(data, wanted)
            _, plain = answer(encoded(upright, quality=100), wanted)
            assert pixels(turned).shape == pixels(plain).shape
            assert psnr(pixels(turned), pixels(plain)) > 30, (orientation, mode)


def test_a_border_is_white_and_a_crop_is_the_middle() -> None:
    thirds = Image.new("RGB", (300, 100), "red")
    thirds.paste("blue", (100, 0, 200, 100))
    data = encoded(thirds, quality=100, subsampling=0)
    bordered = pixels(answer(data, options(resize="border", side=90))[1])
    assert bordered[:28].min() > 240
    assert bordered[62:].min() > 240
    assert np.abs(bordered[45, 10].astype(int) - (255, 0, 0)).max() < 12
    cut = pixels(answer(data, options(resize="center_crop", side=90))[1])
    assert np.abs(cut.reshape(-1, 3).mean(axis=0) - (0, 0, 255)).max() < 12


def test_a_strip_that_would_be_enlarged_to_a_bomb_is_refused() -> None:
    strip = encoded(picture(9000, 2), "PNG")
    enlarged = {"resize": "keep_ratio", "side": 512, "resize_only_if_bigger": False}
    facts, made = answer(strip, options(**enlarged))
    assert (facts["status"], made) == ("too_many_pixels", b"")
    assert "2304000 x 512" in facts["message"]
    facts, _ = answer(strip, options(**enlarged | {"side": 16}))
    assert facts["status"] == "too_many_pixels"
    assert "65500" in facts["message"]


# -- reduced scale -----------------------------------------------------------------------------------------------------


class Scales:
    """At which scales libjpeg was told to decode."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[int] = []
        inner = JpegImageFile.draft

        def draft(image: Any, mode: str | None, size: tuple[int, int]) -> Any:
            drafted = inner(image, mode, size)
            self.seen.append(image.decoderconfig[0])
            return drafted

        monkeypatch.setattr(JpegImageFile, "draft", draft)


@pytest.mark.parametrize(
    ("size", "wanted", "scale"),
    [
        ((512, 384), {"side": 128}, 2),
        ((511, 384), {"side": 128}, 1),  # 255 pixels would remain: less than twice the target
        ((1023, 700), {"side": 128}, 2),
        ((1024, 768), {"side": 128}, 4),
        ((2048, 1536), {"side": 128}, 8),
        ((4096, 3072), {"side": 128}, 8),
        ((1200, 900), {"side": 256, "resize": "keep_ratio"}, 1),
        ((1400, 1024), {"side": 256, "resize": "keep_ratio"}, 2),
        ((1024, 2000), {"side": 256, "resize": "center_crop"}, 2),
        ((1024, 2000), {"side": 256, "resize": "border"}, 2),
        ((1000, 800), {"resize": "no"}, 1),
        ((1000, 800), {"resize": "no", "passthrough": True}, 8),
        ((200, 130), {"resize": "no", "passthrough": True}, 2),
    ],
)
def test_a_jpeg_is_decoded_at_the_least_scale_that_leaves_twice_the_target(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], wanted: dict[str, Any], scale: int
) -> None:
    scales = Scales(monkeypatch)
    facts, _ = answer(encoded(picture(*size)), options(**wanted))
    assert (facts["original_width"], facts["original_height"]) == size
    assert scales.seen == [scale]


@pytest.mark.parametrize("kind", ["baseline", "progressive", "gray", "cmyk", "4:4:4"])
def test_reduced_decoding_looks_like_full_decoding(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    image = picture(1001, 747, 3)
    image = image.convert({"gray": "L", "cmyk": "CMYK"}.get(kind, "RGB"))
    data = encoded(image, progressive=kind == "progressive", subsampling=0 if kind == "4:4:4" else 2)
    _, reduced = answer(data, options(side=128, quality=100))
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: None)
    _, full = answer(data, options(side=128, quality=100))
    assert reduced != full
    assert psnr(pixels(reduced), pixels(full)) > 40


@pytest.mark.parametrize("target", [128, 256])
def test_photographs_lose_nothing_that_is_seen(monkeypatch: pytest.MonkeyPatch, shared_data: Path, target: int) -> None:
    """At 128 as they are (640 px), at 256 enlarged to 1200 px; bench_reduced.py measures all of them."""
    files = sorted((shared_data / "coco_cc_by" / "images").glob("*.jpg"))[::4]
    photographs = [path.read_bytes() if target == 128 else enlarged(path.read_bytes(), 1200) for path in files]
    wanted = options(side=target, quality=100)
    scales = Scales(monkeypatch)
    reduced = [pixels(answer(data, wanted)[1]) for data in photographs]
    assert sum(scale > 1 for scale in scales.seen) >= 0.9 * len(files)
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: None)
    full = [pixels(answer(data, wanted)[1]) for data in photographs]
    found = [psnr(*both) for scale, *both in zip(scales.seen, reduced, full, strict=True) if scale > 1]
    assert statistics.median(found) >= 40
    assert min(found) >= 35


def enlarged(data: bytes, side: int) -> bytes:
    """A photograph whose longer side has `side` pixels, quality 85."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = side / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return encoded(image.resize(size, Image.Resampling.LANCZOS), quality=85)


@pytest.mark.parametrize("passthrough", [False, True])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.98])
def test_a_truncated_jpeg_is_found_at_reduced_scale_too(
    monkeypatch: pytest.MonkeyPatch, kept: float, progressive: bool, passthrough: bool
) -> None:
    scales = Scales(monkeypatch)
    wanted = options(resize="no", passthrough=True) if passthrough else options(side=64)
    data = encoded(picture(1600, 1200), progressive=progressive, quality=95)
    assert answer(data, wanted)[0]["status"] == "success"
    facts, made = answer(data[: int(len(data) * kept)], wanted)
    assert (facts["status"], made) == ("truncated_image", b"")
    assert scales.seen == [8, 8]
