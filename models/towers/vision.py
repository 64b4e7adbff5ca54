"""Image towers for language models: their patches as a layer before the last leaves them (LLaVA's layer -2).

What comes after that layer has no part in the training, and is no part of the model either: it would have parameters
without gradients, which DistributedDataParallel waits for. It is kept aside, and written down with the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModel


class Anatomy(NamedTuple):
    """Where things are in a kind of tower."""

    layers: str
    after: tuple[str, ...]
    """What reads the last layer's output."""
    class_token: bool
    """Whether the first of its tokens is none of a patch."""


KINDS = {
    "clip_vision_model": Anatomy("encoder.layers", ("post_layernorm",), True),
    "siglip_vision_model": Anatomy("encoder.layers", ("post_layernorm", "head"), False),
    "vit": Anatomy("layers", ("layernorm", "pooler"), True),
}
IDLE = ("pooler", "head")
"""What a saved tower may lack, for nobody reads it."""


def anatomy_of(config: Any) -> Anatomy:
    """Raises `ValueError` for a kind of tower that is not known."""
    if config.model_type not in KINDS:
        raise ValueError(f"an image tower of type {config.model_type!r}; expected one of {', '.join(KINDS)}")
    return KINDS[config.model_type]


def loaded_tower(place: str) -> Any:
    """The image tower out of a folder, of that alone or of a dual encoder, in float32. Raises `ValueError`."""
    try:
        model, found = AutoModel.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"vision = {place!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    tower = getattr(model, "vision_model", model)
    anatomy_of(tower.config)
    absent = sorted(
        name for name in found["missing_keys"] if name.removeprefix("vision_model.").split(".")[0] not in IDLE
    )
    if absent:  # transformers would go on with random numbers in their place
        raise ValueError(f"vision = {place!r} lacks {len(absent)} tensors, {absent[0]} among them")
    return tower


class Eye:
    """A tower cut off behind one of its layers."""

    def __init__(self, tower: Any, layer: int, select: str) -> None:
        """`layer`: as transformers counts, from the end if below 0; 0 is what enters the first. `select`: `default`
        leaves the class token out, `full` does not. Raises `ValueError`."""
        anatomy = anatomy_of(tower.config)
        self._tower, self._anatomy = tower, anatomy
        self._drops = select == "default"
        if self._drops and not anatomy.class_token:
            raise ValueError(f"select = 'default' leaves a patch of {tower.config.model_type!r} out; take 'full'")
        all_layers = tower.get_submodule(anatomy.layers)
        kept = layer if layer >= 0 else len(all_layers) + 1 + layer
        if not 1 <= kept <= len(all_layers):
            raise ValueError(f"feature_layer = {layer} of a tower with {len(all_layers)} layers; expected one of them")
        self._whole: dict[str, nn.Module | None] = {
            name: getattr(tower, name) for name in anatomy.after if hasattr(tower, name)
        }
        self._layers, self._kept = all_layers, kept
        self._cut()

    def __call__(self, pixels_t3ss: torch.Tensor) -> torch.Tensor:
        """(tiles, patches, width), the class token among them or not."""
        seen: torch.Tensor = self._tower(pixels_t3ss).last_hidden_state
        return seen[:, 1:] if self._drops else seen

    @contextmanager
    def complete(self) -> Iterator[None]:
        """The tower with all that it was made with, to be written down."""
        self._put(self._anatomy.layers, self._layers)
        for name, module in self._whole.items():
            self._put(name, module)
        if hasattr(self._tower, "use_head"):
            self._tower.use_head = "head" in self._whole
        yield
        self._cut()

    def _cut(self) -> None:
        self._put(self._anatomy.layers, self._layers[: self._kept])
        for name in self._whole:
            self._put(name, None if name in IDLE else nn.Identity())
        if hasattr(self._tower, "use_head"):
            self._tower.use_head = False

    def _put(self, name: str, module: nn.Module | None) -> None:
        parent, _, own = name.rpartition(".")
        setattr(self._tower.get_submodule(parent), own, module)
