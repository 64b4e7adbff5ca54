"""Seeing a training: a bar or plain lines, TensorBoard files, and Weights & Biases where it is asked for."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

PLAIN_EVERY_S = 10.0
NAMED = ("samples_per_second", "tokens_per_second", "learning_rate", "gradient_norm", "mfu", "waiting")
"""What `row` holds beside the loss and its parts."""


class Board:
    """What one process, the first, shows and writes."""

    def __init__(
        self, out: str, name: str, total: int, done: int, recipe: Mapping[str, Any], wandb: str | None = None
    ) -> None:
        """`done` of `total` samples were seen before; `wandb`: the project there. `out` may lie on any fsspec store."""
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn(name),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._console,
        )
        self._task = self._bar.add_task(name, total=total, completed=done, note="")
        self._name, self._total, self._said, self._start = name, total, 0.0, (time.monotonic(), done)
        self._fs, self._events = url_to_fs(f"{out.rstrip('/')}/tensorboard")
        self._folder = self._events if self._is_local else tempfile.mkdtemp(prefix="sluice-tensorboard-")
        self._writer = SummaryWriter(self._folder, purge_step=done)
        self._wandb: Any = None
        if wandb is not None:
            import wandb as client  # nothing is sent unless it is asked for

            identity = self._identity(anew=done == 0)
            self._wandb = client.init(project=wandb, name=name, id=identity, config=dict(recipe), resume="allow")
            self._wandb.define_metric("train/*", step_metric="samples")  # its own steps may not go back

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()
        self._writer.close()
        self._ship()
        if not self._is_local:
            shutil.rmtree(self._folder)
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)

    def _identity(self, anew: bool) -> str:
        """The same for all that goes on in a folder, so that its curve does."""
        path = f"{self._events.rpartition('/')[0]}/wandb"
        if anew or not self._fs.exists(path):
            self._fs.pipe_file(path, uuid4().hex.encode())
        return str(self._fs.cat_file(path).decode())

    @property
    def _is_local(self) -> bool:
        return isinstance(self._fs, LocalFileSystem)

    def _ship(self) -> None:
        """Event files as they are now, to a store that cannot append."""
        if not self._is_local:
            self._fs.put(f"{self._folder}/", f"{self._events}/", recursive=True)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def advance(self, samples: int) -> None:
        self._bar.update(self._task, completed=samples)

    def show(self, samples: int, row: Mapping[str, float]) -> None:
        """`row`: the loss, its parts, and figures of `NAMED`; means since the row before."""
        note = describe(row)
        self._bar.update(self._task, completed=samples, note=note)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._said > PLAIN_EVERY_S or samples >= self._total):
            self._said = now
            start, done = self._start
            left_s = (now - start) / max(1, samples - done) * (self._total - samples)
            self.say(f"{self._name}: {samples:,} of {self._total:,} samples, {left_s:,.0f} s left; {note}")
        for name, value in row.items():
            self._writer.add_scalar(f"train/{name}", value, samples)
        if self._wandb is not None:
            self._wandb.log({"samples": samples, **{f"train/{name}": value for name, value in row.items()}})

    def kept(self) -> None:
        """A checkpoint was written: what is shown elsewhere is brought there too."""
        self._writer.flush()
        self._ship()


def describe(row: Mapping[str, float]) -> str:
    """A row in a line for people."""
    losses = [f"{name} {value:.4f}" for name, value in row.items() if name not in NAMED]
    figures = [f"{row['samples_per_second']:,.1f} samples/s"]
    if row.get("tokens_per_second"):
        figures.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    figures.append(f"rate {row['learning_rate']:.2e}")
    if "mfu" in row:
        figures.append(f"MFU {row['mfu']:.1%}")
    return ", ".join([*losses, *figures])
