"""timm's towers in recipes, run by `test_timm.py`: timm's own rows, initialisation and weights; they train, lock, and
lie where transformers loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoModel

from models.data.images import save_preprocessor
from models.recipe import Images, Recipe, RecipeError
from models.towers.dual_encoder import DualEncoder
from models.towers.image_encoder import ImageEncoder
from models.towers.two_towers import TwoTowers
from models.towers.vit import VisionClassifier
from models.train.loop import train
from tests.models.data.tars_made import picture, tar_of
from tests.models.towers import small

VIT, SIDE = {"img_size": 64, "depth": 2}, 64
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": VIT,
    "vit_base_patch16_siglip_224": {"img_size": 64, "depth": 1, "embed_dim": 48, "num_heads": 3},
    "resnet18": {},
    "convnext_atto": {},
    "mobilenetv3_small_050": {},
}
"""With a class token, with attention that pools, with batch statistics, with a norm behind the pool, with a layer."""
RECIPE = """
about: a tower of timm's and the texts of CLIP
model:
  models.towers.two_towers.TwoTowers:
    config:
      model_type: vision-text-dual-encoder
      projection_dim: 32
      text_config:
        {model_type: clip_text_model, hidden_size: 48, intermediate_size: 96, num_hidden_layers: 1,
         num_attention_heads: 3, max_position_embeddings: 32}
objectives: [models.objectives.contrastive.InfoNCE]
data:
  images: {side: 64}
  texts: {vocabulary: 1000, context: 32}
samples: 64
batch: 8
optimizer: {learning_rate: 1e-3}
precision: float32
"""


def recipe(vision: str, model_args: dict[str, Any]) -> Recipe:
    made = {"model_type": "timm_wrapper", "architecture": vision, "model_args": model_args}
    place = "model={models.towers.two_towers.TwoTowers: {config: {vision_config: %s}}}"
    return Recipe.parse(RECIPE, "timm", overrides=[place % made])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT as timm saves one, with classes that a tower does not take."""
    found = tmp_path_factory.mktemp("timm")
    torch.manual_seed(1)
    model = timm.create_model("test_vit", num_classes=5, img_size=96)
    timm.models.save_for_hf(model, found, safe_serialization=True)
    return found


def begun(folder: Path, *settings: str) -> Recipe:
    place = f"model={{models.towers.two_towers.TwoTowers: {{pretrained: {{vision: '{folder}'}}}}}}"
    return Recipe.parse(RECIPE, "timm", overrides=[place, *settings])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_architecture_learns_a_batch_and_is_what_transformers_loads(name: str, tmp_path: Path) -> None:
    said = recipe(name, ARCHITECTURES[name])
    towers = small.model(said)
    first, last, right = small.fit(said, towers, 30)
    assert last < 0.75 * first
    assert right >= 0.75  # by chance 0.125
    towers.eval().export(tmp_path)
    save_preprocessor(said.data.images, tmp_path)
    model, found = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] | found["unexpected_keys"]
    rows = small.batch(said)
    with torch.no_grad():
        seen = model.eval().get_image_features(pixel_values=rows["pixel_values"]).pooler_output
        expected = towers(rows)["image"]
    torch.testing.assert_close(functional.normalize(seen, dim=-1), expected, atol=1e-5, rtol=0)
    pictures = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    assert DualEncoder.load(tmp_path, "cpu", "float32").embed_images(list(pictures), 2).shape == (3, 32)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_a_new_tower_begins_as_timm_has_it(name: str) -> None:
    """transformers alone would draw every weight with a deviation of 0.02."""
    towers = small.model(recipe(name, ARCHITECTURES[name]))
    fresh = timm.create_model(name, num_classes=0, **ARCHITECTURES[name])
    own = towers.model.vision_model.timm_model.state_dict()
    for key, weight in fresh.state_dict().items():
        if weight.numel() > 10_000:
            assert own[key].std() == pytest.approx(float(weight.std()), rel=0.1), key


def test_a_tower_with_weights_gives_timms_own_rows_and_stays_locked(folder: Path, tmp_path: Path) -> None:
    settings = ["data.images={side: 96, mean: [0.5, 0.5, 0.5], deviation: [0.25, 0.25, 0.25]}"]
    settings += ["phases=[{name: locked, rates: {vision_model: 0, '.*': 1}}]"]
    said = begun(folder, *settings)
    own = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    pixels = small.batch(said)["pixel_values"]
    members = [("0.jpg", picture(0, 96, 96)), ("0.txt", b"a thing"), ("1.jpg", picture(1, 96, 96)), ("1.txt", b"two")]
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    model = train(said, {"shards": str(tmp_path)}, f"{tmp_path}/out").model
    assert model is not None
    again = TwoTowers(pretrained=model).eval()
    with torch.no_grad():
        for towers in (small.model(said).eval(), again):
            pooled = towers.model.vision_model(pixel_values=pixels).pooler_output
            torch.testing.assert_close(pooled, own(pixels), atol=1e-6, rtol=0)
    assert str(folder) not in Path(model, "config.json").read_text()
    assert small.model(said).images["deviation"] == (0.5, 0.5, 0.5)
    assert again.images == {"side": 96, "mean": (0.5, 0.5, 0.5), "deviation": (0.25, 0.25, 0.25)}


