"""Every shipped recipe of two towers, at its tiny size: it learns, and what it exports is what it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from models.data.images import save_preprocessor
from models.recipe import Component, Recipe, RecipeError, shipped
from models.towers.dual_encoder import DualEncoder
from models.towers.two_towers import TwoTowers
from tests.models.towers import small

RECIPES = [name for name in shipped() if Recipe.load(name).model.path.endswith(".TwoTowers")]
STEPS = {"siglip-vit-b16": 100, "flair-vit-b16": 100}
"""Where 30 are too few: the sigmoid loss first learns how rare a pair is."""
Fitted = tuple[Recipe, TwoTowers, tuple[float, float, float], Path]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Fitted]:
    """A recipe's tiny model after some steps on one batch, in evaluation mode, and where it was exported."""

    @cache
    def fit(name: str) -> Fitted:
        recipe, folder = Recipe.load(name, tiny=True), tmp_path_factory.mktemp(name)
        towers = small.model(recipe)
        losses = small.fit(recipe, towers, STEPS.get(name, 30))
        towers.eval().export(folder)
        save_preprocessor(recipe.data.images, folder)
        return recipe, towers, losses, folder

    return fit


@pytest.mark.parametrize("name", RECIPES)
def test_a_batch_is_learned_by_heart(name: str, fitted: Callable[[str], Fitted]) -> None:
    _, _, (first, last, right), _ = fitted(name)
    assert last < 0.75 * first
    assert right >= 0.75  # by chance 0.125


@pytest.mark.parametrize("name", RECIPES)
def test_transformers_loads_what_was_exported(name: str, fitted: Callable[[str], Fitted]) -> None:
    recipe, towers, _, folder = fitted(name)
    model, found = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    rows = small.batch(recipe)
    tokens = {key: rows[key].reshape(-1, rows[key].shape[-1]) for key in ("input_ids", "attention_mask")}
    named = AutoTokenizer.from_pretrained(folder).model_input_names
    with torch.no_grad():
        features = towers(rows)
        images = model.eval().get_image_features(pixel_values=rows["pixel_values"]).pooler_output
        texts = model.get_text_features(**{key: value for key, value in tokens.items() if key in named}).pooler_output
    torch.testing.assert_close(functional.normalize(images, dim=-1), features["image"], atol=1e-5, rtol=0)
    expected = features["text"].reshape(-1, texts.shape[-1])
    torch.testing.assert_close(functional.normalize(texts, dim=-1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_evaluation_embeds_as_the_training_did(name: str, fitted: Callable[[str], Fitted]) -> None:
    recipe, towers, _, folder = fitted(name)
    encoder = DualEncoder.load(folder, "cpu", "float32")
    texts = small.captions(small.ROWS * recipe.data.captions)
    pictures = np.random.default_rng(0).integers(0, 256, (3, recipe.data.images.side, recipe.data.images.side, 3))
    images = recipe.data.images
    pixels = (pictures / 255 - np.array(images.mean)) / np.array(images.deviation)
    with torch.no_grad():
        seen = towers.encode(
            {"pixel_values": torch.tensor(pixels).permute(0, 3, 1, 2).float(), "position": torch.arange(3)}
        )
        read = towers.encode({key: value for key, value in small.batch(recipe).items() if key != "pixel_values"})
    found = encoder.embed_images(list(pictures.astype(np.uint8)), 2)
    assert found == pytest.approx(seen["image"].numpy(), abs=1e-5)
    rows = read["text"].reshape(len(texts), -1).numpy()
    assert encoder.embed_texts(texts, 3) == pytest.approx(rows, abs=1e-5)
    assert encoder.logit_scale == pytest.approx(towers.scalars()["logit_scale"].exp().item(), rel=1e-5)
    bias = towers.scalars().get("logit_bias")
    assert encoder.logit_bias == (None if bias is None else pytest.approx(bias.item(), rel=1e-5))


def test_a_locked_tower_stays_as_it_was(fitted: Callable[[str], Fitted]) -> None:
    recipe, towers, _, _ = fitted("lit")
    before = small.model(recipe).state_dict()
    after = towers.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not {name for name in moved if "vision_model" in name}
    assert {"model.visual_projection.weight", "model.text_projection.weight", "model.logit_scale"} < moved


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "lit"])  # whose towers come from the hub
def test_the_full_size_can_be_built(name: str) -> None:
    """Its config is one that transformers knows; weights are not allocated."""
    with torch.device("meta"):
        towers = Recipe.load(name).model.build()
    published = {"clip-vit-b32": 151, "clip-vit-b16": 150, "clip-vit-l14": 428, "clip-rn50": 102, "siglip-vit-b16": 203}
    if name in published:  # millions, of the models on the hub
        assert sum(weight.numel() for weight in towers.parameters()) / 1e6 == pytest.approx(published[name], abs=1)


def test_a_recipe_builds_models_and_objectives_and_nothing_else_that_can_be_imported() -> None:
    with pytest.raises(RecipeError, match="is neither a model nor an objective"):
        Component.model_validate({"subprocess.Popen": {"args": ["touch", "here"]}}).build()


@pytest.mark.parametrize("name", shipped())
def test_a_system_is_a_recipe_of_fewer_than_forty_lines(name: str) -> None:
    text = (resources.files("models.recipes") / f"{name}.yaml").read_text()
    assert len(text.splitlines()) < 40
