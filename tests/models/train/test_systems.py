"""LLaMA, BERT, ViT, SuperClass, DINO, SLIP, MobileCLIP: unseen samples get easier, a stop leaves no trace.

Every sample is seen once, so that the loss of a step is one on samples that nothing was learnt from.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoTokenizer,
    BertForMaskedLM,
)

from models.data.images import save_preprocessor
from models.data.loader import Loader
from models.data.rows import Processes, Threads
from models.evaluate.probes import nearest_neighbours
from models.recipe import Recipe, RecipeError
from models.towers.image_encoder import ImageEncoder
from models.train.loop import Trained, train
from models.train.parallel import Place
from models.train.source import Shards
from tests.models.data.tars_made import tar_of

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}
BATCH, SAMPLES, HALF = 8, 256, 128
TRANSFORMER = "hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2"
VIT = f"{TRANSFORMER}, patch_size: 8, image_size: 32"
HEAD = "prototypes: 64, hidden: 32, bottleneck: 16"
SMALLER: Mapping[str, list[str]] = {
    "llama": [
        f"model={{models.towers.language_model.CausalLanguageModel: {{config: {{{TRANSFORMER}}}}}}}",
        "data.texts={vocabulary: 300, context: 32}",
    ],
    "bert": [
        f"model={{models.towers.bert.Bert: {{config: {{{TRANSFORMER}}}}}}}",
        "data.texts={vocabulary: 300, context: 32}",
    ],
    "vit-b16": [
        f"model={{models.towers.vit.VisionClassifier: {{config: {{{VIT}}}, classes: [red, green, blue, grey]}}}}",
        "data.images.side=32",
    ],
    "superclass-vit-b16": [
        f"model={{models.towers.caption_classifier.CaptionClassifier: {{config: {{{VIT}}}}}}}",
        "objectives=[{models.objectives.caption_tokens.CaptionTokens: {tokens: 300}}]",
        "data.images.side=32",
        "data.texts={vocabulary: 300, context: 32}",
    ],
    "dino-vit-s16": [
        f"model={{models.towers.dino.Dino: {{config: {{{VIT}}}, {HEAD}, held: 0.25}}}}",
        "objectives=[{models.objectives.dino.SelfDistillation: {prototypes: 64, teacher: [0.04, 0.06], warmup: 0.5}}]",
        "data.images.side=32",
        "data.crops={count: 2, side: 16}",
    ],
    "slip": [
        f"model={{models.towers.two_towers.TwoTowers: {{config: {{vision_config: {{{VIT}}}, "
        f"text_config: {{{TRANSFORMER}}}}}}}}}",
        "objectives=[models.objectives.contrastive.InfoNCE, "
        "{models.objectives.simclr.SimCLR: {width: 32, hidden: 64, out: 16}}]",
        "data.images.side=32",
        "data.crops.side=32",
        "data.texts={vocabulary: 300, context: 32}",
        "parallel.micro_batch=4",
    ],
    "mobileclip": [
        f"model={{models.towers.two_towers.TwoTowers: {{config: {{vision_config: {{{VIT}}}, "
        f"text_config: {{{TRANSFORMER}}}}}}}}}",
        "data.images.side=32",
        "data.teacher.width=4",
        "data.texts={vocabulary: 300, context: 32}",
    ],
}
ALONE = [name for name in SMALLER if name not in ("slip", "mobileclip")]
"""What has no second tower; of two towers `test_recipes.py` has what transformers loads."""
FALLS = {"llama": 0.4, "bert": 0.9, "vit-b16": 0.5, "superclass-vit-b16": 0.6, "slip": 0.6, "mobileclip": 0.4}
"""The loss of the last steps over that of the first. That of DINO rises at first, see the test of textures."""
RATES = dict.fromkeys(["dino-vit-s16", "slip", "mobileclip"], 1e-3)
"""At ten times that, so small a one takes all images for one at first."""
TIMED = {"samples_per_second", "tokens_per_second", "waiting", "mfu"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one colour with noise, and texts that say which it is."""
    folder, rng, members = tmp_path_factory.mktemp("shards"), np.random.default_rng(0), []
    for number in range(SAMPLES + BATCH):
        label = int(rng.integers(len(COLOURS)))
        colour, values = list(COLOURS.items())[label]
        pixels = np.clip(np.array(values) + rng.normal(0, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "JPEG")
        text = f"A {colour} picture of the year {number % 7}. It is {colour} all over."
        members += [(f"{number:04}.jpg", sink.getvalue()), (f"{number:04}.txt", text.encode())]
        rows = [float(label == one) for one in range(len(COLOURS))]  # a teacher that sees the colour
        said = {"image_embedding": rows, "captions": [{"text": text, "text_embedding": rows}]}
        members += [(f"{number:04}.cls", b"%d" % label), (f"{number:04}.json", json.dumps(said).encode())]
    (folder / "0.tar").write_bytes(tar_of(members))
    return folder


def run(name: str, shards: Path, out: Path, stop_at: int | None = None) -> Trained:
    settings = [
        *SMALLER[name],
        f"batch={BATCH}",
        f"samples={SAMPLES}",
        f"checkpoint_every={HALF}",
        f"optimizer.learning_rate={RATES.get(name, 1e-2)}",
        "schedule.warmup=16",
    ]
    recipe = Recipe.load(name, tiny=True, overrides=settings)
    return train(recipe, {"shards": str(shards)}, str(out), report=lambda samples, _, __: samples == stop_at)


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def once(name: str) -> Path:
        out = tmp_path_factory.mktemp(name)
        run(name, shards, out)
        return out

    return once


def curve(out: Path) -> list[dict[str, float]]:
    said = json.loads((out / "model" / "training.json").read_text())
    assert said["skipped"] == {}
    return [{name: value for name, value in row.items() if name not in TIMED} for row in said["curve"]]


@pytest.mark.parametrize("name", FALLS)
def test_samples_that_were_never_seen_get_easier(name: str, trained: Callable[[str], Path]) -> None:
    losses = [row["loss"] for row in curve(trained(name))]
    assert len(losses) == SAMPLES // BATCH
    assert np.mean(losses[-3:]) < FALLS[name] * losses[0], losses


@pytest.mark.parametrize("name", SMALLER)
def test_a_training_that_stopped_in_between_ends_the_same_to_the_bit(
    name: str, trained: Callable[[str], Path], shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stopped = run(name, shards, out, stop_at=HALF)
    assert stopped.model is None
    assert HALF <= stopped.samples < SAMPLES
    run(name, shards, out)
    assert curve(out) == curve(trained(name))
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (out, trained(name))]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", SMALLER)
def test_other_processes_make_the_same_batches(name: str, shards: Path) -> None:
    tokenizer, found = None, []
    for decoders in (0, 1):
        settings = [*SMALLER[name], f"batch={BATCH}", f"parallel.decoders={decoders}"]
        recipe = Recipe.load(name, tiny=True, overrides=settings)
        source = Shards(recipe, {"shards": str(shards)}, Place.here(), tokenizer)
        tokenizer = source.tokenizer
        with closing(source.open(0)) as loader:
            assert isinstance(loader, Loader)
            assert isinstance(loader._makers, Processes if decoders else Threads)
            found.append(list(islice(loader, 3)))
    for threads, processes in zip(*found, strict=True):
        assert threads.keys() == processes.keys()
        assert all(torch.equal(threads[key], processes[key]) for key in threads)


@pytest.mark.parametrize("name", ALONE)
def test_transformers_loads_all_of_what_was_exported_and_nothing_else(
    name: str, trained: Callable[[str], Path]
) -> None:
    folder = trained(name) / "model"
    kinds: dict[str, Any] = {
        "llama": AutoModelForCausalLM,
        "bert": BertForMaskedLM,
        "vit-b16": AutoModelForImageClassification,
        "superclass-vit-b16": AutoModelForImageClassification,
        "dino-vit-s16": AutoModel,
    }
    more = {"add_pooling_layer": False} if name == "dino-vit-s16" else {}
    model, found = kinds[name].from_pretrained(folder, output_loading_info=True, **more)
    assert not found["missing_keys"]
    for names in [named for named in found["unexpected_keys"] if not named.startswith(("cls.seq", "bert.pooler"))]:
        pytest.fail(f"{names} was exported and is not read")
    named = {key for key in load_file(folder / "model.safetensors") if "teacher" in key or "head." in key}
    assert not named, "what trains alone stays behind"
    seen = name in ("vit-b16", "dino-vit-s16")
    assert (folder / "tokenizer.json").exists() == (not seen)
    assert (folder / "preprocessor_config.json").exists() == (seen or name == "superclass-vit-b16")
    card = (folder / "README.md").read_text()
    assert "get_image_features" not in card
    assert f"{kinds[name].__name__}.from_pretrained(folder" in card
    if name == "vit-b16":
        assert model.config.id2label == dict(enumerate(COLOURS))
    if name == "superclass-vit-b16":
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        assert model.config.id2label[tokenizer.convert_tokens_to_ids("Ġred")] == "Ġred"


def test_the_language_model_goes_on_with_a_text_as_those_it_read(trained: Callable[[str], Path]) -> None:
    folder = trained("llama") / "model"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokens = tokenizer("A blue picture of", return_tensors="pt").input_ids
    assert tokens[0, -1] != tokenizer.eos_token_id
    with torch.inference_mode():
        written = model.generate(tokens, max_new_tokens=20, do_sample=False)
    assert "picture of the year" in tokenizer.decode(written[0])
    assert written[0, -1] == tokenizer.eos_token_id, "a text ends"


# -- what takes longer -------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(600)
def test_bert_learns_which_text_goes_on(tmp_path: Path) -> None:
    """A text names one of eight animals twice. Of halves of other texts one in eight names the same: the loss could
    become 0.20 if no animal were hidden, and is ln 2 = 0.69 for who does not compare them."""
    dice, animals = Random(0), ("cat", "dog", "fish", "bird", "horse", "cow", "ant", "bee")
    named = [dice.choice(animals) for _ in range(2000)]
    members = [(f"{n:04}.txt", f"A {name} is here. The {name} is there.".encode()) for n, name in enumerate(named)]
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    width = "hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4"
    config = f"{{{width}, max_position_embeddings: 32, initializer_range: 0.1}}"
    settings = [
        f"model={{models.towers.bert.Bert: {{config: {config}}}}}",
        "data.texts={vocabulary: 300, context: 32}",
        "samples=25600",
    ]
    train(Recipe.load("bert", tiny=True, overrides=settings), {"shards": str(tmp_path)}, str(tmp_path / "out"))
    losses = [row["NextSentence"] for row in curve(tmp_path / "out")]
    assert losses[0] > 0.6
    assert np.mean(losses[-5:]) < 0.5


def texture(number: int) -> np.ndarray:
    """uint8 (48, 48, 3): stripes that stand, lie or lean, or a chequer, in noise: `number` % 4 says which."""
    rng = np.random.default_rng(number)
    down, across = np.mgrid[:48, :48] + rng.integers(0, 8, 2)[:, None, None]
    standing, lying, leaning = across // 4 % 2, down // 4 % 2, (down + across) // 4 % 2
    light = (standing, lying, standing ^ lying, leaning)[number % 4]
    shown: np.ndarray = np.clip(60 + 130.0 * light[..., None] + rng.normal(0, 40, (48, 48, 3)), 0, 255)
    return shown.astype(np.uint8)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_dino_learns_to_tell_textures_apart_without_being_told_of_any(tmp_path: Path) -> None:
    """By their nearest neighbours, 0.80 of them by a random tower, all of them by one that was trained. Every texture
    is seen once, so the loss is one on textures that nothing was learnt from. At first student and slow copy say the
    same of everything; when the centre has taken that away, the loss is ln K, and from there it falls."""
    members, samples, k = [], 12_800, 128
    for number in range(samples):
        sink = io.BytesIO()
        Image.fromarray(texture(number)).save(sink, "JPEG", quality=90)
        members.append((f"{number:06}.jpg", sink.getvalue()))
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    sizes = "hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 2"
    config = f"{{{sizes}, patch_size: 4, image_size: 32}}"
    settings = [
        f"model={{models.towers.dino.Dino: {{config: {config}, prototypes: {k}, hidden: 128, bottleneck: 32}}}}",
        f"objectives=[{{models.objectives.dino.SelfDistillation: {{prototypes: {k}, teacher: [0.04, 0.04]}}}}]",
        "data.images.side=32",
        "data.crops={count: 2, side: 16}",
        f"samples={samples}",
        "batch=8",
        "optimizer.learning_rate=5e-4",
        "schedule.warmup=640",
    ]
    recipe = Recipe.load("dino-vit-s16", tiny=True, overrides=settings)
    done = train(recipe, {"shards": str(tmp_path)}, str(tmp_path / "out"))
    losses = [row["loss"] for row in done.curve]
    tenth = len(losses) // 10
    at_end, highest = np.mean(losses[-tenth:]), max(np.mean(losses[tenth * n :][:tenth]) for n in range(10))
    assert at_end < 0.75 * highest, losses
    assert at_end < 0.75 * np.log(k), "who tells no texture from another has ln K"
    torch.manual_seed(0)
    recipe.model.build().eval().export(tmp_path / "fresh")
    save_preprocessor(recipe.data.images, tmp_path / "fresh")
    unseen, split = range(samples, samples + 600), 400
    kinds, right = np.array(unseen) % 4, {}
    for folder in (tmp_path / "fresh", tmp_path / "out" / "model"):
        encoder = ImageEncoder.load(folder, "cpu", "float32")
        rows_nd = encoder.embed_prepared([encoder.preprocessing(texture(number)) for number in unseen], 64)
        found = nearest_neighbours("textures", rows_nd[:split], kinds[:split], rows_nd[split:], kinds[split:], 4)
        right[folder.name] = found[0].value
    assert right["model"] > 0.9, right
    assert right["model"] > right["fresh"] + 0.1, right


PAIRS, TAUGHT = "data.kind=pairs", "models.objectives.distillation.SimilarityDistillation"
VIEWED = "{models.objectives.simclr.SimCLR: {width: 32}}"
TEXTED = "{models.objectives.text_conditioned.TextConditioned: {width: 32}}"


@pytest.mark.parametrize(
    ("name", "objective", "settings", "told"),
    [
        ("slip", VIEWED, [PAIRS], "views, .*; set data.kind = pairs_and_views, data.crops.count = 2, or take another"),
        ("mobileclip", TAUGHT, [PAIRS], "teacher_image, teacher_text, .*; set data.kind = pairs_and_teacher, or take"),
        (
            "slip",
            TEXTED,
            ["model={models.towers.two_towers.TwoTowers: {bias: -1}}"],
            "patches, position, .*; set `patches: true` of the model, or take",
        ),
        (  # whose tower gives none, whatever is set
            "clip-rn50",
            TEXTED,
            ["model={models.towers.two_towers.TwoTowers: {bias: -1}}"],
            "patches, position, and .*; take another model",
        ),
        ("slip", "{models.objectives.contrastive.InfoNCE: {left: views}}", [PAIRS], "views, .*, text; take another"),
        (
            "blip",
            "models.objectives.momentum.MomentumContrast",
            ["model={models.towers.blip.Blip: {momentum: null}}"],
            "image_m, text_m, .*; set `momentum` of the model, or take",
        ),
        ("dino-vit-s16", VIEWED, [], "views, and .* gives student, teacher; take another model"),
        ("superclass-vit-b16", VIEWED, [], "views, and .* gives labels, logits; take another model"),
    ],
)
def test_a_setting_is_told_only_where_it_makes_the_model_give_what_an_objective_misses(
    shards: Path, tmp_path: Path, name: str, objective: str, settings: list[str], told: str
) -> None:
    few = ["batch=8", "samples=8", "schedule.warmup=0"]
    overrides = [*SMALLER.get(name, []), f"objectives=[{objective}]", *few, *settings]
    with pytest.raises(RecipeError, match=f" needs {told}"):
        train(Recipe.load(name, tiny=True, overrides=overrides), {"shards": str(shards)}, str(tmp_path))
