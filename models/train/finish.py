"""What a finished training leaves: `<out>/model/`, a folder that transformers loads and `models.evaluate` reads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fsspec.core import url_to_fs

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers.utils import logging

from models.data.images import save_preprocessor
from models.data.kinds import KINDS
from models.export import card
from models.recipe import Recipe
from models.towers import timm
from models.trainable import Objective, Trainable

LAST = "training.json"
"""The file that is written last: a folder with it is whole."""


def export(
    parts: Sequence[Trainable | Objective], tokenizer: Any, recipe: Recipe, said: Mapping[str, Any], out: str
) -> str:
    """The folder on its store. `parts`: the model and its objectives, with the weights that they learned.

    `said` becomes `training.json`: the curve, the speed, what was left out, where the data came from.
    """
    folder = f"{out.rstrip('/')}/model"
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # one for every file is none of ours
    with tempfile.TemporaryDirectory(prefix="sluice-model-") as name:
        local = Path(name)
        for part in parts:
            part.eval().export(local)
        if tokenizer is not None and not (local / "tokenizer_config.json").exists():
            tokenizer.save_pretrained(local)
        if KINDS[recipe.data.kind].images:
            save_preprocessor(recipe.data.images, local)
            timm.tell_images(recipe.data.images, local)
        (local / "recipe.yaml").write_text(as_yaml(recipe), encoding="utf-8")
        (local / LAST).write_text(json.dumps(said, indent=1))
        card.write(local)
        _bring(local, folder)
    return folder


def as_yaml(recipe: Recipe) -> str:
    """A recipe with everything that defaults, overlays and overrides made of it; `Recipe.parse` reads it again."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _bring(local: Path, folder: str) -> None:
    """All files to a store, the mark last; files of an earlier export that are none of this one are deleted."""
    fs, path = url_to_fs(folder)
    if fs.exists(path):
        fs.rm(path, recursive=True)
    fs.makedirs(path, exist_ok=True)
    for file in sorted(local.rglob("*"), key=lambda file: (file.name == LAST, file)):
        if file.is_file():
            target = f"{path}/{file.relative_to(local).as_posix()}"
            fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            fs.put_file(str(file), target)
