"""Conversations in LLaVA's form, in tars, and recipes that read them: coloured shapes, of which questions are asked."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageDraw

from models.data.shards import Sample
from models.recipe import Recipe
from tests.models.data.tars_made import tar_of

COLOURS, SHAPES = ("red", "blue", "green", "black"), ("circle", "square")
SIZES = ((64, 60), (48, 32), (32, 50), (60, 25))
"""Widths and heights."""
SIDE, TOKENS = 32, 4
GRIDS = [[32, 64], [64, 32], [64, 64]]
Members = list[tuple[str, bytes]]


def shape(dice: Random) -> tuple[bytes, str, str]:
    """A PNG, its colour and its shape."""
    colour, kind, (width, height) = dice.choice(COLOURS), dice.choice(SHAPES), dice.choice(SIZES)
    picture = Image.new("RGB", (width, height), "white")
    draw, box = ImageDraw.Draw(picture), (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
    (draw.ellipse if kind == "circle" else draw.rectangle)(box, fill=colour)
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue(), colour, kind


def talk(key: str, images: Sequence[bytes], turns: Sequence[tuple[str, str]], **more: Any) -> Members:
    """The members of a sample."""
    document = {"id": key, "conversations": [{"from": who, "value": value} for who, value in turns], **more}
    names = [f"{key}.png"] if len(images) == 1 else [f"{key}.{number}.png" for number in range(len(images))]
    return [*zip(names, images, strict=True), (f"{key}.json", json.dumps(document).encode())]


def sample(members: Members, key: str = "000000") -> Sample:
    """As shards give it."""
    return Sample(key, {name.partition(".")[2]: data for name, data in members})


def about(number: int, images: int = 1) -> Members:
    """A conversation about so many shapes, or none."""
    dice = Random(number)
    seen = [shape(dice) for _ in range(images)]
    if not seen:
        return talk(f"{number:06d}", [], [("human", "Say hello."), ("gpt", "Hello there.")])
    turns = [("human", "<image>\n" * images + "What colour?"), ("gpt", " and ".join(colour for _, colour, _ in seen))]
    turns += [("human", "Which shape?"), ("gpt", " and ".join(kind for _, _, kind in seen))]
    return talk(f"{number:06d}", [data for data, _, _ in seen], turns)


def pair(number: int) -> Members:
    data, colour, kind = shape(Random(number))
    return [(f"{number:06d}.png", data), (f"{number:06d}.txt", f"a {colour} {kind}".encode())]


def folder(where: Path, samples: Iterable[Members]) -> str:
    where.mkdir(parents=True)
    (where / "00000.tar").write_bytes(tar_of(member for sample in samples for member in sample))
    return str(where)


def sets(where: Path, count: int = 24) -> dict[str, str]:
    """Folders of pairs, and of conversations: of every eight one without an image and one with two."""
    images = {6: 0, 7: 2}
    return {
        "pairs": folder(where / "pairs", map(pair, range(count))),
        "conversations": folder(
            where / "conversations", (about(number, images.get(number % 8, 1)) for number in range(count))
        ),
    }


def recipe(kind: str = "llava", settings: Mapping[str, Any] | None = None, **changes: Any) -> Recipe:
    """Of 12 steps of 8 samples. `settings`: of the model, beside its config; `changes` replace whole keys."""
    tower = {"model_type": "clip_vision_model", "initializer_range": 0.2, "image_size": SIDE, "patch_size": 16}
    speaker = {"model_type": "llama", "num_key_value_heads": 2, "max_position_embeddings": 160}
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config: dict[str, Any] = {
        "model_type": kind,
        "vision_config": {**tower, **layers, "num_hidden_layers": 3},
        "text_config": {**speaker, **layers, "num_hidden_layers": 2},
    }
    tiled = kind == "llava_next"
    if tiled:
        config["image_grid_pinpoints"] = GRIDS
    images = {"side": SIDE, "tokens": TOKENS} | ({"fit": "anyres", "grids": GRIDS} if tiled else {"fit": "pad"})
    return Recipe.model_validate(
        {
            "name": kind,
            "about": "questions about shapes",
            "model": {"models.towers.llava.Llava": {"config": config, **(settings or {})}},
            "objectives": ["models.objectives.language.NextToken"],
            "data": {"kind": "conversations", "images": images, "texts": {"vocabulary": 400, "context": 160}},
            "samples": 96,
            "batch": 8,
            "phases": [
                {"name": "align", "share": 0.5, "mixture": {"pairs": 1}, "rates": {"projector|newline": 1, ".*": 0}},
                {
                    "name": "tune",
                    "share": 0.5,
                    "mixture": {"conversations": 1},
                    "rates": {"vision_tower": 0, "projector": 0.5, ".*": 1},
                },
            ],
            "optimizer": {"learning_rate": 1e-2, "weight_decay": 0},
            "precision": "float32",
            "checkpoint_every": 24,
            **changes,
        }
    )
