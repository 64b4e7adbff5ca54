"""open_clip's CLIP with the same weights gives the same embeddings, loss and gradients, with a ViT and with a ResNet.

What it gave lies in `golden/`, made by `golden/make_open_clip.py`, with its version and seed in the files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.objectives.contrastive import InfoNCE
from models.towers.two_towers import TwoTowers

GOLDEN = Path(__file__).parent / "golden"
TEXT = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"vocab_size": 40, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 39, "pad_token_id": 0}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {
        "model_type": "clip",
        "projection_dim": 12,
        "text_config": TEXT,
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
    },
    "resnet": {
        "model_type": "clip_resnet",
        "projection_dim": 12,
        "text_config": TEXT,
        "vision_config": {"depths": [1, 1, 1, 1], "width": 4, "num_attention_heads": 4, "image_size": 64},
    },
}
LEARNED = {
    "vit": {
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "transformer.resblocks.0.mlp.c_fc.weight": "text_model.encoder.layers.0.mlp.fc1.weight",
    },
    "resnet": {
        "visual.conv1.weight": "vision_model.stem.0.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    },
}
BLOCK = r"^(?P<tower>visual\.)?transformer\.resblocks\.(?P<number>\d+)\.(?P<rest>.*)$"
INNER = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
OUTER = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.attnpool.positional_embedding": "vision_model.pool.positions",
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_open_clip_gives_the_same_rows_loss_and_gradients(kind: str) -> None:
    golden = load_file(GOLDEN / f"{kind}.safetensors")
    towers = TwoTowers(CONFIGS[kind])
    weights = {
        key.removeprefix("weights."): value.float() for key, value in golden.items() if key.startswith("weights.")
    }
    towers.model.load_state_dict(_ours(weights, kind))
    features = towers.eval()({"pixel_values": golden["images"].float(), "input_ids": golden["texts"]})
    for name in ("image", "text"):
        assert golden[name].std(dim=0).min() > 0.005, "rows that are all alike tell nothing"
        torch.testing.assert_close(features[name], golden[name], atol=1e-5, rtol=0)
    loss = InfoNCE()(features, towers.scalars())
    mean = loss.total / loss.count
    torch.testing.assert_close(mean, golden["loss"], atol=1e-5, rtol=1e-5)
    mean.backward()
    for theirs, ours in LEARNED[kind].items():
        gradient = golden[f"gradient.{theirs}"]
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(towers.model.get_parameter(ours).grad, gradient, atol=1e-5, rtol=1e-4)


def _ours(weights: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """open_clip's weights by transformers' names."""
    found: dict[str, torch.Tensor] = {}
    for key, value in weights.items():
        if match := re.match(BLOCK, key):
            tower = "vision_model" if match["tower"] else "text_model"
            found |= _layer(f"{tower}.encoder.layers.{match['number']}", match["rest"], value)
        elif key in OUTER:
            found[OUTER[key]] = value
        elif key == "text_projection":
            found["text_projection.weight"] = value.T
        elif key == "visual.proj":
            found["visual_projection.weight"] = value.T
        elif kind == "vit" and key == "visual.conv1.weight":
            found["vision_model.embeddings.patch_embedding.weight"] = value
        elif key.startswith("visual."):
            found[_in_resnet(key.removeprefix("visual."))] = value
    return found


def _layer(place: str, rest: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    name, _, end = rest.rpartition(".")
    if rest.startswith("attn.in_proj_"):
        end = rest.removeprefix("attn.in_proj_")
        return {f"{place}.self_attn.{one}_proj.{end}": part for one, part in zip("qkv", value.chunk(3), strict=True)}
    return {f"{place}.{INNER.get(name, name.replace('attn.', 'self_attn.'))}.{end}": value}


def _in_resnet(key: str) -> str:
    """`layer2.0.bn1.weight` is `stages.1.0.way.1.weight`, and so on."""
    stages = {"conv1": "way.0", "bn1": "way.1", "conv2": "way.3", "bn2": "way.4", "conv3": "last.0", "bn3": "last.1"}
    stem = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
    if match := re.match(r"layer(\d)\.(\d+)\.(conv\d|bn\d|downsample\.\d)\.(.*)", key):
        inner = stages.get(match[3]) or match[3].replace("downsample.0", "shortcut.1").replace(
            "downsample.1", "shortcut.2"
        )
        return f"vision_model.stages.{int(match[1]) - 1}.{match[2]}.{inner}.{match[4]}"
    if match := re.match(r"(conv\d|bn\d)\.(.*)", key):
        return f"vision_model.stem.{stem[match[1]]}.{match[2]}"
    return "vision_model.pool." + key.removeprefix("attnpool.").replace("c_proj", "out_proj")
