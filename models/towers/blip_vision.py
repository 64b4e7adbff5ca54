"""A ViT as BLIP's image tower: the same network under other names, with queries, keys and values in one matrix.

So the authors begin: with the ViT that ImageNet taught (Li et al. 2022, section 4.1).
"""

from __future__ import annotations

from typing import Any

import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoModel
from transformers.utils import logging

SAME = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size",
    "hidden_act",
)  # fmt: skip
"""Of the two configs."""
ONCE = {
    "embeddings.class_embedding": "embeddings.cls_token",
    "embeddings.position_embedding": "embeddings.position_embeddings",
    "embeddings.patch_embedding": "embeddings.patch_embeddings.projection",
    "post_layernorm": "layernorm",
}
LAYER = {
    "self_attn.projection": "attention.o_proj",
    "layer_norm1": "layernorm_before",
    "layer_norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Of a layer: BLIP's name, and ViT's."""
LAYERS = "encoder.layers"


def begin_with(vision_model: Any, place: str) -> None:
    """Give a BLIP image tower the weights of a ViT: of a classifier as `models.towers.vit` exports it, or of the hub.

    Raises `ValueError` for what is no ViT, or one of another shape.
    """
    vit = _vit(place)
    for name in SAME:
        ours, theirs = getattr(vision_model.config, name), getattr(vit.config, name)
        if ours != theirs:
            raise ValueError(f"vision = {place!r} has {name} {theirs}, the image tower {ours}; make them equal")
    vision_model.config.layer_norm_eps = vit.config.layer_norm_eps
    for module in vision_model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = vit.config.layer_norm_eps
    given = vit.state_dict()
    told = {ours: given[theirs] for ours, theirs in _names(vision_model.config.num_hidden_layers, given)}
    for number in range(vision_model.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            parts = [given[f"layers.{number}.attention.{part}_proj.{kind}"] for part in "qkv"]
            told[f"{LAYERS}.{number}.self_attn.qkv.{kind}"] = torch.cat(parts)
    vision_model.load_state_dict(told)


def _names(layers: int, given: Any) -> list[tuple[str, str]]:
    """Every tensor by both names, but for queries, keys and values."""
    modules = [*ONCE.items()]
    for number in range(layers):
        modules += [(f"{LAYERS}.{number}.{ours}", f"layers.{number}.{theirs}") for ours, theirs in LAYER.items()]
    kinds = ("", ".weight", ".bias")
    return [(ours + kind, theirs + kind) for ours, theirs in modules for kind in kinds if theirs + kind in given]


def _vit(place: str) -> Any:
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it would list the head, which is not wanted
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, found = AutoModel.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"vision = {place!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    finally:
        logging.set_verbosity(told)
    kind = model.config.model_type
    if kind != "vit" or not model.config.qkv_bias or model.config.num_channels != 3:
        raise ValueError(
            f"vision = {place!r} is a {kind!r}; BLIP's image tower begins with a 'vit' for RGB, with biases"
        )
    if absent := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise ValueError(f"vision = {place!r} lacks {len(absent)} tensors, {absent[0]} among them")
    return model
