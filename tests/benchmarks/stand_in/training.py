"""How the stand-in learns: first to see, then to read.

1. Its convolutional trunk names what stands in every cell of crowded and of lone scenes. Scenes are known here, and a
   cell tells more than a caption: this is what makes minutes on one processor enough.
2. What the trunk sees of the lone scenes is kept, and the trunk stays as it is. The last block and the text tower learn
   which captions are true of which images: in every batch the images have true captions and false ones, which differ
   in what a mismatch of the small local web differs in. The loss of a pair is that of SigLIP (Zhai et al. 2023), for
   scores must compare across captions; beside it stands InfoNCE from every true caption to the images of the batch.
"""

from __future__ import annotations

import math
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from infra.miniweb.captions import Caption, caption
from infra.miniweb.scenes import SHAPES, Scene
from tests.benchmarks.stand_in.lessons import (
    CLAIMS,
    CLASSES,
    GROUNDS,
    UNASKED,
    Pixels,
    cells,
    claimed,
    crowded,
    false_caption,
    ground,
    lone,
    rendered,
    truth,
)
from tests.benchmarks.stand_in.towers import SIDE, TRUNK, new_model, new_tokenizer, save

Told = Callable[[str], None]
LOOKS = 64
"""Images of a batch that the trunk is shown."""
SPELLING = 0.2
"""The weight of what captions say beside that of whether they are true."""
TOLD_EVERY = 50
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
    model = folder / "model"
    if not model.exists():
        unfinished = folder / f"unfinished-{os.getpid()}"
        train(unfinished, folder, effort, os.cpu_count() or 1, partial(print, file=sys.stderr, flush=True))
        unfinished.rename(model)
    return model


