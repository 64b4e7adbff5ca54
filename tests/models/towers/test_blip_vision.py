"""BLIP's image tower begins with a ViT: it sees what that ViT sees, also after it was exported."""

from pathlib import Path
from typing import Any

import pytest
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import BlipForConditionalGeneration, ViTConfig, ViTForImageClassification, ViTModel

from models.towers.blip import Blip
from tests.models.towers import tiny_blip

SHAPE = {name: value for name, value in tiny_blip.CONFIG["vision_config"].items() if name != "model_type"}


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """The folder of a classifier, as `models.towers.vit` exports it: without a pooler."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**SHAPE, layer_norm_eps=0.01))
    with torch.no_grad():
        for parameter in model.parameters():  # also those that begin with zeros and ones
            parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_the_tower_sees_what_the_vit_sees_also_after_export(vit: Path, tmp_path: Path) -> None:
    model = Blip(tiny_blip.CONFIG, heads=["caption"], vision=str(vit)).eval()
    images = torch.rand(3, 3, SHAPE["image_size"], SHAPE["image_size"])
    theirs: Any = ViTModel.from_pretrained(vit, add_pooling_layer=False)
    model.export(tmp_path / "blip")
    loaded: Any = BlipForConditionalGeneration.from_pretrained(tmp_path / "blip")
    theirs.eval(), loaded.eval()
    with torch.no_grad():
        wanted = theirs(pixel_values=images).last_hidden_state
        assert wanted.std() > 0.1
        for tower in (model.vision_model, loaded.vision_model):
            torch.testing.assert_close(tower(pixel_values=images).last_hidden_state, wanted, rtol=1e-4, atol=1e-5)


def test_the_slow_copy_begins_with_it_too(vit: Path) -> None:
    model = Blip(tiny_blip.CONFIG, vision=str(vit))
    assert model.slow is not None
    fast, slow = model.vision_model.state_dict(), model.slow.get_submodule("vision_model").state_dict()
    assert all(torch.equal(slow[name], fast[name]) for name in fast)


def test_what_is_no_vit_of_that_shape_is_refused(vit: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    ViTForImageClassification(
        ViTConfig(**{**SHAPE, "num_hidden_layers": 1 + SHAPE["num_hidden_layers"]})
    ).save_pretrained(other)
    with pytest.raises(ValueError, match=r"has num_hidden_layers \d, the image tower \d; make them equal"):
        Blip(tiny_blip.CONFIG, vision=str(other))
    Blip(tiny_blip.CONFIG, heads=["caption"]).export(tmp_path / "blip")
    ViTForImageClassification(ViTConfig(**SHAPE, hidden_act="relu")).save_pretrained(other)
    with pytest.raises(ValueError, match=r"has hidden_act relu, the image tower gelu; make them equal"):
        Blip(tiny_blip.CONFIG, vision=str(other))
    with pytest.raises(ValueError, match="is a 'blip'; BLIP's image tower begins with a 'vit'"):
        Blip(tiny_blip.CONFIG, vision=str(tmp_path / "blip"))
    with pytest.raises(ValueError, match="which has its own; leave one out"):
        Blip(pretrained=str(tmp_path / "blip"), heads=["caption"], vision=str(vit))
    with pytest.raises(ValueError, match="cannot be loaded"):
        Blip(tiny_blip.CONFIG, vision=str(tmp_path / "absent"))
