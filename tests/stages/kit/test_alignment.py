"""A crop is found where it was cut out, to a fraction of a pixel, and nothing is found where there is nothing."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from stages.kit.alignment import after, detail, places, stretch

Pixels = np.ndarray


def picture(seed: int, height: int = 180, width: int = 240) -> Pixels:
    """Blobs of chance, on a gradient that is stronger than they are."""
    rng = np.random.default_rng(seed)
    blobs = cv2.resize(
        rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    gradient = np.linspace(0, 127, width)[None, :, None]
    return (blobs * 0.4 + gradient).astype(np.uint8)


def corners(warp: Pixels, points: Sequence[tuple[float, float]]) -> Pixels:
    return np.array([warp @ (x, y, 1) for x, y in points])


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("left", "top", "right", "bottom"), [(12, 9, 3, 5), (30, 4, 9, 22), (0, 0, 24, 18)])
def test_a_crop_is_found_where_it_was_cut_out(left: int, top: int, right: int, bottom: int, swapped: bool) -> None:
    whole = picture(1)
    piece = whole[top : 180 - bottom, left : 240 - right]
    scaled = cv2.resize(piece, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    images = (scaled, whole) if swapped else (whole, scaled)
    sides = images[0].shape[:2], images[1].shape[:2]
    *_, place = [one for one in places(detail(images[0]), detail(images[1]), sides) if one.swapped is swapped][:2]
    there = [(left + x, top + y) for x, y in ((20, 20), (150, 30), (60, 120))]
    expected = [((x + 0.5) * 0.8 - 0.5, (y + 0.5) * 0.8 - 0.5) for x, y in ((20, 20), (150, 30), (60, 120))]
    assert place.likeness > 0.9
    assert np.abs(corners(place.warp, there) - expected).max() < 0.4


def test_an_image_and_a_smaller_one_of_it_lie_corner_on_corner() -> None:
    whole = picture(2)
    small = cv2.resize(whole, (120, 90), interpolation=cv2.INTER_AREA)
    first = next(places(detail(whole), detail(small), ((180, 240), (90, 120))))
    assert first.likeness > 0.98
    assert np.allclose(first.warp, [[0.5, 0, -0.25], [0, 0.5, -0.25]])


def test_other_images_and_other_gradients_have_no_place() -> None:
    assert list(places(detail(picture(3)), detail(picture(4)), ((180, 240), (180, 240)))) == []
    upright = np.ascontiguousarray(picture(3).transpose(1, 0, 2))
    assert list(places(detail(picture(3)), detail(upright), ((180, 240), (240, 180)))) == []


def test_what_is_plain_lies_on_what_is_plain_and_on_no_crop() -> None:
    plain = np.full((60, 80, 3), 90, np.uint8)
    found = list(places(detail(plain), detail(plain[:50]), ((60, 80), (60, 80))))
    assert [place.likeness for place in found] == [1]
    assert list(places(detail(plain), detail(plain[:40]), ((60, 80), (40, 80)))) == []


def test_a_crop_of_half_the_area_is_not_looked_for() -> None:
    whole = picture(5)
    half = whole[20:146, 30:200]
    assert half.size / whole.size < 0.5
    found = places(detail(whole), detail(half), ((180, 240), half.shape[:2]))
    assert all(place.likeness < 0.9 for place in found)


def test_one_map_after_another_is_their_product() -> None:
    first, second = stretch((10, 20), (30, 80)), np.array([[1, 0, -3], [0, 1, 5]], np.float32)
    point = np.array([4.0, 7.0, 1.0])
    assert np.allclose(after(first, second) @ point, second @ np.append(first @ point, 1))


def test_detail_is_small_and_without_the_gradient() -> None:
    ramp = np.repeat(np.linspace(0, 255, 1024)[None, :, None], 512, axis=0).repeat(3, axis=2).astype(np.uint8)
    found = detail(ramp)
    assert found.shape == (64, 128, 3)
    assert np.abs(found[:, 24:-24]).max() < 1


def test_a_photograph_is_found_in_itself() -> None:
    folder = Path(__file__).parents[4] / "shared" / "data" / "coco_cc_by" / "images"
    paths = sorted(folder.glob("*.jpg"))[:3]
    if not paths:
        pytest.skip(f"no photographs in {folder}")
    for path in paths:
        with Image.open(path) as image:
            whole = np.asarray(image.convert("RGB"))
        height, width = whole.shape[:2]
        top, left = height // 10, width // 12
        piece = whole[top:, left:]
        *_, place = list(places(detail(whole), detail(piece), (whole.shape[:2], piece.shape[:2])))[:2]
        assert np.abs(corners(place.warp, [(left, top), (width - 1, height - 1)])).max() < max(height, width)
        assert np.abs(corners(place.warp, [(left, top)])).max() < 0.01 * max(height, width)
