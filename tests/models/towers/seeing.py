"""Tiny models of the LLaVA family with a batch for them, alone and on two processes of which one sees nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch

from models.data.chat import ready_to_chat
from models.data.collate import Room
from models.data.conversations import Conversations
from models.data.images import normalise
from models.data.tokenizer import WRITTEN_ON, trained
from models.objectives.language import NextToken
from models.towers.llava import Llava
from models.train import optimizer, state
from models.train.accumulate import System, cut, gradients
from models.train.parallel import Place
from models.trainable import Batch
from tests.models import gloo
from tests.models.data import talks

Tensors = dict[str, torch.Tensor]
Mode = Literal["ddp", "fsdp"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llava", {"connector": "linear"}),
    "mlp": ("llava", {}),
    "full": ("llava", {"feature_layer": -1, "select": "full"}),
    "tiles": ("llava_next", {}),
}
IMAGES = (1, 2, 1, 1, 0, 0, 0, 0)
"""Of the samples: the second half sees nothing."""
LINES = 60 * ["What colour? Which shape? red and blue, green or black, a circle, a square. Say hello. Hello there."]


@cache
def tokenizer() -> Any:
    return ready_to_chat(trained(LINES, 400, 160, WRITTEN_ON, cased=True))


def model(kind: str, **changes: Any) -> Llava:
    """Random, the same every time."""
    name, own = KINDS[kind]
    torch.manual_seed(0)
    settings = {**own, **changes}
    built: Llava = talks.recipe(name).model.build(tokenizer=tokenizer(), **settings)
    return built


def batch(kind: str, images: tuple[int, ...] = IMAGES, turns: str | None = None) -> Batch:
    """Conversations with so many images each, ready for the model. `turns`: as in `models.recipe.Texts`."""
    data = talks.recipe(KINDS[kind][0]).data
    data = data.model_copy(update={"texts": data.texts.model_copy(update={"turns": turns})})
    if "select" in KINDS[kind][1]:  # the class token, too
        looks = data.images.model_copy(update={"tokens": talks.TOKENS + 1})
        data = data.model_copy(update={"images": looks})
    collate = Conversations(data, tokenizer())
    samples = [talks.sample(talks.about(number, count)) for number, count in enumerate(images)]
    rows = collate.batch([collate.row(sample, Random(0), Room(), 0) for sample in samples])
    return normalise({**rows, "position": torch.arange(len(images))}, data.images)


def step(
    kind: str,
    phase: int,
    mode: Mode = "ddp",
    micro: int | None = None,
    turns: str | None = None,
    pack: bool = True,
) -> Tensors:
    """The loss and the gradients of one step on this process's share of the batch, as the whole model has them."""
    place = Place.here()
    own = model(kind, pack=pack)
    system = System(own, [NextToken()], [1.0], place, shards=mode == "fsdp")
    place.spread(own, mode)
    optimizer.enter(own, state.parameters(system), talks.recipe(KINDS[kind][0]).phases[phase])
    share = place.share_of(len(IMAGES))
    here = cut(batch(kind, turns=turns), share)[place.rank]
    losses = gradients(system, here, place.rank * share, micro)
    found = {name: value.grad for name, value in state.parameters(system).items() if value.grad is not None}
    return state.whole(found) | {"losses": losses}


LAID: list[tuple[Mode, int | None]] = [("ddp", None), ("fsdp", 2)]
"""Over the processes, and how many rows at once."""
CASES = [
    *((kind, phase, mode, micro, None) for kind in ("mlp", "tiles") for phase in (0, 1) for mode, micro in LAID),
    *(("mlp", 1, mode, micro, "apart") for mode, micro in LAID),
]


def run_all(rank: int, world: int, folder: Path) -> dict[Any, Any]:
    """What every process of a test does."""
    return {case: step(*case) for case in CASES}


def together(world: int, folder: Path) -> dict[Any, Tensors]:
    """What came out of all cases on `world` processes."""
    found: dict[Any, Tensors] = gloo.together(run_all, world, folder)
    return found
