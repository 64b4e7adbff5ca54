"""One training in progress: steps, checkpoints, what is shown of it, and what happens when a step goes wrong."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch
from fsspec.core import url_to_fs

from models.recipe import Recipe
from models.train import optimizer as optimizers
from models.train import state
from models.train.accumulate import System, gradients
from models.train.checkpoint import Checkpoint, Checkpoints
from models.train.ema import Average, local
from models.train.flops import MASK, Work
from models.train.guard import Guard, TrainingError, Trouble, named
from models.train.meter import Meter, Row
from models.train.progress import Board
from models.train.schedule import rate
from models.train.source import Source
from models.trainable import Batch

ROWS = 200
"""Of the curve, about."""
KEPT_EVERY_S = 1800.0
"""Seconds after which a checkpoint is written, however few samples were seen."""
MOST_SKIPPED, AMONG = 20, 1000
"""So many of so many steps may be left out before it is no accident any more."""

Report = Callable[[int, Row, str], bool | None]
"""Called on every process after each checkpoint with the samples seen, the newest row of the curve and the checkpoint's
folder; where it returns True on one, all stop after the next step."""


class Trainer:
    """Steps until all samples are seen, or somebody says stop."""

    def __init__(
        self,
        recipe: Recipe,
        system: System,
        source: Source,
        checkpoints: Checkpoints,
        board: Board | None,
        *,
        works: Sequence[Work] = (),
        peak: float | None = None,
        facts: Mapping[str, Any] | None = None,
        report: Report | None = None,
        stop: Callable[[], bool] | None = None,
        watch: Callable[[int], None] | None = None,
    ) -> None:
        """`works`: operations of a sample in each phase; `facts`: what every checkpoint carries along."""
        self.recipe, self.system, self.place = recipe, system, system.place
        self.end = recipe.samples // recipe.batch * recipe.batch
        self.every = recipe.checkpoint_every or max(recipe.batch, recipe.samples // 10)
        self.samples = 0
        self.stopping = False
        self.seconds = 0.0
        self.curve: list[Row] = []
        self.skipped: Counter[str] = Counter()
        self.left_out: set[int] = set()
        self._source, self._checkpoints, self._board = source, checkpoints, board
        self._works, self._facts = works, dict(facts or {})
        self._report, self._stop, self._watch = report, stop, watch
        self._rows = self.place.share_of(recipe.batch)
        self._named = state.parameters(system)
        self._trained = {
            name: parameter
            for name, parameter in self._named.items()
            if parameter.requires_grad and any(optimizers.factor(phase, name) > 0 for phase in recipe.phases)
        }
        for name, parameter in self._named.items():
            parameter.requires_grad_(name in self._trained)
        self.optimizer = optimizers.build(self._trained, recipe)
        self.average = Average(self._trained, recipe.ema) if recipe.ema is not None else None
        self._guard, self._phase = Guard(), -1
        self._since = [0.0, 0.0]
        self._meter = Meter(system.weights_by_name(), recipe.batch, peak and peak * self.place.world)
        self._unsettled: tuple[int, torch.Tensor] | None = None
        self._asked = self._late = False
        self._kept_at, self._kept_s = -1, time.monotonic()

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises `TrainingError` for a loss that is no number, or jumps."""
        if self.recipe.guard.then == "skip" and self.samples == 0:
            self._keep(due=False)  # something to go back to
        while self.samples < self.end and not self.stopping:
            try:
                self._stretch()
            except Trouble as trouble:
                self._recover(trouble)
        if self._kept_at != self.samples:
            self._keep(due=False)
        self._tell()

    def _stretch(self) -> None:
        with closing(self._source.open(self.samples)) as loader:
            batches = iter(loader)
            opened = Counter(loader.skipped)  # damaged tars, which are counted again at every start
            before = self.skipped or opened
            while self.samples < self.end and not self.stopping:
                started = time.perf_counter()
                batch = next(batches)
                self._meter.waited += time.perf_counter() - started
                position = self.samples
                self.samples += self.recipe.batch
                if position not in self.left_out:
                    self._enter(position)
                    figures = self._step(batch, position)
                    self._settle()  # the step before, whose figures have arrived by now
                    self._unsettled = position, figures
                self.skipped = before + (Counter(loader.skipped) - opened)
                self._look_up(position)
            self._settle()

    def _look_up(self, position: int) -> None:
        """Between two steps: show and keep what is due."""
        keeps = self.samples // self.every > position // self.every or self.samples >= self.end
        shown = max(self.recipe.batch, self.end // ROWS)
        if keeps or self.samples // shown > position // shown:
            self._settle()
            self._show()
        elif self._board is not None:
            self._board.advance(self.samples)
        if self._watch is not None:
            self._watch(self.samples)
        if self._late:  # no row of the curve, which is not to depend on the time
            self._settle()
        if keeps or self._late:
            self._keep(due=keeps)

    def _enter(self, position: int) -> None:
        number, phase = self.recipe.phase_at(position)
        if number == self._phase:
            return
        self._settle()  # the last step of the phase before, whose loss is none of this one's
        self._phase = number
        optimizers.enter(self.system.model, self._trained, phase)
        optimizers.drop_patches(self.system.model, phase)
        if self._guard.phase != number:
            self._guard, self._since = Guard(phase=number), [0.0, 0.0]

    def _step(self, batch: Batch, position: int) -> torch.Tensor:
        """float64 (objectives + 6,): losses, norm, tokens, operations, and how many processes want to stop, have
        written their checkpoint, and find that the next one is due; the same on all processes."""
        recipe, device = self.recipe, self.place.device
        tokens = float(batch[MASK].sum()) if MASK in batch else 0.0
        operations = self._works[self._phase].of(batch) if self._works else 0.0
        asked = self._asked or (self._stop is not None and self._stop())
        first = position + self.place.rank * self._rows
        here = {**batch, "position": torch.arange(first, first + self._rows, device=device)}
        self.optimizer.zero_grad()
        self.system.model.done = position / self.end
        for objective in self.system.objectives:
            objective.done = position / self.end
        losses = gradients(self.system, here, first, recipe.parallel.micro_batch, self._ready)
        trained = list(self._trained.values())
        norm = self.place.norm(trained)
        if recipe.optimizer.clip_norm is not None:
            found = [local(parameter.grad) for parameter in trained if parameter.grad is not None]
            torch._foreach_mul_(found, (recipe.optimizer.clip_norm / (norm + 1e-6)).clamp(max=1))
        start, end = recipe.bounds(self._phase)
        share = rate(recipe.schedule, position - start, recipe.batch, end - start)
        self._rate = optimizers.set_rates(self.optimizer, recipe, self._phase, share)
        optimizers.set_decay(self.optimizer, recipe, position / self.end)
        self.optimizer.step()
        self.system.model.after_step()
        for objective in self.system.objectives:
            objective.after_step()
        if self.average is not None:
            self.average.step(self._trained)
        late = self.place.first and time.monotonic() - self._kept_s > KEPT_EVERY_S
        told = [tokens, operations, asked, self._checkpoints.saved, late]
        counted = torch.tensor(told, dtype=torch.float64, device=device)
        return torch.cat([losses, norm.double()[None], self.place.total(counted)])

    def _ready(self, piece: Batch) -> Batch:
        """Rows of a batch on the device, as the model takes them."""
        device, places = self.place.device, self.system.model.places(piece)
        moved = {name: column.to(device, non_blocking=True) for name, column in piece.items()}
        # Cut there: of pinned memory, only whole columns are copied while the GPU works.
        return self._source.ready({name: column[..., : places.get(name)] for name, column in moved.items()})

    def _settle(self) -> None:
        """Read what a step said. One step late, so that a GPU always has the next one to work on."""
        if self._unsettled is None:
            return
        (position, figures), self._unsettled = self._unsettled, None
        *losses, norm, tokens, operations, asked, saved, late = figures.tolist()
        self._late = late > 0
        loss = self._meter.loss(losses)
        if what := self._guard.trouble(loss, norm, self.recipe.guard.spike):
            raise Trouble(position, what)
        self._meter.add(losses, norm, tokens, operations)
        self._since = [self._since[0] + loss, self._since[1] + 1]
        self.stopping = self.stopping or asked > 0
        if saved == self.place.world:
            self._tell()

    def _recover(self, trouble: Trouble) -> None:
        """Stop with the names of the samples, or go back and leave them out."""
        batch = self.recipe.batch
        path = f"{self._checkpoints.out}/trouble-{trouble.position}.json"
        keys = None
        if self.place.first:
            keys = self._source.keys(trouble.position, trouble.position + batch)
            fs, name = url_to_fs(path)
            fs.pipe_file(name, json.dumps(keys).encode())
        keys = self.place.told(keys)
        what = f"step {trouble.position // batch + 1}: {trouble}; its samples: {named(keys, path)}"
        self._unsettled = None
        self._tell()
        newest = self._checkpoints.newest()
        lately = sum(trouble.position - position < AMONG * batch for position in self.left_out)
        if self.recipe.guard.then == "stop" or newest is None or lately >= MOST_SKIPPED:
            back = f"the checkpoint of {newest.samples} samples is kept" if newest else "there is no checkpoint yet"
            raise TrainingError(
                f"{what}; {back}; lower optimizer.learning_rate, set optimizer.clip_norm, or guard.then=skip"
            )
        self.left_out.add(trouble.position)
        self.restore(newest)
        if self._board is not None:
            self._board.say(f"{what}; back to {newest.samples} samples, and without that step")

    # -- what stays ----------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        """A row of the curve."""
        found = self._meter.row(self._rate)
        if found is None:
            return
        row, seconds = found
        self.seconds += seconds
        self.curve.append({"samples": self.samples, **row})
        if self._board is not None:
            self._board.show(self.samples, row)

    def _keep(self, due: bool) -> None:
        """Begin to write a checkpoint. `due`: by the recipe, and not by the clock or because somebody said stop; the
        losses of these alone are compared, so that all are means over the same steps whatever came in between."""
        self._tell()
        self._kept_at, self._kept_s, self._late = self.samples, time.monotonic(), False
        loss, steps = self._since
        if due:
            self._since = [0.0, 0.0]
        facts = {
            **self._facts,
            "due": due,
            "loss": loss / steps if steps else float("inf"),
            "since": self._since,
            "phase": self._guard.phase,
            "curve": self.curve,
            "guard": self._guard.state(),
            "left_out": sorted(self.left_out),
            "skipped": self.place.added(self.skipped),
            "seconds": self.seconds,
        }
        # Running batch statistics are each process's own. Those of the first never depend on the others', so these are
        # what a training without this checkpoint comes to, too.
        self.place.agree(one for one in state.buffers(self.system).values() if one.is_floating_point())
        self._checkpoints.save(self.samples, state.tensors(self.system, self.optimizer, self.average), facts)

    def _tell(self) -> None:
        """Wait for the checkpoint that is being written, and tell of it."""
        checkpoint = self._checkpoints.wait()
        if checkpoint is None:
            return
        if self._board is not None:
            self._board.kept()
        if self._report is not None and self.curve:
            self._asked = bool(self._report(checkpoint.samples, self.curve[-1], checkpoint.folder)) or self._asked

    def take(self, checkpoint: Checkpoint) -> None:
        """Have the weights of a checkpoint, to export them; the training does not go on from there."""
        tensors = state.tensors(self.system, self.optimizer, self.average)
        learned = {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] not in state.MOMENTS}
        self._checkpoints.load(checkpoint, learned)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Be what the training was then, but for the batches that were found bad since."""
        state.make_room(self.system, self.optimizer, self._checkpoints.names(checkpoint))
        self._checkpoints.load(checkpoint, state.tensors(self.system, self.optimizer, self.average))
        facts = checkpoint.facts
        self.samples = self._kept_at = checkpoint.samples
        self.curve = list(facts["curve"])
        self.skipped = Counter(facts["skipped"] if self.place.first else {})
        self.seconds = facts["seconds"]
        self.left_out |= set(facts["left_out"])
        self._guard, self._phase = Guard(**facts["guard"]), -1
        self._since = list(facts.get("since", [0.0, 0.0]))
        self._meter.row(0.0)