def train(folder: Path, lessons: Path, effort: Effort, threads: int, told: Told, seed: int = 0) -> None:
    """Learn, and save in `folder`; images and, once it has learned to see, the trunk are kept in `lessons`."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    scenes = [lone(number) for number in range(effort.lone)]
    crowds = [crowded(number) for number in range(effort.crowded)]
    images = rendered(lessons / f"lone-{effort.lone}-{SIDE}.npy", scenes, SIDE, threads)
    crowd_images = rendered(lessons / f"crowded-{effort.crowded}-{SIDE}.npy", crowds, SIDE, threads)
    told("rendered")
    dice = random.Random(seed)
    tokenizer = new_tokenizer([caption(scene, dice).text for scene in scenes for _ in range(2)])
    model = new_model(len(tokenizer)).to(memory_format=torch.channels_last)
    sight = lessons / "sight.safetensors"
    if sight.exists():
        model.vision_model.load_state_dict(load_file(sight))
    else:
        some = effort.crowded // 4
        see(model, [images[:some], crowd_images], [*scenes[:some], *crowds], effort, told)
        save_file({name: tensor.contiguous() for name, tensor in model.vision_model.state_dict().items()}, sight)
    read(model, tokenizer, seen(model, images), scenes, effort, told)
    save(model.to(memory_format=torch.contiguous_format), tokenizer, folder)


# -- seeing ------------------------------------------------------------------------------------------------------------


def trunk(model: Any, images_nhwc: torch.Tensor) -> torch.Tensor:
    """(images, `TRUNK`, 3, 3) of uint8 (images, side, side, 3)."""
    values = images_nhwc.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
    found: torch.Tensor = model.vision_model.embeddings(values)
    for block in model.vision_model.encoder.blocks[:-1]:
        found = block(found)
    return found


class Questions(torch.nn.Module):
    """Linear answers about cells and backgrounds, from what the trunk sees."""

    def __init__(self) -> None:
        super().__init__()
        self.of_cells = torch.nn.Linear(TRUNK, sum(CLASSES.values()))
        self.of_grounds = torch.nn.Linear(TRUNK, sum(GROUNDS.values()))

    def forward(self, seen_ncyx: torch.Tensor) -> Iterator[torch.Tensor]:
        """Logits of every question in `CLASSES`, (images · cells, answers), then in `GROUNDS`."""
        cells_nc = seen_ncyx.flatten(2).transpose(1, 2).flatten(0, 1)
        yield from self.of_cells(cells_nc).split(list(CLASSES.values()), dim=1)
        yield from self.of_grounds(seen_ncyx.mean((2, 3))).split(list(GROUNDS.values()), dim=1)


def see(model: Any, images: Sequence[Pixels], scenes: Sequence[Scene], effort: Effort, told: Told) -> None:
    """Teach the trunk; `images` follow each other as the scenes do."""
    cells_nkq = torch.from_numpy(np.stack([cells(scene) for scene in scenes]))
    grounds_nq = torch.from_numpy(np.stack([ground(scene) for scene in scenes]))
    places = [(some, row) for some in images for row in range(len(some))]
    questions = Questions()
    steps = effort.looks // LOOKS
    optimiser, schedule = optimised([*model.vision_model.parameters(), *questions.parameters()], 3e-3, steps)
    order = rows(len(scenes), LOOKS)
    model.train()
    for step in range(steps):
        chosen = next(order)
        shown = np.stack([some[row] for some, row in (places[number] for number in chosen)])
        said = list(questions(trunk(model, torch.from_numpy(shown))))
        true = [*cells_nkq[chosen].flatten(0, 1).unbind(1), *grounds_nq[chosen].unbind(1)]
        losses = [functional.cross_entropy(*both, ignore_index=UNASKED) for both in zip(said, true, strict=True)]
        stepped(torch.stack(losses).sum(), optimiser, schedule)
        if step % TOLD_EVERY == TOLD_EVERY - 1:
            names = (*CLASSES, *(f"ground {name}" for name in GROUNDS))
            right = (
                float((logits.argmax(1) == answers)[answers != UNASKED].float().mean())
                for logits, answers in zip(said, true, strict=True)
            )
            shares = ", ".join(f"{name} {share:.2f}" for name, share in zip(names, right, strict=True))
            told(f"{(step + 1) * LOOKS:,} images seen: {shares}")


@torch.inference_mode()
def seen(model: Any, images: Pixels) -> torch.Tensor:
    """float16 (images, `TRUNK`, 3, 3)."""
    model.eval()
    batches = (torch.from_numpy(images[start : start + 128].copy()) for start in range(0, len(images), 128))
    return torch.cat([trunk(model, batch).half() for batch in batches])


# -- reading -----------------------------------------------------------------------------------------------------------


def read(
    model: Any, tokenizer: Any, seen_ncyx: torch.Tensor, scenes: Sequence[Scene], effort: Effort, told: Told
) -> None:
    """Teach the last block and the text tower."""
    last = model.vision_model.encoder.blocks[-1]
    scale = torch.nn.Parameter(torch.tensor(math.log(10.0)))
    bias = torch.nn.Parameter(torch.tensor(0.0))
    spelling = torch.nn.Linear(model.config.text_config.hidden_size, len(SHAPES) * sum(CLAIMS.values()))
    learning = (last, model.text_model, model.text_projection, spelling)
    parameters = [*(parameter for module in learning for parameter in module.parameters()), scale, bias]
    optimiser, schedule = optimised(parameters, 1e-3, effort.readings)
    order = rows(len(scenes), effort.images)
    dice = random.Random(1)
    right: list[float] = []
    model.train()
    for step in range(effort.readings):
        chosen = next(order)
        batch = [scenes[row] for row in chosen]
        true = [caption(scene, dice) for scene in batch for _ in range(effort.each)]
        captions = [*true, *(false_caption(scene, dice) for scene in batch for _ in range(effort.each))]
        images_nd = functional.normalize(last(seen_ncyx[chosen].float()).mean((2, 3)), dim=1)
        read_ch = states(model, tokenizer, captions)
        cosines_cn = functional.normalize(model.text_projection(read_ch), dim=1) @ images_nd.T
        true_cn = torch.from_numpy(truth(captions, batch))
        loss, own = pair_loss(cosines_cn, true_cn, scale.exp(), bias, effort.each)
        spelt = spelling(read_ch).unflatten(1, (len(SHAPES), -1)).split(list(CLAIMS.values()), dim=2)
        answers = torch.from_numpy(np.stack([claimed(told_) for told_ in captions])).unbind(2)
        losses = [
            functional.cross_entropy(said.flatten(0, 1), answer.flatten(), ignore_index=UNASKED)
            for said, answer in zip(spelt, answers, strict=True)
        ]
        stepped(loss + SPELLING * torch.stack(losses).sum(), optimiser, schedule)
        right.append(auroc(own[: len(true)], own[len(true) :]))
        if step % TOLD_EVERY == TOLD_EVERY - 1:
            shares = ", ".join(f"{name} {float(part):.2f}" for name, part in zip(CLAIMS, losses, strict=True))
            told(f"{(step + 1) * len(captions):,} captions read: AUROC {np.mean(right[-TOLD_EVERY:]):.3f}; {shares}")
    with torch.no_grad():
        model.temperature.fill_(float((-scale).exp()))


def states(model: Any, tokenizer: Any, captions: Sequence[Caption]) -> torch.Tensor:
    """(captions, hidden): what the text tower makes of them before it is projected. What is as long goes together."""
    order = sorted(range(len(captions)), key=lambda row: len(captions[row].text))
    texts = [captions[row].text for row in order]
    found = []
    for start in range(0, len(texts), 128):
        inputs = tokenizer(texts[start : start + 128], padding=True, truncation=True, return_tensors="pt")
        found.append(model.text_model(inputs["input_ids"], inputs["attention_mask"])[0][:, 0])
    places = torch.empty(len(order), dtype=torch.long)
    places[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(found)[places]


def pair_loss(
    cosines_cn: torch.Tensor, true_cn: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, each: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the cosine of every caption with the image that it was made for."""
    captions, images = cosines_cn.shape
    mine = torch.arange(images).repeat_interleave(each).repeat(2)
    own = cosines_cn[torch.arange(captions), mine]
    wanted = true_cn[torch.arange(captions), mine].float()
    pairs = functional.binary_cross_entropy_with_logits(scale * own + bias, wanted)
    logits = scale * cosines_cn[: captions // 2]
    hits = logits.masked_fill(~true_cn[: captions // 2], -math.inf).logsumexp(1)
    return pairs + 0.5 * (logits.logsumexp(1) - hits).mean(), own.detach()


def auroc(true: Any, false: Any) -> float:
    """The chance that a true pair scores above a false one."""
    above = np.asarray(true)[:, None] - np.asarray(false)[None, :]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


# -- both --------------------------------------------------------------------------------------------------------------


def rows(count: int, batch: int) -> Iterator[np.ndarray]:
    """Batches of every row once, in another order each time."""
    chance = np.random.default_rng(count)
    while True:
        order = chance.permutation(count)
        yield from (order[start : start + batch] for start in range(0, count - batch + 1, batch))


def stepped(loss: torch.Tensor, optimiser: Any, schedule: Any) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    optimiser.step()
    schedule.step()


def optimised(parameters: Sequence[torch.nn.Parameter], rate: float, steps: int) -> tuple[Any, Any]:
    """AdamW whose rate rises for a twentieth of the steps and falls to 0."""
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02, betas=(0.9, 0.98))
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.05)
