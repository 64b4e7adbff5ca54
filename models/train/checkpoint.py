"""Checkpoints of a training, on any fsspec store, of which one that was not finished does not count.

    <out>/checkpoints/000000012800/__0_0.distcp …   tensors, by torch.distributed.checkpoint, for any world size
    <out>/checkpoints/000000012800/complete.json    written last: sizes of the files, and all that is no tensor
    <out>/owner                                     a word of the training that began last in this folder

Tensors are copied first and written in a thread while the training goes on. Of two trainings in one folder the older
one, which somebody took for dead, stops at its next checkpoint and finishes none.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from models.train.guard import TrainingError
from models.train.parallel import Place

Tensors = dict[str, torch.Tensor]
MARK = "complete.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A finished one."""

    folder: str
    """On its store, with the protocol."""
    samples: int
    facts: Mapping[str, Any]


class Checkpoints:
    """Those of one training."""

    def __init__(self, out: str, place: Place, keep: int) -> None:
        """`keep`: how many of the newest stay, beside the best."""
        self.out = out.rstrip("/")
        self.folder = f"{self.out}/checkpoints"
        self._fs, self._path = url_to_fs(self.folder)
        self._owner = f"{self._path.rpartition('/')[0]}/owner"
        self._word: bytes | None = None
        self._place, self._keep = place, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[Checkpoint] | None = None

    def newest(self) -> Checkpoint | None:
        """The newest that is whole. On all processes the same."""
        found = self._complete() if self._place.first else []
        newest: Checkpoint | None = self._place.told(found[-1] if found else None)
        return newest

    def best(self) -> Checkpoint | None:
        """The one with the lowest loss of the scheduled ones of the newest one's phase. On all processes the same."""
        found = self._complete() if self._place.first else []
        best: Checkpoint | None = self._place.told(_best(found) if found else None)
        return best

    def start(self, anew: bool) -> None:
        """Own the folder from now on, and delete what a killed training left unfinished; all there is, if `anew`."""
        if self._place.first:
            self._word = uuid4().hex.encode()
            self._fs.makedirs(self._owner.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(self._owner, self._word)
            kept = set() if anew else {checkpoint.folder for checkpoint in self._complete()}
            for name in self._names():
                if f"{self.folder}/{name}" not in kept:
                    self._delete(f"{self._path}/{name}")
        self._place.told(None)

    def names(self, checkpoint: Checkpoint) -> set[str]:
        """Of the tensors in it."""
        return set(FsspecReader(checkpoint.folder).read_metadata().state_dict_metadata)

    def load(self, checkpoint: Checkpoint, tensors: Tensors) -> None:
        """Fill tensors, of which each process may hold a shard, from a checkpoint of any number of processes."""
        with _quietly():
            load(tensors, storage_reader=FsspecReader(checkpoint.folder), process_group=self._place.side_group)

    def save(self, samples: int, tensors: Tensors, facts: Mapping[str, Any]) -> None:
        """Copy now, write while the training goes on; waits for the one before, and raises what went wrong with it."""
        self.wait()
        folder = f"{self.folder}/{samples:012d}"
        writer = FsspecWriter(folder, sync_files=isinstance(self._fs, LocalFileSystem))
        staged = writer.stage(tensors)
        self._saving = self._thread.submit(self._write, folder, writer, staged, samples, deepcopy(dict(facts)))

    def _write(
        self, folder: str, writer: FsspecWriter, tensors: Tensors, samples: int, facts: dict[str, Any]
    ) -> Checkpoint:
        self._still_owned()
        with _quietly():
            save(tensors, storage_writer=writer, process_group=self._place.side_group)
        self._still_owned()
        checkpoint = Checkpoint(folder, samples, facts)
        if self._place.first:
            path = f"{self._path}/{samples:012d}"
            mark = {"samples": samples, "files": self._sizes(path), "facts": facts}
            self._fs.pipe_file(f"{path}/{MARK}", json.dumps(mark).encode())
            self._prune()
        return checkpoint

    @property
    def saved(self) -> bool:
        """Whether the newest `save` is over."""
        return self._saving is not None and self._saving.done()

    def wait(self) -> Checkpoint | None:
        """Until nothing is being written; raises what went wrong."""
        saving, self._saving = self._saving, None
        return saving.result() if saving else None

    def close(self) -> None:
        self._thread.shutdown()

    def _still_owned(self) -> None:
        """Raise `TrainingError`, on all processes, where another training has begun in the folder since."""
        try:
            whose = self._word and self._fs.cat_file(self._owner)
        except FileNotFoundError:
            whose = b""
        if self._place.told(whose != self._word):
            what = "another training has begun in" if whose else "somebody deleted"
            raise TrainingError(f"{what} {self.out}; this one stops and leaves the folder as it is")

    def _names(self) -> list[str]:
        self._fs.invalidate_cache()
        if not self._fs.isdir(self._path):
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._path, detail=False))

    def _complete(self) -> list[Checkpoint]:
        found = []
        for name in self._names():
            path = f"{self._path}/{name}"
            try:
                mark = json.loads(self._fs.cat_file(f"{path}/{MARK}"))
            except (FileNotFoundError, ValueError):  # killed before it was written, or while it was
                log.warning("%s/%s was never finished; it does not count", self.folder, name)
                continue
            sizes = self._sizes(path)
            if odd := min((file for file, size in mark["files"].items() if sizes.get(file) != size), default=None):
                log.warning("%s/%s/%s is not as it was written; the checkpoint does not count", self.folder, name, odd)
                continue
            found.append(Checkpoint(f"{self.folder}/{name}", mark["samples"], mark["facts"]))
        return found

    def _sizes(self, path: str) -> dict[str, int]:
        self._fs.invalidate_cache()
        listed = self._fs.ls(path, detail=True)
        sizes = {str(file["name"]).rpartition("/")[2]: int(file["size"]) for file in listed}
        return {name: size for name, size in sorted(sizes.items()) if name != MARK}

    def _prune(self) -> None:
        found = self._complete()
        best = _best(found)
        for checkpoint in found[: -self._keep]:
            if checkpoint is not best:
                self._delete(f"{self._path}/{checkpoint.samples:012d}")

    def _delete(self, path: str) -> None:
        if self._fs.exists(f"{path}/{MARK}"):  # first, so that half a folder is never taken for a whole one
            self._fs.rm_file(f"{path}/{MARK}")
        self._fs.rm(path, recursive=True)


def _best(found: Sequence[Checkpoint]) -> Checkpoint:
    """Of some, the newest last, which it is where none was due. A loss of another phase, with other data, says nothing
    beside the newest's, and one of an interruption is a mean over other steps."""
    alike = [checkpoint for checkpoint in found if checkpoint.facts.get("phase") == found[-1].facts.get("phase")]
    due = [checkpoint for checkpoint in alike if checkpoint.facts.get("due", True)]
    return min(due or found[-1:], key=lambda checkpoint: checkpoint.facts["loss"])


class _quietly(warnings.catch_warnings):  # noqa: N801  # reads as a statement
    """Without torch's remark that there is one process, where there is one process."""

    def __enter__(self) -> None:
        super().__enter__()
        if not dist.is_initialized():
            warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
