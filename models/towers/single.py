"""One model of transformers', from a config or from weights: what language models, BERT, ViT and DINO begin with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoConfig

from models.towers import timm
from models.towers.build import check_config

SPECIAL = ("bos", "eos", "pad")


def built(
    kind: Any, config: Mapping[str, Any] | None, pretrained: str | None, tokenizer: Any = None, **more: Any
) -> Any:
    """A model in float32. Raises `ValueError` where the two say too little, too much, or what is unknown.

    `kind`: transformers' class, or one of its Auto classes. `config`: keys of its config, `model_type` among them.
    `pretrained`: a folder or a hub id. `tokenizer`: gives a new model its vocabulary and special tokens. `more`: for
    the class itself, such as `add_pooling_layer`.
    """
    if (config is None) == (pretrained is None):
        raise ValueError(
            "expected either a config or pretrained; --weights pretrained=FOLDER wants a recipe without one"
        )
    if pretrained is not None:
        model = _loaded(kind, pretrained, more)
    else:
        said = dict(config or {})
        name = said.pop("model_type", None)
        check_config(name, said)
        if name == timm.KIND:
            timm.library()
        wanted = AutoConfig.for_model(name, **said, **_tokens(tokenizer))
        model = kind.from_config(wanted, **more) if hasattr(kind, "from_config") else kind(wanted, **more)
        if name == timm.KIND:
            timm.begin(model)
    if tokenizer is not None and len(tokenizer) > model.config.vocab_size:
        raise ValueError(f"a tokenizer of {len(tokenizer)} tokens; the model knows {model.config.vocab_size}")
    return model.float()


def _tokens(tokenizer: Any) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in SPECIAL}
    return {"vocab_size": len(tokenizer)} | {name: token for name, token in special.items() if token is not None}


def _loaded(kind: Any, place: str, more: Mapping[str, Any]) -> Any:
    try:
        model, found = kind.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **more
        )
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"pretrained = {place!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    if absent := sorted(found["missing_keys"]):  # transformers would go on with random numbers in their place
        raise ValueError(f"pretrained = {place!r} lacks {len(absent)} tensors, {absent[0]} among them")
    return model
