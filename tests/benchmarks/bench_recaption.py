"""What recaptioning costs beside the bare loop: the stage on prepared images against `generate` at the same batch.

Both write captions of the same number of tokens by nucleus sampling with p = 0.9, k candidates an image. The stage's
draws follow from each image's uid; the loop's come from one generator, as transformers draws them. Rounds of the two
alternate, so that other work on the machine meets both.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import BlipConfig, BlipForConditionalGeneration

from models.captioners.captioner import Captioner
from models.captioners.decoding import Decoding
from models.data.images import save_preprocessor
from models.recipe import Images
from pipeline.stage import Device
from stages.recaption import Recaption
from tests.benchmarks.figures import Figure
from tests.models.captioners.tiny import tokenizer
from tests.stages.fake_batch import FakeBatch

SIDE, IMAGES, BATCH, TOKENS, ROUNDS = 224, 32, 16, 16, 5
VOCABULARY = 30_524
"""Of BLIP's tokenizer: what a token costs beside the layers is sorting so many."""


def measure() -> list[Figure]:
    """Speeds of a BLIP with six layers of width 384 on the processor."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        folder = _saved(Path(name))
        return [_figure(folder, 1), _figure(folder, 3)]


def _figure(folder: Path, candidates: int) -> Figure:
    stage = Recaption(
        weights=str(folder),
        candidates=candidates,
        most_tokens=TOKENS,
        least_tokens=TOKENS,
        batch=BATCH,
        dtype="float32",
    )
    write = stage.open(Device())
    preprocessing = Captioner.load(folder, "cpu", "float32").preprocessing
    assert preprocessing is not None
    dice = np.random.default_rng(0)
    images = [dice.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(IMAGES)]
    batch = FakeBatch(pa.table({"uid": [f"{n:032x}" for n in range(IMAGES)]}), images)
    model = BlipForConditionalGeneration.from_pretrained(folder).eval()  # type: ignore[no-untyped-call]
    pixels_nchw = preprocessing.normalise(torch.from_numpy(np.stack(images))).permute(0, 3, 1, 2).contiguous()

    def bare() -> None:
        options = {"do_sample": True, "top_p": Decoding().top_p, "top_k": 0, "num_return_sequences": candidates}
        for start in range(0, IMAGES, BATCH):
            model.generate(pixels_nchw[start : start + BATCH], max_new_tokens=TOKENS, min_new_tokens=TOKENS, **options)

    def timed(do: object) -> float:
        start = time.perf_counter()
        do()  # type: ignore[operator]
        return time.perf_counter() - start

    timed(bare)
    timed(lambda: write(batch))
    pairs = [(timed(bare), timed(lambda: write(batch))) for _ in range(ROUNDS)]
    ratios = sorted(loop / ours for loop, ours in pairs)
    loop, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    said = f"{IMAGES / ours:.1f} against {IMAGES / loop:.1f} images/s; {ratios[0]:.3f} to {ratios[-1]:.3f}"
    name = f"images per second of a bare generate loop's, {candidates} candidate{'s' * (candidates > 1)}"
    return Figure(name, statistics.median(ratios), "", at_least=0.95, note=said)


def _saved(folder: Path) -> Path:
    own, size = tokenizer(), {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
    heads = {**size, "num_attention_heads": 6}
    ends = {"bos_token_id": own.bos_token_id, "sep_token_id": own.eos_token_id, "pad_token_id": own.pad_token_id}
    text = {**heads, **ends, "vocab_size": VOCABULARY, "eos_token_id": own.eos_token_id, "encoder_hidden_size": 384}
    torch.manual_seed(0)
    vision = {**heads, "image_size": SIDE, "patch_size": 16}
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    own.save_pretrained(folder)
    save_preprocessor(Images(side=SIDE), folder)
    return folder
