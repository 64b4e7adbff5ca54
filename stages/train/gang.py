"""Where a training runs: in this process, or in several that Ray Train starts as one gang."""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import fsspec

from pipeline.dag import Workers
from pipeline.errors import SluiceError
from stages.kit.encoders import fetched

log = logging.getLogger(__name__)
PROGRESS_S = 5.0
RESTARTS = 3
"""How often a gang that lost a worker is started again, from its newest checkpoint."""


def train_here(call: Mapping[str, Any]) -> list[dict[str, Any]]:
    """In this process, on its GPU where it was given one; the curve."""
    from models.data.shards import DataError
    from models.recipe import Recipe, RecipeError
    from models.train.guard import TrainingError
    from models.train.loop import train  # torch and transformers: seconds

    recipe, data, out = Recipe.model_validate(call["recipe"]), call["data"], call["out"]
    try:
        with ExitStack() as stack:
            weights = {
                name: str(stack.enter_context(fetched(files, f"sluice-{name}-")))
                for name, files in call["weights"].items()
            }
            watch = _Progress(call["progress"])
            trained = train(
                recipe, data, out, lineage=call["lineage"], watch=watch, weights=weights, wandb=call["wandb"]
            )
    except (RecipeError, DataError, TrainingError) as error:  # another try would come to the same
        raise SluiceError(str(error)) from None
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

    Where it may do with fewer (`workers.least`), of as many as there are those train whose number divides the batch.

    Raises `SluiceError` for what another try would not mend, else what the training raised, after `RESTARTS` tries.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    fs, path = fsspec.core.url_to_fs(call["refused"])
    if fs.exists(path):  # of an earlier try
        fs.rm_file(path)
    count: Any = workers.count or 1
    if workers.least is not None:
        count = (workers.least, count)
    with tempfile.TemporaryDirectory(prefix="sluice-train-") as folder, _refused(call["refused"]):
        TorchTrainer(
            _one_of_many,
            train_loop_config={**call, "elastic": workers.least is not None},
            scaling_config=ScalingConfig(
                num_workers=count,
                use_gpu=workers.gpus > 0,
                resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})},
            ),
            # How often it may wait in vain for its CPUs is left without limit: another gang may have them for hours.
            run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=RESTARTS)),
        ).fit()
    with fsspec.open(f"{call['out']}/model/training.json", "rb") as handle:
        curve: list[dict[str, Any]] = json.load(handle)["curve"]
    return curve


@contextmanager
def _refused(path: str) -> Iterator[None]:
    """Raises what a process of the gang refused, instead of what Ray Train makes of it."""
    try:
        yield
    except Exception:
        with suppress(OSError):
            _refuse_again(path)
        raise


def _refuse_again(path: str) -> None:
    with suppress(FileNotFoundError), fsspec.open(path, "rt", encoding="utf-8") as handle:
        raise SluiceError(handle.read()) from None


def _one_of_many(call: dict[str, Any]) -> None:
    """What is refused is written down, and refused at once when Ray Train starts the gang again. It is raised here,
    too, so that the other processes do not wait for this one."""
    _refuse_again(call["refused"])
    try:
        if not call["elastic"] or _takes_part(call["recipe"]["batch"]):
            train_here(call)
    except SluiceError as error:
        fs, path = fsspec.core.url_to_fs(call["refused"])
        fs.makedirs(fs._parent(path), exist_ok=True)  # what is refused at once had no checkpoint yet
        fs.pipe_file(path, str(error).encode())
        raise


def _takes_part(batch: int) -> bool:
    """Whether this process is one of those whose number divides the batch: they get a process group of their own.

    Seven workers of eight cannot share a batch of 1024; four can, and three are left over until the eighth is back.
    """
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    several = max(number for number in range(1, world + 1) if batch % number == 0)
    if several == world:
        return True
    address: list[Any] = [None]
    if rank == 0:
        with socket.create_server((os.environ["MASTER_ADDR"], 0)) as free:
            address = [f"tcp://{os.environ['MASTER_ADDR']}:{free.getsockname()[1]}"]
    dist.broadcast_object_list(address, src=0)
    backend = dist.get_backend()
    dist.destroy_process_group()
    if rank < several and several > 1:
        dist.init_process_group(backend, init_method=address[0], rank=rank, world_size=several)
    if rank == 0:
        log.warning("a batch of %d does not divide over %d processes: %d of them train", batch, world, several)
    return rank < several
