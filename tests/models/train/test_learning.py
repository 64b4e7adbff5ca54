"""Every contrastive recipe at its tiny size learns in the one trainer: it finds images of captions new to it."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.miniweb import sets
from infra.miniweb.captions import caption
from infra.miniweb.render import encoded, paint
from infra.miniweb.scenes import SIDES, draw_scene, simplified
from models.data.shards import Samples
from models.evaluate.run import evaluate
from models.recipe import Recipe, shipped
from models.towers.dual_encoder import DualEncoder
from models.train.loop import train
from stages.kit.tar import TarWriter

PAIRS, ASKED, SIDE = 2_500, 200, 96
TIMES_CHANCE = 2.5
"""What image recall@5 must be at least; chance is 2.5 %. One that learns nothing is within a third of it."""
FIRST = "clip-vit-b32"
"""In seconds; LiT locks its tower. The others are a suite of their own, `make long`."""
TAUGHT = "mobileclip"
"""From what another model made of the pairs."""
RECIPES = [
    name for name in shipped() if Recipe.load(name).model.path.endswith(".TwoTowers") and name not in (FIRST, TAUGHT)
]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clean pairs of the small local web's simple scenes, small, and a set of others for retrieval."""
    folder = tmp_path_factory.mktemp("taught")
    with (folder / "00000.tar").open("wb") as stream:
        writer = TarWriter(stream)
        for number in range(PAIRS):
            scene = simplified(draw_scene(f"taught/{number}", SIDES["small"]))
            image = paint(scene)
            image.thumbnail((SIDE, SIDE))
            said = caption(scene, random.Random(number)).text
            writer.add([(f"{number:06d}.jpg", encoded(image, 90)), (f"{number:06d}.txt", said.encode())])
        writer.finish()
    sets.write(folder / "sets", ASKED, names=["retrieval"], scenes="simple")
    return folder


@pytest.fixture(scope="module")
def first(taught: Path) -> str:
    """The model of `FIRST`."""
    model = train(Recipe.load(FIRST, tiny=True), {"shards": f"{taught}/00000.tar"}, f"{taught}/{FIRST}").model
    assert model is not None
    return model


def test_clip_vit_b32_finds_images_of_captions_far_more_often_than_by_chance(taught: Path, first: str) -> None:
    assert recall(taught, first) > TIMES_CHANCE


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_finds_images_of_captions_far_more_often_than_by_chance(taught: Path, first: str, name: str) -> None:
    begun = f"{{pretrained: {{vision: {first}}}, config: {{vision_config: null}}}}"
    locked = f"model={{models.towers.two_towers.TwoTowers: {begun}}}"
    recipe = Recipe.load(name, tiny=True, overrides=[locked] if name == "lit" else [])
    model = train(recipe, {"shards": f"{taught}/00000.tar"}, f"{taught}/{name}").model
    assert model is not None
    assert recall(taught, model) > TIMES_CHANCE


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_recipe_with_a_teacher_learns_from_what_that_left_beside_the_pairs(taught: Path, first: str) -> None:
    teacher, pairs = DualEncoder.load(Path(first), "cpu", "float32"), Samples.open(f"{taught}/00000.tar")
    members = [pairs.read(number).members for number in range(PAIRS)]
    texts = [one["txt"].decode() for one in members]
    images = [np.asarray(Image.open(io.BytesIO(one["jpg"])).convert("RGB")) for one in members]
    seen, read = teacher.embed_images(images, 64).tolist(), teacher.embed_texts(texts, 64).tolist()
    with (taught / "with_rows.tar").open("wb") as stream:
        writer = TarWriter(stream)
        for number, one in enumerate(members):
            captions = [{"text": texts[number], "text_embedding": read[number]}]
            said = json.dumps({"image_embedding": seen[number], "captions": captions}).encode()
            writer.add([(f"{number:06d}.jpg", one["jpg"]), (f"{number:06d}.json", said)])
        writer.finish()
    model = train(Recipe.load(TAUGHT, tiny=True), {"shards": f"{taught}/with_rows.tar"}, f"{taught}/{TAUGHT}").model
    assert model is not None
    assert recall(taught, model) > TIMES_CHANCE


def recall(taught: Path, model: str) -> float:
    """Image recall@5 by what guessing gives."""
    metrics = evaluate(model, {"retrieval": f"{taught}/sets/retrieval"}, tasks=["zeroshot_retrieval"])
    found = next(metric for metric in metrics if metric.metric == "image_retrieval_recall@5")
    assert found.chance
    print(f"{model}: {found.value:.1%}, by chance {found.chance:.1%}")
    return found.value / found.chance
