"""The gradient of one step: of the whole batch at once, or in micro-batches with the same result.

Losses are divided by how many rows or tokens there were in all micro-batches of all processes, so nothing depends on
how the batch was cut, but for towers with batch statistics: those are of the rows of one piece. With one separable
objective, gradients of sums are added up. Otherwise features are cached (GradCache, Gao et al. 2021): encode all with
no graph, take the loss and its gradient by the features, then encode again, piece by piece, to carry it into the
towers. The gradient of what objectives read beside features, such as `logit_scale`, is complete by then: the second
pass does not touch it.

What a piece takes on the device it takes while it is worked on: the batch stays where the loader put it, as small as
it came, and every pass moves and normalises a piece anew, which gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from models.train.ema import local
from models.train.parallel import Place, loose, synchronise
from models.trainable import Batch, Features, Loss, Objective, Trainable

Ready = Callable[[Batch], Batch]
"""Makes of some rows of a batch what the model takes, on its device. Called once in every pass, it must leave the rows
that it is given as they are."""


@dataclass(frozen=True)
class System:
    """What is trained, and how a step sees it."""

    model: Trainable
    objectives: Sequence[Objective]
    weights: Sequence[float]
    place: Place
    bfloat16: bool = False
    """Whether the forward pass runs under autocast; objectives get float32 all the same."""
    seed: int = 0
    shards: bool = False
    """Whether gradients are added up after every piece, for no process could hold all of them (FSDP)."""

    def parameters(self) -> list[nn.Parameter]:
        """All that may have a gradient."""
        return [
            *self.model.parameters(),
            *(parameter for objective in self.objectives for parameter in objective.parameters()),
        ]

    def weights_by_name(self) -> dict[str, float]:
        """Of the objectives, by the names of their classes; of several of one class the later ones are numbered."""
        found: dict[str, float] = {}
        for objective, weight in zip(self.objectives, self.weights, strict=True):
            name = type(objective).__name__
            found[f"{name} {len(found)}" if name in found else name] = weight
        return found

    def encode(self, piece: Batch, position: int) -> Features:
        """Dropout and the like depend on the seed, the place of the first row in the training's order and the shape of
        the piece alone: a step done again, or a piece encoded again, drops the same."""
        torch.manual_seed((self.seed * 0x9E3779B97F4A7C15 + position) % 2**63)
        with torch.autocast(self.place.device.type, torch.bfloat16, enabled=self.bfloat16):
            features: Features = self.model(piece)
        return {name: rows.float() if rows.is_floating_point() else rows for name, rows in features.items()}

    def losses(self, features: Features) -> list[Loss]:
        """Of every objective, this process's share."""
        scalars = self.model.scalars()
        return [objective(features, scalars) for objective in self.objectives]

    def sums(self, losses: Sequence[Loss]) -> torch.Tensor:
        """float64 (objectives, 2): total and count, of this process."""
        return torch.stack([torch.stack([loss.total.detach(), loss.count]).double() for loss in losses])


def gradients(
    system: System, batch: Batch, position: int, micro: int | None, ready: Ready = lambda piece: piece
) -> torch.Tensor:
    """Add the gradient of the batch to the parameters. float64 (objectives,): the losses, means over all processes.

    `batch`: the rows of this process, of which the first has the place `position` in the training's order. `micro`:
    rows at once, all where None. `ready`: what is made of these rows before the model sees them.
    """
    pieces = cut(batch, micro)
    if len(pieces) == 1:
        sums = _whole(system, ready(batch), position)
    elif len(system.objectives) == 1 and not system.objectives[0].joint:
        sums = _summed(system, pieces, position, ready)
    else:
        sums = _cached(system, pieces, position, ready)
    lonely = (parameter for objective in system.objectives for parameter in objective.parameters())
    system.place.add_up([*loose(system.model), *lonely])
    return sums[:, 0] / _some(sums[:, 1])


def cut(batch: Batch, micro: int | None) -> list[Batch]:
    """Pieces of at most `micro` rows."""
    rows = _rows(batch)
    size = micro or rows
    return [{name: column[at : at + size] for name, column in batch.items()} for at in range(0, rows, size)]


def _whole(system: System, batch: Batch, position: int) -> torch.Tensor:
    losses = system.losses(system.encode(batch, position))
    sums = system.place.total(system.sums(losses))
    synchronise(system.model, True)
    torch.autograd.backward(_weighted(system, losses, sums))
    return sums


def _summed(system: System, pieces: Sequence[Batch], position: int, ready: Ready) -> torch.Tensor:
    sums = torch.zeros(1, 2, dtype=torch.float64, device=system.place.device)
    for number, piece in enumerate(pieces):
        (loss,) = system.losses(system.encode(ready(piece), position))
        sums += system.sums([loss])
        synchronise(system.model, system.shards or number == len(pieces) - 1)
        torch.autograd.backward(loss.total)
        position += _rows(piece)
    system.place.total(sums)
    found = [local(parameter.grad) for parameter in system.parameters() if parameter.grad is not None]
    if found:
        torch._foreach_mul_(found, (system.weights[0] / _some(sums[0, 1])).float())
    return sums


def _cached(system: System, pieces: Sequence[Batch], position: int, ready: Ready) -> torch.Tensor:
    starts = [position + sum(map(_rows, pieces[:number])) for number in range(len(pieces))]
    with torch.no_grad():
        seen = [system.encode(ready(piece), start) for piece, start in zip(pieces, starts, strict=True)]
    whole = {name: torch.cat([features[name] for features in seen]) for name in seen[0]}
    own = {name: [len(features[name]) for features in seen] for name in whole}  # of tokens: any number a sample
    for rows in whole.values():
        rows.requires_grad_(rows.is_floating_point())
    del seen
    losses = system.losses(whole)
    sums = system.place.total(system.sums(losses))
    torch.autograd.backward(_weighted(system, losses, sums))
    for number, (piece, start) in enumerate(zip(pieces, starts, strict=True)):
        synchronise(system.model, system.shards or number == len(pieces) - 1)
        again = [
            (rows, torch.split(gradient, own[name])[number])
            for name, rows in system.encode(ready(piece), start).items()
            if rows.requires_grad and (gradient := whole[name].grad) is not None
        ]
        if again:
            torch.autograd.backward([rows for rows, _ in again], [gradient for _, gradient in again])
    return sums


def _weighted(system: System, losses: Sequence[Loss], sums: torch.Tensor) -> torch.Tensor:
    shares = (torch.tensor(system.weights, dtype=torch.float64, device=sums.device) / _some(sums[:, 1])).float()
    return torch.stack([loss.total * share for loss, share in zip(losses, shares, strict=True)]).sum()


def _some(counts: torch.Tensor) -> torch.Tensor:
    """Where there was nothing to learn from, its sum of 0 is divided by 1."""
    return torch.where(counts > 0, counts, 1)


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))
