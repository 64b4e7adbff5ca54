"""Copies are near each other, cropped ones too, and other pictures are not."""

import random

import numpy as np
import pytest
from PIL import Image

from infra.miniweb.copies import cropped, opened, recoloured, reencoded, resized
from infra.miniweb.render import paint
from infra.miniweb.scenes import SIDES, draw_scene
from pipeline.stage import Device
from stages.copy_embedding import WIDTH, CopyEmbedding, embedding
from tests.stages.fake_batch import FakeBatch

ENOUGH = 0.85
"""The cosine that DAGs ask for."""


def scenes(seed: int, count: int) -> list[Image.Image]:
    return [paint(draw_scene(f"{seed}/{number}", SIDES["small"])) for number in range(count)]


def vector(image: Image.Image) -> np.ndarray:
    return embedding(np.asarray(image.convert("RGB"))).astype(np.float32)


def test_copies_are_near_and_other_scenes_are_not() -> None:
    dice = random.Random(4)
    originals = scenes(31, 24)
    vectors = np.stack([vector(image) for image in originals])
    for copy, least in ((reencoded, 1.0), (resized, 1.0), (recoloured, 0.9), (cropped, 0.9)):
        near = [
            float(vector(opened(copy(image, dice)[0])) @ own) for image, own in zip(originals, vectors, strict=True)
        ]
        assert np.mean(np.array(near) >= ENOUGH) >= least, copy.__name__
    apart = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    assert np.mean(apart >= ENOUGH) <= 0.01
    assert np.median(apart) < 0.4


def test_a_tenth_cut_off_moves_the_embedding_less_than_another_place_of_the_thing() -> None:
    ground = np.full((200, 240, 3), (40, 90, 200), np.uint8)
    ground[:, ::20] = (30, 70, 180)
    here, there = ground.copy(), ground.copy()
    here[40:70, 50:80] = (250, 210, 40)
    there[140:170, 180:210] = (250, 210, 40)
    own = vector(Image.fromarray(here))
    assert vector(Image.fromarray(here[20:, 24:])) @ own > 0.85
    assert vector(Image.fromarray(there)) @ own < 0.6


def test_a_stripe_more_or_less_matters_little_beside_the_thing() -> None:
    image = np.full((160, 160, 3), (230, 230, 220), np.uint8)
    image[np.arange(160) // 8 % 2 == 0] = (150, 140, 130)
    image[100:120, 100:120] = (200, 30, 30)
    moved = np.roll(image, 8, axis=0)
    assert vector(Image.fromarray(image)) @ vector(Image.fromarray(moved)) > 0.85


def test_upright_and_lying_are_apart() -> None:
    image = scenes(32, 1)[0].resize((300, 150))
    assert vector(image) @ vector(image.resize((150, 300))) < 0.9


def test_every_row_is_a_unit_vector_and_a_failed_download_is_null() -> None:
    plain = np.full((5, 9, 3), 128, np.uint8)
    pictures = [np.asarray(scenes(33, 1)[0]), None, plain, plain[:1, :1]]
    found = CopyEmbedding().open(Device(threads=2))(FakeBatch(pictures=pictures))
    assert found.schema == CopyEmbedding.adds
    assert found.column(0).is_valid().to_pylist() == [True, False, True, True]
    vectors = np.array([row for row in found.column(0).to_pylist() if row is not None], np.float32)
    assert vectors.shape == (3, WIDTH)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=2e-3)


def test_the_golden_table_holds_or_the_revision_is_raised() -> None:
    rng = np.random.default_rng(5)
    picture = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    found = CopyEmbedding().open(Device())(FakeBatch(pictures=[picture]))
    assert CopyEmbedding.revision == 1
    values = np.array(found.column(0).to_pylist()[0], np.float64)
    assert values[::30] == pytest.approx([0.1205, -0.037, -0.0055, -0.0056, -0.0282, 0.072, 0.0723], abs=2e-3)
    assert values @ np.sin(np.arange(WIDTH)) == pytest.approx(-1.0054, abs=1e-2)
