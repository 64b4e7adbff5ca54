"""Images show what their scenes say."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw

from infra.miniweb.render import PAINTS, jpeg, paint
from infra.miniweb.scenes import COLOURS, PATTERNS, SHAPES, SIDES, TEXTURES, Group, Scene, draw_scene

CALM = replace(
    draw_scene("17/1", SIDES["small"]),
    width=300, height=300, light=1.0, warmth=0.0, blur=1, noise=0, quality=95, pattern="plain", colour="white",
)  # fmt: skip


def with_one(**attributes: object) -> Scene:
    group = replace(Group(1, "circle", "blue", "large", "plain", 1, 1), **attributes)  # type: ignore[arg-type]
    return replace(CALM, groups=(group,))


def painted(scene: Scene, colour: str) -> np.ndarray:
    """bool (height, width): the pixels nearer to this paint than to any other."""
    pixels_hwc = np.asarray(paint(scene)).astype(int)
    paints_nc = np.array([PAINTS[name] for name in COLOURS])
    nearest_hw: np.ndarray = ((pixels_hwc[:, :, None] - paints_nc) ** 2).sum(-1).argmin(-1)
    found: np.ndarray = nearest_hw == COLOURS.index(colour)
    return found


def islands(mask: np.ndarray) -> int:
    """How many connected pieces there are, by flooding."""
    image = Image.fromarray(mask.astype(np.uint8)).copy()  # a copy can be painted on
    for found in range(20):
        box = image.getbbox()
        if box is None:
            return found
        first = int(np.asarray(image)[box[1]].argmax())
        ImageDraw.floodfill(image, (first, box[1]), 0)
    raise AssertionError("20 pieces and more")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_as_many_things_are_drawn_as_there_are_and_in_their_cell(shape: str, count: int) -> None:
    scene = with_one(shape=shape, count=count, size="small", row=0, column=2)
    there = painted(scene, "blue")
    assert islands(there) == count
    rows, columns = np.nonzero(there)
    assert rows.max() < 100
    assert columns.min() >= 200


@pytest.mark.parametrize("colour", [colour for colour in COLOURS if colour != "white"])
def test_things_have_their_colour(colour: str) -> None:
    there = painted(with_one(colour=colour), colour)
    assert there[150, 150]
    assert 0.03 < there.mean() < 0.08


def test_shapes_are_told_apart() -> None:
    masks = {shape: painted(with_one(shape=shape), "blue") for shape in SHAPES}
    for one in SHAPES:
        for other in SHAPES:
            overlap = (masks[one] & masks[other]).sum() / (masks[one] | masks[other]).sum()
            assert (overlap > 0.95) == (one == other)


def test_large_is_larger_than_small_whatever_the_count() -> None:
    for count in (1, 2, 3, 4):
        large, small = (painted(with_one(count=count, size=size), "blue").sum() for size in ("large", "small"))
        assert large > 2.2 * small


def test_textures_leave_out_different_parts() -> None:
    masks = {texture: painted(with_one(texture=texture, shape="square"), "blue") for texture in TEXTURES}
    shares = {texture: mask.sum() / masks["plain"].sum() for texture, mask in masks.items()}
    assert shares["plain"] == 1
    assert all(0.2 < shares[texture] < 0.8 for texture in TEXTURES if texture != "plain")
    assert len({mask.tobytes() for mask in masks.values()}) == len(TEXTURES)


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if pattern != "plain"])
def test_patterns_are_seen(pattern: str) -> None:
    plain, other = (np.asarray(paint(replace(with_one(), pattern=name))).astype(int) for name in ("plain", pattern))
    assert np.abs(plain - other).mean() > 5


def test_light_warmth_noise_and_blur_are_seen() -> None:
    def mean(**changes: object) -> np.ndarray:
        levels = np.asarray(paint(replace(with_one(colour="green"), colour="grey", **changes)))  # type: ignore[arg-type]
        found: np.ndarray = levels.mean((0, 1))
        return found

    base = mean()
    assert (mean(light=0.8) < 0.85 * base).all()
    warm = mean(warmth=0.1)
    assert warm[0] > base[0] + 5
    assert warm[2] < base[2] - 5
    noisy = np.asarray(paint(replace(with_one(), colour="grey", noise=12))).astype(int)
    corner_hwc = noisy[:80, :80]
    assert corner_hwc.std((0, 1)) == pytest.approx([12, 12, 12], abs=2)
    sharp, soft = (np.asarray(paint(replace(with_one(), blur=blur)).convert("L")).astype(int) for blur in (1, 3))
    assert np.abs(np.diff(soft)).max() < np.abs(np.diff(sharp)).max()


def test_a_jpeg_has_the_size_and_the_quality_of_its_scene() -> None:
    scene = replace(with_one(), width=123, height=77)
    with Image.open(io.BytesIO(jpeg(scene))) as image:
        assert (image.format, image.size) == ("JPEG", (123, 77))
    assert len(jpeg(replace(scene, quality=30))) < len(jpeg(replace(scene, quality=95)))


def test_the_same_scene_is_the_same_bytes_and_another_place_leaves_the_other_groups_alone() -> None:
    other = Group(2, "star", "red", "small", "striped", 2, 2)
    first = replace(with_one(), groups=(*with_one().groups, other))
    second = replace(first, groups=(replace(first.groups[0], row=0), other))
    assert jpeg(first) == jpeg(first)
    changed = ImageChops.difference(paint(first), paint(second)).getbbox()
    assert changed is not None
    assert changed[3] <= 200  # the lower third is untouched


def test_from_near_a_group_fills_more_of_the_image_and_stays_in_its_corner() -> None:
    far = with_one(count=4, row=2, column=0)
    seen, near = painted(far, "blue"), painted(replace(far, near=True), "blue")
    assert near.sum() > 2 * seen.sum()
    assert not near[:150].any()
    assert not near[:, 150:].any()


def test_a_word_is_written_across_the_picture() -> None:
    written, plain = (
        np.asarray(paint(scene).convert("L"), np.int16) for scene in (replace(CALM, written="STOP"), CALM)
    )
    changed = np.abs(written - plain) > 40
    across = np.flatnonzero(changed.any(0))
    assert 0.7 < (across[-1] - across[0]) / CALM.width < 0.95
    edge = CALM.height // 5
    assert not changed[:edge].any()
    assert not changed[-edge:].any()
