"""Copies are told from look-alikes by their pixels."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.miniweb.render import paint
from infra.miniweb.scenes import SIDES, draw_scene
from stages.kit.pixels import SIDE, agreement, sight
from tests.stages.dedup.copies import COPIES, Pair, encoded, photo_pairs, scene_pairs

SHARED = Path(__file__).parents[4] / "shared" / "data"


def errors(pairs: Sequence[Pair]) -> tuple[Counter[str], Counter[str]]:
    """Copies that were refused and look-alikes that were taken for copies, by kind."""
    refused, taken = Counter[str](), Counter[str]()
    for kind, is_copy, a, b in pairs:
        found = agreement(sight(a), sight(b)).copy
        refused[kind] += is_copy and not found
        taken[kind] += found and not is_copy
    return +refused, +taken


def test_copies_of_scenes_are_accepted_and_look_alikes_are_refused() -> None:
    pairs = scene_pairs(640, 1, "small") + scene_pairs(641, 1, "small")
    refused, taken = errors(pairs)
    copies = sum(is_copy for _, is_copy, _, _ in pairs)
    assert refused.total() <= 0.07 * copies, refused
    assert taken.total() <= 1, taken
    assert len(pairs) - copies >= 14


def test_crops_of_copies_are_copies_of_each_other() -> None:
    dice, refused = random.Random(6), 0
    for number in range(6):
        image = paint(draw_scene(f"642/{number}", SIDES["small"]))
        one, other = (COPIES["trimmed"](image, dice), COPIES["recoloured"](image, dice))
        refused += not agreement(sight(one), sight(other)).copy
        refused += not agreement(sight(other), sight(one)).copy
    assert refused <= 2


def test_copies_of_photographs_are_accepted_and_other_photographs_are_refused() -> None:
    paths = sorted((SHARED / "coco_cc_by" / "images").glob("*.jpg"))
    if not paths:
        pytest.skip(f"no photographs in {SHARED}")
    pairs = photo_pairs([path.read_bytes() for path in paths], 5, 1)
    refused, taken = errors(pairs)
    assert refused.total() <= 0.1 * len(COPIES), refused
    assert not taken


def test_a_mirror_image_is_no_copy_and_the_image_itself_is_one() -> None:
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (320, 240), Image.Resampling.BICUBIC
    )
    itself, mirrored = sight(encoded(image)), sight(encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    assert agreement(itself, itself).agreement == 1
    assert not agreement(itself, mirrored).copy


@pytest.mark.parametrize("colour", [(245, 245, 245), (18, 18, 18), (38, 84, 214)])
def test_one_disc_of_another_colour_on_an_unchanged_ground_is_no_recolouring(colour: tuple[int, int, int]) -> None:
    scenes = []
    for disc in ((214, 40, 40), (244, 140, 190)):
        image = Image.new("RGB", (300, 200), colour)
        image.paste(disc, (100, 80, 140, 120))
        scenes.append(sight(encoded(image)))
    assert not agreement(*scenes).copy
    assert agreement(scenes[0], scenes[0]).copy


def test_one_disc_that_alone_became_lighter_is_no_recolouring() -> None:
    scenes = []
    for disc in ((140, 140, 140), (185, 185, 185)):  # three times the contrast about 120, which would keep the ground
        image = Image.new("RGB", (300, 200), (120, 120, 120))
        image.paste(disc, (100, 80, 140, 120))
        scenes.append(sight(encoded(image)))
    assert not agreement(*scenes).copy


@pytest.mark.parametrize(("levels", "copy"), [(12, True), (45, False)])
def test_a_few_pixels_that_are_a_little_lighter_are_another_thing(levels: int, copy: bool) -> None:
    rng = np.random.default_rng(7)
    blobs = Image.fromarray(rng.integers(30, 200, (9, 12, 3), dtype=np.uint8))
    one = np.asarray(blobs.resize((240, 180), Image.Resampling.BICUBIC))
    other = one.copy()
    other[60:66, 100:106] = np.minimum(other[60:66, 100:106].astype(int) + levels, 255)
    assert agreement(*(sight(encoded(Image.fromarray(image))) for image in (one, other))).copy is copy


def test_empty_images_of_different_colours_are_no_copies() -> None:
    white, grey = (sight(encoded(Image.new("RGB", (64, 64), (level,) * 3))) for level in (250, 120))
    assert agreement(white, white).copy
    dice = random.Random(1)
    assert agreement(white, sight(COPIES["reencoded"](Image.new("RGB", (64, 64), (250,) * 3), dice))).copy
    assert not agreement(white, grey).copy


def test_an_image_is_looked_at_small_and_never_larger_than_it_is() -> None:
    assert sight(encoded(Image.new("RGB", (1000, 500)))).rgb_hwc.shape == (SIDE // 2, SIDE, 3)
    assert sight(encoded(Image.new("RGB", (20, 10)))).rgb_hwc.shape == (10, 20, 3)


def test_figures_of_textbooks_that_differ_in_one_word_are_no_copies_and_those_that_are_printed_twice_are() -> None:
    """Looked at by eye: five figures of the psychology book are there twice; others differ in a heading or a label."""
    folder = SHARED / "openstax_ccby" / "images384" / "psychology"
    if not folder.exists():
        pytest.skip(f"no figures in {folder}")
    printed_twice = {
        "01_02_Maslow": "10_01_Maslow",
        "01_02_Watson": "06_02_Watson",
        "01_03_Piaget": "09_03_Piaget",
        "01_02_Skinner": "06_03_Skinnerbox_n",
        "01_03_DuckRabbit": "05_06_DuckRabbit",
    }
    edited = {"01_03_BigFive": "11_07_BigFive", "03_04_Limbic": "10_04_Limbic", "01_03_NervSystem": "03_03_NervSystem"}
    for pairs, copies in ((printed_twice, True), (edited, False)):
        for names in pairs.items():
            a, b = (sight((folder / f"CNX_Psych_{name}.jpg").read_bytes()) for name in names)
            assert agreement(a, b).copy is copies, names
