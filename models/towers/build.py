"""Dual encoders from a config, from a folder, or from towers of different folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

import torch

import models.without_torchvision  # isort: skip
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

import models.towers.clip_resnet  # noqa: F401  # its model type
from models.towers import timm

JOINED = "vision-text-dual-encoder"
TOWERS = ("vision", "text")


def dual_encoder(
    config: Mapping[str, Any] | None, pretrained: str | Mapping[str, str | None] | None, tokenizer: Any
) -> Any:
    """transformers' model in float32. Raises `ValueError` where the two say too little, too much, or what is unknown.

    `config`: keys of transformers' config, `model_type` among them. `pretrained`: a folder or a hub id, of the whole
    or of the towers `vision` and `text`; None is none. `tokenizer`: its vocabulary and special tokens become the text
    tower's.
    """
    if isinstance(pretrained, str):
        if config is not None:
            raise ValueError(f"config beside pretrained = {pretrained!r}, which has its own; leave one out")
        model = _loaded(pretrained)
        _fits(tokenizer, model.config)
        return model
    said = {key: value for key, value in (config or {}).items() if value is not None or not key.endswith("_config")}
    places = {name: place for name, place in (pretrained or {}).items() if place is not None}
    for name, place in places.items():
        _alone(name, place, said)
    towers = {name: _tower(name, place, said) for name, place in places.items()}
    kind = said.pop("model_type", JOINED if towers else None)
    if towers and kind != JOINED:
        raise ValueError(f"towers of their own are joined by model_type {JOINED}, not by {kind!r}")
    check_config(kind, said)
    for name, (own, _) in towers.items():
        said[f"{name}_config"] = own
    anew = "vision" not in towers and _is_timm(said)
    if anew:
        said["vision_config"] = timm.with_width(said["vision_config"])
    for name in TOWERS:
        if kind == JOINED and f"{name}_config" not in said:
            raise ValueError(
                f"{kind} has no {name} tower; give {name}_config a model_type, or pretrained.{name} a folder"
            )
    if "text" not in towers:
        said["text_config"] = _with_tokens(dict(said.get("text_config", {})), tokenizer)
    model = AutoModel.from_config(  # type: ignore[no-untyped-call]
        AutoConfig.for_model(kind, **said), dtype=torch.float32
    )
    for name, (_, weights) in towers.items():
        getattr(model, f"{name}_model").load_state_dict(weights)
    if anew:
        timm.begin(model.vision_model)
    _fits(tokenizer, model.config)
    return model


def _loaded(place: str) -> Any:
    try:
        model, found = AutoModel.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"pretrained = {place!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    if absent := sorted(found["missing_keys"]):  # transformers would go on with random numbers in their place
        raise ValueError(f"pretrained = {place!r} lacks {len(absent)} tensors, {absent[0]} among them")
    return model


def _tower(name: str, place: str, said: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Its config and its weights."""
    if name not in TOWERS:
        raise ValueError(f"pretrained.{name}: no such tower; expected {' or '.join(TOWERS)}")
    if (theirs := timm.own(place)) is not None:
        return timm.loaded(theirs, said.get(f"{name}_config", {}).get("model_args") or {})
    model = _loaded(place)
    tower = getattr(model, f"{name}_model", model)
    config = tower.config.to_dict()
    if config["model_type"] == timm.KIND:
        config["hidden_size"] = timm.width_of(tower.timm_model)
    return config, tower.state_dict()


def _alone(name: str, place: str, said: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a config beside the weights of a tower, which would be lost; timm takes `model_args`."""
    beside = dict(said.get(f"{name}_config", {}))
    if beside.get("model_type") == timm.KIND and timm.own(place) is not None:
        beside = {key: value for key, value in beside.items() if key not in ("model_type", "model_args")}
    if beside:
        key, value = next(iter(beside.items()))
        raise ValueError(
            f"{name}_config.{key} = {value!r} beside pretrained.{name} = {place!r}, which has a config of its own; "
            f"leave one out: {name}_config: null, or pretrained: {{{name}: null}}"
        )


def _is_timm(said: Mapping[str, Any]) -> bool:
    return bool(said.get("vision_config", {}).get("model_type") == timm.KIND)


def _with_tokens(text: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    if tokenizer is None:
        return text
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return text | {"vocab_size": len(tokenizer)} | {name: token for name, token in special.items() if token is not None}


def _fits(tokenizer: Any, config: Any) -> None:
    text = config.text_config
    if config.model_type == "clip" and text.eos_token_id == 2:
        raise ValueError("eos_token_id = 2: transformers' CLIP would pool at the largest token; give eos another id")
    if tokenizer is not None and len(tokenizer) > text.vocab_size:
        raise ValueError(f"a tokenizer of {len(tokenizer)} tokens; the text tower knows {text.vocab_size}")


def check_config(kind: Any, said: Mapping[str, Any]) -> None:
    """Raise `ValueError` for keys that transformers does not know: it keeps them without a word, and a typo would train
    another model."""
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"model_type = {kind!r} is not known to transformers{_nearest(kind, CONFIG_MAPPING.keys())}")
    inner = CONFIG_MAPPING[kind].sub_configs
    _has(kind, CONFIG_MAPPING[kind], said)
    for key, value in said.items():
        if key in inner:
            if inner[key] is AutoConfig and "model_type" not in value:
                raise ValueError(f"{key} of {kind} has no model_type; say one that transformers knows, such as vit")
            tower = inner[key] if inner[key] is not AutoConfig else CONFIG_MAPPING[value["model_type"]]
            _has(f"{key} of {kind}", tower, value)


def _has(what: str, config: Any, said: Mapping[str, Any]) -> None:
    names = {field.name for field in fields(config)} | config.attribute_map.keys() | {"model_type"}
    for name in said:
        if name not in names:
            raise ValueError(f"{what} has no {name!r}{_nearest(name, names)}")


def _nearest(name: Any, known: Any) -> str:
    near = get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
