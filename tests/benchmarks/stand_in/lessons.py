"""What the stand-in learns from: rendered scenes, what stands in every cell of them, and captions, true and false."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from infra.miniweb.captions import Caption, Look, Relation, caption
from infra.miniweb.plan import EASY
from infra.miniweb.render import jpeg
from infra.miniweb.scenes import (
    CELLS,
    COLOURS,
    MANY,
    PATTERNS,
    SHAPES,
    SIDES,
    SIZES,
    TEXTURES,
    Group,
    Scene,
    another,
    draw_scene,
    in_order,
)
from models.objectives.language import NOT_LEARNT

Pixels = npt.NDArray[np.uint8]
CLASSES = {
    "shape": len(SHAPES) + 1,
    "row": 3,
    "column": 3,
    "colour": len(COLOURS),
    "count": MANY,
    "size": len(SIZES),
    "texture": len(TEXTURES),
}
"""What can be asked of a cell, and how many answers there are; the last shape is that there is nothing."""
GROUNDS = {"ground colour": len(COLOURS), "ground pattern": len(PATTERNS)}
"""The same for a background."""
STORED_SIDE = 256
"""Of the longer side in px, as the pool has it."""
CROWD = 9
"""Scenes that a crowded one is put together from: nearly all cells are taken, and four times as much is learned of each
image as of a lone one."""


def lone(number: int) -> Scene:
    """A scene as the web has them, of a seed that no web has."""
    return draw_scene(f"stand-in/{number}", SIDES["small"])


def crowded(number: int) -> Scene:
    """A scene with the groups of several, no caption of which would be short."""
    scene = draw_scene(f"stand-in/crowded/{number}", SIDES["small"])
    others = (draw_scene(f"stand-in/crowded/{number}/{more}", SIDES["small"]) for more in range(CROWD - 1))
    groups = [*scene.groups, *(group for other in others for group in other.groups if group.colour != scene.colour)]
    return replace(scene, groups=in_order(list({group.cell: group for group in groups}.values())))


def pixels(scene: Scene, side: int) -> Pixels:
    """uint8 (side, side, 3) of the scene as its page publishes it and a pool stores it."""
    image = Image.open(io.BytesIO(jpeg(scene))).convert("RGB")
    image.thumbnail((STORED_SIDE, STORED_SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def rendered(path: Path, scenes: Sequence[Scene], side: int, processes: int) -> Pixels:
    """uint8 (scenes, side, side, 3), rendered once and kept in a file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.npy")
        with ProcessPoolExecutor(processes, get_context("spawn")) if processes > 1 else nullcontext() as workers:
            paint = partial(pixels, side=side)
            found = map(paint, scenes) if workers is None else workers.map(paint, scenes, chunksize=64)
            np.save(unfinished, np.fromiter(found, np.dtype((np.uint8, (side, side, 3))), len(scenes)))
        unfinished.replace(path)
    kept: Pixels = np.load(path, mmap_mode="r")
    return kept


def cells(scene: Scene) -> npt.NDArray[np.int64]:
    """(cells, `CLASSES`): what every cell holds; where it is empty, nothing more is asked."""
    found = np.full((CELLS, len(CLASSES)), NOT_LEARNT)
    found[:, 0] = len(SHAPES)
    found[:, 1], found[:, 2] = np.divmod(np.arange(CELLS), 3)
    for group in scene.groups:
        found[group.cell] = (
            SHAPES.index(group.shape),
            group.row,
            group.column,
            COLOURS.index(group.colour),
            group.count - 1,
            SIZES.index(group.size),
            TEXTURES.index(group.texture),
        )
    return found


def ground(scene: Scene) -> npt.NDArray[np.int64]:
    """(`GROUNDS`,): the background."""
    return np.array([COLOURS.index(scene.colour), PATTERNS.index(scene.pattern)])


def false_caption(scene: Scene, dice: random.Random) -> Caption:
    """True of another scene of the same classes of objects, and not of this one: what a mismatch is made of."""
    recoloured = dice.random() < EASY
    while True:
        told = caption(another(scene, dice, recoloured), dice)
        if not told.true_of(scene):
            return told


def truth(captions: Sequence[Caption], scenes: Sequence[Scene]) -> npt.NDArray[np.bool_]:
    """(captions, scenes): which is true of which. Most are told apart by what they name, before claims are compared."""
    named_cn = np.array([_names(_looks(told)) for told in captions], np.float32)
    there_sn = np.array([_names(scene.groups) for scene in scenes], np.float32)
    found: npt.NDArray[np.bool_] = named_cn @ there_sn.T == named_cn.sum(1)[:, None]
    for one, other in zip(*np.nonzero(found), strict=True):
        found[one, other] = captions[one].true_of(scenes[other])
    return found


def _looks(told: Caption) -> Iterator[Look]:
    """Every group that a caption tells of."""
    for claim in told.claims:
        match claim:
            case Look():
                yield claim
            case Relation(one, _, other):
                yield from (one, other)


def _names(things: Iterable[Look | Group]) -> npt.NDArray[np.bool_]:
    """(shapes · colours,): what is named."""
    found = np.zeros((len(SHAPES), len(COLOURS)), bool)
    for thing in things:
        if thing.colour is not None:
            found[SHAPES.index(thing.shape), COLOURS.index(thing.colour)] = True
    flat: npt.NDArray[np.bool_] = found.ravel()
    return flat
