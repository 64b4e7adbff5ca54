"""How the stand-in is trained: by the trainer of this repo, by a recipe to see and another one to read.

1. Its convolutional trunk names what stands in every cell of crowded and of lone scenes. Scenes are known here, and a
   cell tells more than a caption: this is what makes minutes on one processor enough.
2. What the trunk sees of the lone scenes is kept, and the trunk stays as it is. The last block and the text tower learn
   which captions are true of which images.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from infra.miniweb.captions import caption
from models.recipe import Recipe
from models.train.finish import LAST
from models.train.loop import train
from tests.benchmarks.stand_in.batches import Captions, Looks, Numbers
from tests.benchmarks.stand_in.lessons import CLASSES, GROUNDS, Pixels, crowded, lone, rendered
from tests.benchmarks.stand_in.student import Student
from tests.benchmarks.stand_in.towers import SIDE, new_tokenizer

LOOKS = 64
"""Images of a batch that the trunk is shown."""
KEPT = Path(tempfile.gettempdir()) / "sluice-bench-stand-in"
"""Images to learn from, checkpoints and models, by the code of this folder: delete it after a change of the trainer."""


@dataclass(frozen=True)
class Effort:
    """How much is learned from; the default takes about 2,000 seconds of one core of a Xeon with AVX-512."""

    lone: int = 8_000
    """Scenes with captions."""
    crowded: int = 10_000
    """Scenes to learn to see from, and a quarter as many of the lone ones."""
    looks: int = 36_000
    """Images that the trunk is shown, again and again."""
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
        print(f"the stand-in learns to see and to read, in {folder}", file=sys.stderr, flush=True)
        teach(folder, effort, os.cpu_count() or 1)
    return folder / "model"


def teach(folder: Path, effort: Effort, processes: int) -> None:
    """Train `folder/model`; a second try goes on from the images and checkpoints that it finds there."""
    scenes = [lone(number) for number in range(effort.lone)]
    crowds = [crowded(number) for number in range(effort.crowded)]
    images = rendered(folder / f"lone-{effort.lone}-{SIDE}.npy", scenes, SIDE, processes)
    crowd_images = rendered(folder / f"crowded-{effort.crowded}-{SIDE}.npy", crowds, SIDE, processes)
    dice = random.Random(0)
    tokenizer = new_tokenizer([caption(scene, dice).text for scene in scenes for _ in range(2)])

    some = effort.crowded // 4
    shown = [*scenes[:some], *crowds]
    looks = Looks([*images[:some], *crowd_images], shown)
    recipe = _recipe("seeing", _asked(CLASSES | GROUNDS), effort.looks, LOOKS, 3e-3)
    source = Numbers(len(shown), LOOKS, looks, tokenizer)
    sight = train(recipe, {}, str(folder / "seeing"), source=source).model
    assert sight is not None  # nobody stops it

    captions = Captions(seen(Student(tokenizer, sight), images), scenes, tokenizer, effort.each)
    recipe = _recipe("reading", [f"{__package__}.student.Truth"], effort.readings * effort.images, effort.images, 1e-3)
    source = Numbers(len(scenes), effort.images, captions, tokenizer)
    train(recipe, {}, str(folder), source=source, weights={"pretrained": sight})


@torch.inference_mode()
def seen(student: Student, images: Pixels) -> torch.Tensor:
    """float16 (images, `TRUNK`, 3, 3)."""
    student.eval()
    batches = (torch.from_numpy(images[start : start + 128].copy()) for start in range(0, len(images), 128))
    return torch.cat([student.trunk(batch).half() for batch in batches])


def _asked(questions: Iterable[str]) -> list[Any]:
    """An objective for each; the trainer numbers them in this order."""
    path = "models.objectives.classes.ClassOf"
    return [{path: {"logits": name, "labels": f"true {name}"}} for name in questions]


def _recipe(name: str, objectives: list[Any], samples: int, batch: int, rate: float) -> Recipe:
    return Recipe.model_validate(
        {
            "name": name,
            "about": "a small dual encoder that scores pairs of the small local web",
            "model": f"{__package__}.student.Student",
            "objectives": objectives,
            "data": {"kind": "texts"},  # of images the trainer would write how they are prepared, which `towers` does
            "samples": samples,
            "batch": batch,
            "optimizer": {"learning_rate": rate, "weight_decay": 0.02, "clip_norm": 1},
            "schedule": {"warmup": samples // 20},
            "precision": "float32",
        }
    )
