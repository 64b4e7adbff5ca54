"""Image towers of timm's, in the wrapper that transformers has for them.

TwoTowers({"model_type": "vision-text-dual-encoder", "text_config": {...}, "projection_dim": 512,
           "vision_config": {"model_type": "timm_wrapper", "architecture": "convnext_tiny", "model_args": {...}}})
TwoTowers({...}, pretrained={"vision": "hf_hub:timm/vit_base_patch16_clip_224.openai"})     # or a folder

`model_args` go to `timm.create_model`, such as `img_size` or `drop_path_rate`: timm fits the weights to them. timm is
imported where a recipe asks for it alone (`pip install -e '.[timm]'`), for it needs a torchvision of this torch.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers.utils.import_utils import is_timm_available

from models.recipe import Images

KIND = "timm_wrapper"
HUB, FOLDER = ("hf_hub:", "hf-hub:"), "local-dir:"
"""How timm says where weights lie."""
TOLD = ("architecture", "tag", "license", "input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
"""What a model that was trained further tells of the weights that it began with."""


def library() -> Any:
    """timm itself. Raises `ValueError` where it, or the torchvision that it needs, cannot be imported."""
    if not is_timm_available():
        raise ValueError(
            "timm, or a torchvision that was built for this torch, is not installed; "
            "`.venv/bin/pip install -e '.[timm]'`"
        )
    return importlib.import_module("timm")


def own(place: str) -> str | None:
    """A folder or a hub id that timm saved, as timm wants it named; None where it is transformers' to load."""
    if place.startswith((*HUB, FOLDER)):
        return place
    config = Path(place) / "config.json"
    if not config.is_file():
        return f"{HUB[1]}{place}" if place.startswith("timm/") else None
    said = json.loads(config.read_text(encoding="utf-8"))
    return f"{FOLDER}{place}" if "architecture" in said and "model_type" not in said else None


def created(name: str, pretrained: bool, model_args: Mapping[str, Any], classes: int = 0) -> Any:
    """timm's model with its own initialisation, or with the weights that `own` names. Raises `ValueError`."""
    timm = library()
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=classes, **model_args)
    except (RuntimeError, TypeError, OSError, ValueError, AssertionError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        near = get_close_matches(name, timm.list_models(), n=1) if "Unknown model" in told else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"timm cannot make {name!r}: {told}{hint}") from None


def with_width(vision: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a new tower with `hidden_size`, the width of what it pools, which transformers' projection asks
    for and timm alone knows. Raises `ValueError`."""
    if "architecture" not in vision:
        raise ValueError(f"vision_config of {KIND} has no `architecture`; expected one of timm.list_models()")
    return {**vision, "hidden_size": width_of(created(vision["architecture"], False, vision.get("model_args") or {}))}


def width_of(model: Any) -> int:
    """Of the rows that a model of timm's pools: of its head's hidden layer, where it has one."""
    return int(getattr(model, "head_hidden_size", None) or model.num_features)


def is_vit(model: Any) -> bool:
    """Whether a model's last tokens are a few of its own, then patches, which `fc_norm` takes to where they are pooled;
    CaiT, too, has a class token, and neither."""
    return all(hasattr(model, name) for name in ("cls_token", "num_prefix_tokens", "fc_norm"))


def begin(wrapper: Any) -> None:
    """Give a new model timm's own initialisation: transformers draws all weights from one normal distribution."""
    config = wrapper.config
    classes = config.num_labels if type(wrapper).__name__.endswith("ForImageClassification") else 0
    fresh = created(config.architecture, False, config.model_args or {}, classes)
    wrapper.timm_model.load_state_dict(fresh.state_dict())


def loaded(place: str, model_args: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The wrapper's config and the weights, by timm's names, of what `own` names. Raises `ValueError`."""
    model = created(place, True, model_args)
    said = {name: model.pretrained_cfg[name] for name in TOLD if name in model.pretrained_cfg}
    arguments = {**_saved_arguments(place), **model_args}
    config = {"model_type": KIND, "architecture": said["architecture"], "model_args": arguments}
    return {**config, "hidden_size": width_of(model), "pretrained_cfg": said}, model.state_dict()


def _saved_arguments(place: str) -> dict[str, Any]:
    """What the model was made with, but for its classes, which the wrapper says itself."""
    hub = importlib.import_module("timm.models._hub")
    name = place.partition(":")[2]
    read = hub.load_model_config_from_path if place.startswith(FOLDER) else hub.load_model_config_from_hf
    return {key: value for key, value in (read(name)[2] or {}).items() if key != "num_classes"}


def trained_on(config: Mapping[str, Any]) -> dict[str, Any]:
    """`side`, `mean` and `deviation` of the images that a tower's weights have seen, by its wrapper's config; nothing
    where that does not say."""
    said = config.get("pretrained_cfg")
    if not said:
        return {}
    side = (config.get("model_args") or {}).get("img_size") or said["input_size"][-1]
    side = side if isinstance(side, int) else side[-1]
    return {"side": side, "mean": tuple(said["mean"]), "deviation": tuple(said["std"])}


def tell_images(images: Images, folder: Path) -> None:
    """Into the config of an exported model that has a tower of timm's: the images that this training has shown it, in
    the place of those that its weights had seen before. `trained_on` reads them."""
    path = folder / "config.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    tower = said.get("vision_config", said)
    if tower.get("model_type") == KIND:
        seen = {"input_size": [3, images.side, images.side], "mean": list(images.mean), "std": list(images.deviation)}
        tower["pretrained_cfg"] = {**(tower.get("pretrained_cfg") or {}), **seen}
        path.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")
