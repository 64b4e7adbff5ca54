"""What the measures of an image mean, in images whose values can be worked out by hand."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from pipeline.stage import Device
from stages.image_quality import SHARPNESS_SIDE, ImageQuality
from tests.stages.fake_batch import FakeBatch

Pixels = np.ndarray


def measures(*images: Pixels | None, **parameters: int) -> pa.Table:
    return ImageQuality(**parameters).open(Device())(FakeBatch(pictures=images))


def of(image: Pixels, **parameters: int) -> dict[str, Any]:
    row: dict[str, Any] = measures(image, **parameters).to_pylist()[0]
    return row


def filled(colour: tuple[int, int, int], height: int = 12, width: int = 16) -> Pixels:
    return np.full((height, width, 3), colour, np.uint8)


def grey(luma_hw: Pixels) -> Pixels:
    return np.repeat(luma_hw.astype(np.uint8)[..., None], 3, axis=2)


def checkerboard(side: int = 8, low: int = 0, high: int = 255) -> Pixels:
    return grey(np.where(np.add.outer(np.arange(side), np.arange(side)) % 2, high, low))


def test_the_golden_table_holds_or_the_revision_is_raised() -> None:
    ramp = np.add.outer(4 * np.arange(8), 10 * np.arange(24)).astype(np.uint8)
    picture = np.stack([ramp, np.flipud(ramp), np.full_like(ramp, 90)], axis=2)
    assert ImageQuality.revision == 1
    golden = [  # NumPy and OpenCV give the same, with their own formulas
        ("brightness", 0.48388),
        ("contrast", 0.23760),
        ("sharpness", 1.12873),
        ("entropy", 7.52246),
        ("colourfulness", 85.61838),
        ("aspect_ratio", 3.0),
        ("blank", False),
    ]
    assert list(of(picture).items()) == [(name, pytest.approx(value, abs=2e-5)) for name, value in golden]


def test_uniform_grey_has_brightness_and_nothing_else() -> None:
    assert of(filled((51, 51, 51))) == {
        "brightness": pytest.approx(0.2),
        "contrast": 0,
        "sharpness": 0,
        "entropy": 0,
        "colourfulness": 0,
        "aspect_ratio": pytest.approx(4 / 3),
        "blank": True,
    }


def test_black_is_zero_and_white_is_one() -> None:
    assert [row["brightness"] for row in measures(filled((0, 0, 0)), filled((255, 255, 255))).to_pylist()] == [0, 1]


def test_a_checkerboard_of_black_and_white_has_the_greatest_contrast_and_sharpness_and_one_bit() -> None:
    found = of(checkerboard())
    assert found["brightness"] == pytest.approx(0.5)
    assert found["contrast"] == pytest.approx(0.5)
    assert found["entropy"] == pytest.approx(1)
    assert found["sharpness"] == pytest.approx((4 * 255) ** 2)  # the Laplacian is +-4 * 255, equally often


def test_the_laplacian_of_a_plane_is_zero_and_one_bright_pixel_has_the_variance_of_the_kernel() -> None:
    assert of(grey(np.add.outer(3 * np.arange(9), 5 * np.arange(9))))["sharpness"] == 0
    dot = np.zeros((9, 9))
    dot[4, 4] = 10
    assert of(grey(dot))["sharpness"] == pytest.approx((40**2 + 4 * 10**2) / 49)  # of 7 x 7 inner pixels, mean 0


def test_all_256_levels_equally_often_are_eight_bits() -> None:
    assert of(grey(np.arange(256).reshape(16, 16)))["entropy"] == pytest.approx(8)


def test_colourfulness_of_pure_red_is_three_tenths_of_its_distance_from_grey() -> None:
    assert of(filled((255, 0, 0)))["colourfulness"] == pytest.approx(0.3 * np.hypot(255, 127.5))


def test_colourfulness_of_half_red_half_cyan_is_the_spread_alone() -> None:
    image = np.concatenate([filled((200, 0, 0)), filled((0, 200, 200))])  # opponent colours +-(200, 100), mean 0
    assert of(image)["colourfulness"] == pytest.approx(np.hypot(200, 100))


def test_an_image_is_as_slim_upright_as_lying() -> None:
    rows = measures(filled((9, 9, 9), 10, 30), filled((9, 9, 9), 30, 10), filled((9, 9, 9), 7, 7)).to_pylist()
    assert [row["aspect_ratio"] for row in rows] == [3, 3, 1]


def test_blank_bears_what_jpeg_leaves_and_no_more() -> None:
    image = filled((120, 120, 120))
    image[0, 0, 2] += 8
    assert of(image)["blank"]
    assert not of(image, blank_span=7)["blank"]
    assert not of(np.concatenate([filled((200, 0, 0)), filled((0, 102, 0))]))["blank"]  # two colours of one luma


def test_blur_lowers_sharpness_and_enlarging_does_not_change_what_is_measured() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (SHARPNESS_SIDE // 8, SHARPNESS_SIDE // 8))
    motif = grey(noise).repeat(8, 0).repeat(8, 1)
    blurred = np.asarray(Image.fromarray(motif).resize((32, 32)).resize(motif.shape[:2], Image.Resampling.BICUBIC))
    larger = motif.repeat(4, 0).repeat(4, 1)
    sharp, soft, same = (row["sharpness"] for row in measures(motif, blurred, larger).to_pylist())
    assert soft < sharp / 3
    assert same == pytest.approx(sharp)


def test_a_failed_download_is_null_not_zero_and_its_neighbours_are_measured() -> None:
    found = measures(None, checkerboard(), None)
    assert found.schema == ImageQuality.adds
    assert [set(row.values()) == {None} for row in found.to_pylist()] == [True, False, True]
    assert found.slice(1, 1) == measures(checkerboard())


def test_sharpness_is_null_where_no_pixel_has_four_neighbours() -> None:
    assert of(filled((1, 2, 3), 1, 1))["sharpness"] is None
    assert of(filled((1, 2, 3), 2, 3000))["sharpness"] is None
    assert of(filled((1, 2, 3), 3, 3))["sharpness"] == 0


def test_no_rows_give_no_rows() -> None:
    assert measures() == ImageQuality.adds.empty_table()


def test_threads_change_nothing() -> None:
    images = [checkerboard(side) for side in range(3, 40)]
    batch = FakeBatch(pictures=images)
    assert ImageQuality().open(Device(threads=4))(batch) == measures(*images)


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40).map(lambda sides: (*sides, 3))))
def test_every_image_stays_within_the_bounds_and_agrees_with_plain_formulas(image_hwc: Pixels) -> None:
    found = of(image_hwc)
    luma = np.asarray(Image.fromarray(image_hwc).convert("L"), np.float64)
    assert found["brightness"] == pytest.approx(luma.mean() / 255, abs=1e-6)
    assert found["contrast"] == pytest.approx(luma.std() / 255, abs=1e-6)
    assert 0 <= found["brightness"] <= 1
    assert 0 <= found["contrast"] <= 0.5
    assert 0 <= found["entropy"] <= 8
    assert found["aspect_ratio"] >= 1
    red, green, blue = np.moveaxis(image_hwc.astype(np.float64), 2, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread = np.sqrt(opponents.var(axis=(1, 2)).sum())
    distance = np.linalg.norm(opponents.mean(axis=(1, 2)))
    assert found["colourfulness"] == pytest.approx(spread + 0.3 * distance, rel=1e-5, abs=1e-4)


@given(st.integers(0, 255), st.integers(0, 255))
def test_exchanging_light_and_dark_changes_only_the_brightness(low: int, high: int) -> None:
    one, other = of(checkerboard(6, low, high)), of(checkerboard(6, 255 - low, 255 - high))
    assert one.pop("brightness") == pytest.approx(1 - other.pop("brightness"), abs=1e-6)
    assert one == pytest.approx(other)
