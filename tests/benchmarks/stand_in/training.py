"""How the stand-in is trained: by the trainer of this repo, first to see and then to read, by a recipe each."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from infra.miniweb.captions import caption
from models.recipe import Recipe
from models.train.finish import LAST
from models.train.loop import train
from tests.benchmarks.stand_in.lessons import CLAIMS, CLASSES, GROUNDS, crowded, lone, rendered
from tests.benchmarks.stand_in.reading import Captions
from tests.benchmarks.stand_in.seeing import Looks, seen
from tests.benchmarks.stand_in.towers import SIDE, new_tokenizer

HERE = __package__
KEPT = Path(tempfile.gettempdir()) / "sluice-bench-stand-in"
"""Images to learn from, and models by the code that made them."""


@dataclass(frozen=True)
class Effort:
    """How much is learned from; the default takes about 2,000 seconds of one core of a Xeon with AVX-512."""

    lone: int = 8_000
    """Scenes with captions."""
    crowded: int = 10_000
    """Scenes to learn to see from, and a quarter as many of the lone ones."""
    looks: int = 36_000
    """Images that the trunk is shown, again and again."""
    glance: int = 64
    """Images of a batch of these."""
    readings: int = 800
    """Batches of captions."""
    images: int = 96
    """Of a batch of captions; each has `each` true and as many false ones."""
    each: int = 2


def trained(effort: Effort | None = None) -> Path:
    """The folder of the model: trained now, unless this code did so before with the same effort."""
    effort = effort or Effort()
    code = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))
    folder = KEPT / blake2b(f"{effort}{code}".encode(), digest_size=8).hexdigest()
    if not (folder / "model" / LAST).exists():
        teach(folder, effort, os.cpu_count() or 1)
    return folder / "model"


def teach(folder: Path, effort: Effort, processes: int) -> None:
    """Train the model in `folder`, where images and the trainer's checkpoints lie, too: a second try goes on."""
    scenes = [lone(number) for number in range(effort.lone)]
    crowds = [crowded(number) for number in range(effort.crowded)]
    print(f"stand-in: {len(scenes) + len(crowds):,} scenes to learn from, in {folder}", file=sys.stderr, flush=True)
    images = rendered(folder / f"lone-{effort.lone}-{SIDE}.npy", scenes, SIDE, processes)
    crowd_images = rendered(folder / f"crowded-{effort.crowded}-{SIDE}.npy", crowds, SIDE, processes)
    some = effort.crowded // 4
    looks = Looks([images[:some], crowd_images], [*scenes[:some], *crowds], effort.glance)
    sight = train(seeing(effort), {}, str(folder / "sight"), source=looks).model
    assert sight is not None  # nobody stops it
    dice = random.Random(0)
    tokenizer = new_tokenizer([caption(scene, dice).text for scene in scenes for _ in range(2)])
    captions = Captions(seen(sight, images), scenes, tokenizer, effort.images, effort.each)
    train(reading(effort), {}, str(folder), source=captions, weights={"sight": sight})


def seeing(effort: Effort) -> Recipe:
    """Nine questions about cells and backgrounds, all as important."""
    return _recipe(
        "sight", "seeing.Sight", [*_asked(CLASSES, 1), *_asked(GROUNDS, 1)], effort.looks, effort.glance, rate=3e-3
    )


def reading(effort: Effort) -> Recipe:
    """What is true of images, and a little of what captions say."""
    objectives = [{f"{HERE}.reading.Own": {}}, {f"{HERE}.reading.Among": {"weight": 0.5}}, *_asked(CLAIMS, 0.2)]
    return _recipe(
        "stand-in", "reading.Reader", objectives, effort.readings * effort.images, effort.images, rate=1e-3
    )


def _asked(questions: Mapping[str, int], weight: float) -> list[Any]:
    """An objective of each; the trainer shows their losses in this order."""
    kind = "models.objectives.classes.ClassOf"
    return [{kind: {"logits": name, "labels": f"true {name}", "weight": weight}} for name in questions]


def _recipe(name: str, model: str, objectives: list[Any], samples: int, batch: int, rate: float) -> Recipe:
    return Recipe.model_validate(
        {
            "name": name,
            "about": "a small dual encoder that scores pairs of the small local web",
            "model": f"{HERE}.{model}",
            "objectives": objectives,
            "data": {"kind": "texts"},  # of `images` the trainer would write how they are prepared, as `towers` does
            "samples": samples,
            "batch": batch,
            "optimizer": {"learning_rate": rate, "weight_decay": 0.02, "clip_norm": 1},
            "schedule": {"warmup": samples // 20},
            "precision": "float32",
        }
    )
