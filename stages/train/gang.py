"""Where a training runs: in this process, or in several that Ray Train starts as one gang."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import fsspec

from pipeline.dag import Workers

PROGRESS_S = 5.0
RESTARTS = 3
"""How often a gang that lost a worker is started again, from its newest checkpoint."""


def train_here(call: Mapping[str, Any]) -> list[dict[str, Any]]:
    """In this process, on its GPU where it was given one; the curve."""
    from models.recipe import Recipe
    from models.train.loop import train  # torch and transformers: seconds

    recipe, data, out = Recipe.model_validate(call["recipe"]), call["data"], call["out"]
    trained = train(recipe, data, out, lineage=call["lineage"], watch=_Progress(call["progress"]))
    return [dict(row) for row in trained.curve]


class _Progress:
    """Writes the samples seen to a file, now and then."""

    def __init__(self, url: str) -> None:
        self._fs, self._path = fsspec.core.url_to_fs(url)
        self._fs.makedirs(self._fs._parent(self._path), exist_ok=True)
        self._due = 0.0

    def __call__(self, samples: int) -> None:
        if time.monotonic() >= self._due:
            self._fs.pipe_file(self._path, b"%d" % samples)
            self._due = time.monotonic() + PROGRESS_S


def train_in_a_gang(call: Mapping[str, Any], workers: Workers) -> list[dict[str, Any]]:
    """In `workers.count` processes of one process group, started again where one of them dies; the curve.

    Raises what the training raised, once the restarts are used up.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    count: Any = workers.count or 1
    if workers.least is not None:
        count = (workers.least, count)
    with tempfile.TemporaryDirectory(prefix="sluice-train-") as folder:
        result = TorchTrainer(
            _one_of_many,
            train_loop_config=dict(call),
            scaling_config=ScalingConfig(
                num_workers=count,
                use_gpu=workers.gpus > 0,
                resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})},
            ),
            run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=RESTARTS)),
        ).fit()
    if result.error is not None:
        raise result.error
    with fsspec.open(f"{call['out']}/model/training.json", "rb") as handle:
        curve: list[dict[str, Any]] = json.load(handle)["curve"]
    return curve


def _one_of_many(call: dict[str, Any]) -> None:
    train_here(call)
