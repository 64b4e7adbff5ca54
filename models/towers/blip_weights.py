"""BLIP's parts as transformers' classes have them: built from a config, or taken out of a folder, and shared.

`BlipForImageTextRetrieval` has the text encoder, projections and matching head, `BlipForConditionalGeneration` the
decoder. Where both are wanted, text encoder and decoder share all but the layers of self-attention, as the authors'
code ties them (section 3.1, and table 5 for why).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval
from transformers.utils import logging

from models.towers.blip_tokens import special_tokens
from models.towers.build import check_config

RETRIEVAL = ("vision_model", "text_encoder", "vision_proj", "text_proj", "itm_head")
CAPTIONER = ("vision_model", "text_decoder")
"""Parts, by the names that transformers' classes give them."""
TIED = "text_decoder.cls.predictions.decoder."
"""Which transformers ties to the word embeddings when it loads."""
DEVIATION = 0.02
"""Of the image tower's weights at the start; transformers' config says 1e-10, with which it begins blind."""


def built(config: Mapping[str, Any], tokenizer: Any, retrieves: bool, captions: bool) -> tuple[Any, dict[str, Any]]:
    """Config and parts, random. Raises `ValueError` for a key that transformers does not know."""
    check_config("blip", config)
    said = dict(config)
    said["vision_config"] = {"initializer_range": DEVIATION, **said.get("vision_config", {})}
    if tokenizer is not None:
        said["text_config"] = {**said.get("text_config", {}), **special_tokens(tokenizer)}
    made: Any = BlipConfig(**said)
    parts: dict[str, Any] = {}
    if retrieves:
        parts |= _of(BlipForImageTextRetrieval(made), RETRIEVAL)
    if captions:
        parts |= _of(BlipForConditionalGeneration(made), CAPTIONER)
    return made, _shared(parts)


def loaded(place: str, tokenizer: Any, retrieves: bool, captions: bool) -> tuple[Any, dict[str, Any]]:
    """The same of a folder or a hub id. Raises `ValueError` where it lacks a part, or knows fewer tokens."""
    parts: dict[str, Any] = {}
    config: Any = None
    for wanted, kind, names in (
        (retrieves, BlipForImageTextRetrieval, RETRIEVAL),
        (captions, BlipForConditionalGeneration, CAPTIONER),
    ):
        if wanted:
            model = whole(kind, place)
            config = model.config
            parts |= _of(model, names)
    if tokenizer is not None:
        if len(tokenizer) > config.text_config.vocab_size:
            raise ValueError(
                f"a tokenizer of {len(tokenizer)} tokens; {place} knows {config.text_config.vocab_size}; take its own"
            )
        for name, token in special_tokens(tokenizer).items():
            if name != "vocab_size":
                setattr(config.text_config, name, token)
    return config, _shared(parts)


def whole(kind: Any, place: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """One of transformers' classes from a folder or a hub id. Raises `ValueError` where a tensor is missing."""
    options = {"use_safetensors": True, "output_loading_info": True, "trust_remote_code": False}
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it would list what the other class has
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, found = kind.from_pretrained(place, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(place)!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    finally:
        logging.set_verbosity(told)
    if absent := sorted(found["missing_keys"]):  # transformers would go on with random numbers in their place
        raise ValueError(f"{str(place)!r} holds no whole {kind.__name__}: it lacks {len(absent)} tensors, {absent[0]}")
    return model


def save(config: Any, model: nn.Module, folder: Path) -> None:
    """Config and safetensors that each of the two classes loads its part from: shared tensors are written for both."""
    prefixes = tuple(f"{name}." for name in {*RETRIEVAL, *CAPTIONER})
    tensors = {
        name: tensor.detach().clone().contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith(prefixes) and not name.startswith(TIED)
    }
    kinds = (("text_decoder", BlipForConditionalGeneration), ("text_encoder", BlipForImageTextRetrieval))
    config.architectures = [kind.__name__ for part, kind in kinds if hasattr(model, part)]
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def resize(config: Any, vision_model: Any, side: int) -> None:
    """Let an image tower take images of `side` px: its places are interpolated, as the authors do for fine-tuning."""
    embeddings = vision_model.embeddings
    if side == embeddings.image_size:
        return
    here, there = embeddings.image_size // embeddings.patch_size, side // embeddings.patch_size
    first, places = embeddings.position_embedding.split([1, here * here], dim=1)
    grid = places.reshape(1, here, here, -1).permute(0, 3, 1, 2)
    wider = functional.interpolate(grid, size=(there, there), mode="bicubic", align_corners=False)
    resized = torch.cat([first, wider.permute(0, 2, 3, 1).reshape(1, there * there, -1)], dim=1)
    embeddings.position_embedding = nn.Parameter(resized)
    embeddings.image_size = config.vision_config.image_size = side
    embeddings.num_patches, embeddings.num_positions = there * there, there * there + 1


def _of(model: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(model, name) for name in names}


def _shared(parts: dict[str, Any]) -> dict[str, Any]:
    """The decoder with the encoder's modules, but for its own layers of self-attention."""
    if "text_encoder" in parts and "text_decoder" in parts:
        encoder, decoder = parts["text_encoder"], parts["text_decoder"]
        decoder.bert.embeddings = encoder.embeddings
        decoder.cls.predictions.decoder.weight = encoder.embeddings.word_embeddings.weight
        for own, given in zip(decoder.bert.encoder.layer, encoder.encoder.layer, strict=True):
            own.crossattention, own.intermediate, own.output = given.crossattention, given.intermediate, given.output
    return parts
