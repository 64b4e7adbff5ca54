"""The perceptual hash: its formula, and how far copies and other pictures lie apart."""

import io
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from stages.download.decode import answer
from stages.download.perceptual_hash import perceptual_hash
from tests.stages.download.decoding import options
from tests.stages.download.doubles import encoded, picture


def by_formula(gray: bytes) -> int:
    """C(u, v) = sum over y, x of g(y, x) cos(pi u (2y + 1) / 64) cos(pi v (2x + 1) / 64); then the median."""

    def wave(frequency: int, place: int) -> float:
        return math.cos(math.pi * frequency * (2 * place + 1) / 64)

    lowest = [
        math.fsum(gray[32 * y + x] * wave(u, y) * wave(v, x) for y in range(32) for x in range(32))
        for u in range(8)
        for v in range(8)
    ]
    middle = statistics.median(lowest)
    return int("".join("1" if value > middle else "0" for value in lowest), 2)


def of(data: bytes, **changes: Any) -> int:
    facts, _ = answer(data, options(**changes))
    assert facts["status"] == "success"
    return perceptual_hash(bytes.fromhex(facts["gray"]))


def distance(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def test_it_is_the_published_formula() -> None:
    rng = np.random.default_rng(3)
    for _ in range(8):
        gray = rng.integers(0, 256, 1024, dtype=np.uint8).tobytes()
        assert perceptual_hash(gray) == by_formula(gray)


def test_it_is_what_scipy_and_the_median_give() -> None:
    """The lines of imagehash and imagededup."""
    fft = pytest.importorskip("scipy.fft")
    rng = np.random.default_rng(4)
    for _ in range(200):
        gray_nn = rng.integers(0, 256, (32, 32), dtype=np.uint8)
        lowest = fft.dct(fft.dct(gray_nn.astype(float), axis=0), axis=1)[:8, :8]
        bits = np.packbits(lowest > np.median(lowest))
        assert perceptual_hash(gray_nn.tobytes()) == int.from_bytes(bits.tobytes(), "big")


def test_it_fits_64_bits_and_half_of_them_are_ones() -> None:
    rng = np.random.default_rng(5)
    hashes = [perceptual_hash(rng.integers(0, 256, 1024, dtype=np.uint8).tobytes()) for _ in range(100)]
    assert max(hashes) < 1 << 64
    assert {value.bit_count() for value in hashes} == {32}
    assert len(set(hashes)) == 100


@pytest.mark.parametrize("level", [0, 1, 77, 255])
def test_flat_pictures_are_alike_and_hold_no_noise(level: int) -> None:
    assert perceptual_hash(bytes([level]) * 1024) == (1 << 63 if level else 0)


def test_another_number_of_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="1023 gray pixels instead of 1024"):
        perceptual_hash(bytes(1023))


@pytest.mark.parametrize("name", ["quality", "png", "webp", "smaller", "larger", "gray", "brighter", "contrast"])
def test_copies_lie_a_few_bits_apart(shared_data: Path, name: str) -> None:
    copies = {
        "quality": lambda image: encoded(image, quality=40),
        "png": lambda image: encoded(image, "PNG", compress_level=1),
        "webp": lambda image: encoded(image, "WEBP", quality=70, method=0),
        "smaller": lambda image: encoded(image.resize((image.width // 3, image.height // 3))),
        "larger": lambda image: encoded(image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC)),
        "gray": lambda image: encoded(image.convert("L")),
        "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.15)),
        "contrast": lambda image: encoded(ImageEnhance.Contrast(image).enhance(0.8)),
    }
    found = []
    for data in photographs(shared_data):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        found.append(distance(of(data), of(copies[name](image))))
    assert statistics.median(found) <= 2, found
    assert max(found) <= 8, found


def test_other_scenes_lie_far_apart(shared_data: Path) -> None:
    hashes = [of(data) for data in photographs(shared_data)]
    found = [distance(one, other) for place, one in enumerate(hashes) for other in hashes[:place]]
    assert min(found) >= 14, sorted(found)[:5]
    assert statistics.median(found) >= 26


@pytest.mark.parametrize("mode", ["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"])
def test_how_a_picture_is_stored_hardly_changes_its_hash(mode: str) -> None:
    for seed in range(4):
        data = encoded(picture(900, 600, seed))
        reference = of(data, resize="no")
        assert distance(of(data, resize=mode, side=128), reference) <= 4
        assert distance(of(data, resize="no", passthrough=True), reference) <= 4


def test_a_picture_and_its_turned_copy_with_exif_have_one_hash() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture(900, 600)
    turned = encoded(image.transpose(Image.Transpose.ROTATE_90), exif=exif, quality=95)
    assert distance(of(encoded(image, quality=95)), of(turned)) <= 2


def photographs(shared_data: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((shared_data / "coco_cc_by" / "images").glob("*.jpg"))[::5]]