def test_weights_fit_another_size(folder: Path) -> None:
    place = "model={models.towers.two_towers.TwoTowers: {config: {vision_config: %s}}}"
    said = begun(folder, place % {"model_type": "timm_wrapper", "model_args": {"img_size": 64}})
    assert small.model(said)(small.batch(said))["image"].shape == (small.ROWS, 32)


def test_images_must_be_said_where_the_weights_have_seen_others(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of([("0.jpg", picture(0, 96, 96)), ("0.txt", b"a thing")]))
    said = begun(folder, "data.images={side: 96}")
    with pytest.raises(RecipeError, match=r"data.images.mean: the pretrained tower has seen \(0.5, 0.5, 0.5\); say so"):
        train(said, {"shards": str(tmp_path)}, f"{tmp_path}/out")


def test_a_classifier_goes_on_with_the_images_that_it_was_trained_on(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of([("0.jpg", picture(0, 96, 96)), ("0.cls", b"1")]))
    shards, model = {"shards": str(tmp_path)}, "model={models.towers.vit.VisionClassifier: {classes: 2, %s}}"
    begin = model % "config: {model_type: timm_wrapper, architecture: resnet18}"
    images = "data={kind: labels, images: {side: 64, mean: [0.1, 0.2, 0.3], deviation: [0.2, 0.2, 0.2]}}"
    settings = ["objectives=[models.objectives.classes.ClassOf]", "samples=8", "batch=4"]
    overrides = [begin, images, *settings]
    text = "{about: classes, optimizer: {learning_rate: 1e-3}, precision: float32}"
    made = train(Recipe.parse(text, "timm", overrides=overrides), shards, f"{tmp_path}/out").model
    assert made is not None
    assert VisionClassifier(pretrained=made, classes=2).images["mean"] == (0.1, 0.2, 0.3)
    again = [model % f"pretrained: '{made}'", "data={kind: labels, images: {side: 64}}", *settings]
    with pytest.raises(RecipeError, match=r"data.images.mean: the pretrained tower has seen \(0.1, 0.2, 0.3\); say so"):
        train(Recipe.parse(text, "timm", overrides=again), shards, f"{tmp_path}/again")


def test_patches_are_the_tokens_of_a_vit() -> None:
    said = recipe("vit_tiny_patch16_224", VIT)
    config = said.model.parameters["config"]
    towers = TwoTowers(config, patches=True).eval()
    assert towers(small.batch(said))["patches"].shape == (small.ROWS, 16, 32)
    with pytest.raises(ValueError, match="patches of 'resnet18' are not known; take clip or siglip, or a ViT"):
        TwoTowers(recipe("resnet18", {}).model.parameters["config"], patches=True)
    with pytest.raises(ValueError, match="patches of 'cait_xxs24_224' are not known"):  # which has a class token, too
        TwoTowers(recipe("cait_xxs24_224", {"img_size": 64, "depth": 1}).model.parameters["config"], patches=True)
    with pytest.raises(ValueError, match="patch_dropout of timm's towers is not known"):
        towers.patch_dropout = 0.5


def test_a_classifier_of_timms_is_saved_with_its_names(tmp_path: Path) -> None:
    config = {"model_type": "timm_wrapper", "architecture": "resnet18"}
    model = VisionClassifier(config, classes=["circle", "square"])
    pixels = torch.randn(3, 3, SIDE, SIDE)
    logits = model.eval()({"pixel_values": pixels, "classes": torch.tensor([0, 1, 1])})["logits"]
    assert logits.shape == (3, 2)
    model.export(tmp_path)
    save_preprocessor(Images(side=SIDE), tmp_path)
    encoder = ImageEncoder.load(tmp_path, "cpu", "float32")
    assert encoder.classes == ("circle", "square")
    pictures = list(np.zeros((2, SIDE, SIDE, 3), np.uint8))
    assert encoder.embed_prepared(pictures, 2).shape == (2, 512)
    assert encoder.scores_prepared(pictures, 2).shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "model_args", "told"),
    [
        ("resnet81", {}, r"timm cannot make 'resnet81': Unknown model \(resnet81\); did you mean 'resnet18'"),
        ("resnet18", {"image": 3}, "timm cannot make 'resnet18': .* unexpected keyword argument 'image'"),
    ],
)
def test_a_name_or_an_argument_that_timm_does_not_know(name: str, model_args: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        small.model(recipe(name, model_args))


def test_a_folder_that_lacks_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"timm cannot make 'local-dir:.*': "):
        small.model(begun(Path(f"local-dir:{tmp_path}")))
