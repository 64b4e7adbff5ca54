"""Towers cut off behind a layer give what transformers' give there, and are whole again when they are written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from models.towers.vision import KINDS, Eye, loaded_tower

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
SIZES = {"image_size": 32, "patch_size": 8}


def tower(kind: str) -> Any:
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **SMALL, **SIZES))  # type: ignore[no-untyped-call]
    return model.eval()


@pytest.mark.parametrize("layer", [-1, -2, -4, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_patches_are_the_hidden_states_of_that_layer(kind: str, layer: int) -> None:
    model, pixels = tower(kind), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True).hidden_states[layer]
        select = "default" if KINDS[kind].class_token else "full"
        found = Eye(model, layer, select)(pixels)
    assert found.shape[1] == 16
    torch.testing.assert_close(found, expected[:, 1:] if select == "default" else expected)


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_left_has_a_gradient(kind: str) -> None:
    model = tower(kind)
    Eye(model, -2, "full")(torch.randn(2, 3, 32, 32)).square().sum().backward()  # type: ignore[no-untyped-call]
    unused = [name for name, own in model.named_parameters() if own.grad is None]
    assert [name for name in unused if "mask_token" not in name] == []


@pytest.mark.parametrize("kind", KINDS)
def test_written_down_it_is_whole(kind: str) -> None:
    model = tower(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    eye = Eye(model, -2, "full")
    cut = model.state_dict().keys()
    assert cut < before.keys()
    with eye.complete():
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
        pooled = model(torch.randn(1, 3, 32, 32)).pooler_output
        assert pooled is not None
    assert model.state_dict().keys() == cut


def test_a_class_token_that_is_none_and_layers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="select = 'default' leaves a patch of 'siglip_vision_model' out; take 'full'"):
        Eye(tower("siglip_vision_model"), -2, "default")
    for layer in (0, -5, 5):
        with pytest.raises(ValueError, match=f"feature_layer = {layer} of a tower with 4 layers"):
            Eye(tower("vit"), layer, "full")


def test_towers_come_out_of_folders_of_all_kinds(tmp_path: Path) -> None:
    inner: dict[str, Any] = SMALL | SIZES
    texts = SMALL | {"vocab_size": 50, "eos_token_id": 3, "bos_token_id": 4, "pad_token_id": 0}
    vit: Any = ViTConfig(**inner)
    made: dict[str, Any] = {
        "clip": CLIPModel(CLIPConfig(vision_config=inner, text_config=texts, projection_dim=8)),
        "siglip": SiglipModel(SiglipConfig(vision_config=inner, text_config=texts)),
        "vit": ViTModel(vit),
        "vit without a pooler": ViTModel(vit, add_pooling_layer=False),
        "classifier": ViTForImageClassification(vit),
    }
    for name, model in made.items():
        model.save_pretrained(tmp_path / name)
        found = loaded_tower(str(tmp_path / name)).state_dict()
        whole = model.state_dict()
        prefix = next(one for one in ("vision_model.", "vit.", "") if any(key.startswith(one) for key in whole))
        same = [key for key in found if f"{prefix}{key}" in whole]
        assert len(same) >= len(found) - 2  # a pooler that the folder lacks
        assert all(torch.equal(found[key], whole[f"{prefix}{key}"]) for key in same)


def test_a_folder_without_an_image_tower_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be loaded"):
        loaded_tower(str(tmp_path))
    config = AutoConfig.for_model("llama", hidden_size=16, intermediate_size=32, num_attention_heads=2, vocab_size=9)
    config.num_hidden_layers, config.num_key_value_heads = 1, 2
    AutoModel.from_config(config).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="an image tower of type 'llama'; expected one of clip_vision_model"):
        loaded_tower(str(tmp_path))
