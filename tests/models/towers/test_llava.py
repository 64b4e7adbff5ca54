"""The LLaVA family learns answers about images, freezes what a phase says, and is transformers' when it is written."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from models.data.chat import IMAGE
from models.data.images import save_preprocessor
from models.data.tokenizer import WRITTEN_ON, trained
from models.objectives.language import NextToken
from models.recipe import Recipe, RecipeError
from models.towers.llava import Llava
from models.train.accumulate import System, gradients
from models.train.checkpoint import Checkpoint, Checkpoints
from models.train.loop import Trained, train
from models.train.optimizer import factor
from models.train.parallel import Place
from models.train.source import Shards
from models.trainable import Batch
from tests.models.data import talks
from tests.models.towers import seeing, test_vision

Fitted = tuple[Llava, list[float], Path]


def unasked(rows: Batch) -> dict[str, torch.Tensor]:
    """A batch that does not say what is learnt: all of its tokens have logits."""
    return {name: column for name, column in rows.items() if name != "learnt"}


def loss_of(model: Llava, batch: Batch) -> torch.Tensor:
    total, count = NextToken()(model(batch), {})
    mean: torch.Tensor = total / count
    return mean


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Fitted]:
    """A model after some steps on one batch, in evaluation mode, its losses, and where it was exported."""

    @cache
    def fit(kind: str) -> Fitted:
        model, folder, rows = seeing.model(kind), tmp_path_factory.mktemp(kind), seeing.batch(kind)
        adam = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
        losses = []
        for _ in range(150):
            loss = loss_of(model, rows)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            missing = [name for name, own in model.named_parameters() if own.grad is None]
            assert not missing, "DistributedDataParallel would wait for their gradients"
            adam.step()
            losses.append(loss.item())
        model.eval().export(folder)
        save_preprocessor(talks.recipe(seeing.KINDS[kind][0]).data.images, folder)
        return model, losses, folder

    return fit


@pytest.mark.parametrize("kind", seeing.KINDS)
def test_the_loss_begins_at_the_logarithm_of_the_vocabulary_and_a_batch_is_learned_by_heart(
    kind: str, fitted: Callable[[str], Fitted]
) -> None:
    _, losses, _ = fitted(kind)
    assert losses[0] == pytest.approx(math.log(len(seeing.tokenizer())), rel=0.05)
    assert losses[-1] < 0.03 * losses[0]


@pytest.mark.parametrize("kind", seeing.KINDS)
def test_transformers_gives_the_same_logits(kind: str, fitted: Callable[[str], Fitted]) -> None:
    model, _, folder = fitted(kind)
    loader: Any = AutoModelForImageTextToText
    theirs, found = loader.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    rows = seeing.batch(kind)
    has = rows["tiles"] > 0
    real = torch.arange(rows["pixel_values"].shape[1]) < rows["tiles"].sum(1, keepdim=True)
    inputs = {"pixel_values": rows["pixel_values"][real]}
    if kind == "tiles":
        inputs["image_sizes"] = rows["image_sizes"][has]
    inputs |= {name: rows[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = theirs.eval()(**inputs).logits
        logits = model(unasked(rows))["logits"]
    there = rows["attention_mask"].bool()
    torch.testing.assert_close(logits[there], expected[there], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", seeing.KINDS)
def test_transformers_processor_makes_the_same_prompt_and_generates_the_same_text(
    kind: str, fitted: Callable[[str], Fitted]
) -> None:
    model, _, folder = fitted(kind)
    loaders: tuple[Any, Any] = AutoModelForImageTextToText, AutoProcessor
    theirs, processor = (loader.from_pretrained(folder) for loader in loaders)
    rows = seeing.batch(kind)
    for number in (0, 2, 3):
        data, _, _ = talks.shape(Random(number))
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour?"}]}]
        text = processor.apply_chat_template(said, add_generation_prompt=True)
        inputs = processor(images=[Image.open(io.BytesIO(data))], text=text, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        assert inputs["input_ids"][0].tolist() == rows["input_ids"][number, :length].tolist()
        written = theirs.generate(**inputs, max_new_tokens=6, do_sample=False)[0, length:].tolist()
        own = {name: rows[name][number : number + 1] for name in ("pixel_values", "tiles", "image_sizes")}
        ids, found = rows["input_ids"][number : number + 1, :length], list[int]()
        while len(found) < 6 and seeing.tokenizer().eos_token_id not in found:
            places = ids == seeing.tokenizer().convert_tokens_to_ids(IMAGE)
            with torch.no_grad():
                features = model(
                    {**own, "input_ids": ids, "attention_mask": torch.ones_like(ids), "image_places": places}
                )
            found.append(int(features["logits"][0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[found[-1]]])], dim=1)
        assert found == written
        assert processor.decode(written, skip_special_tokens=True).strip() in talks.COLOURS


@pytest.mark.parametrize("kind", seeing.KINDS)
def test_a_model_that_was_written_is_read_again(kind: str, fitted: Callable[[str], Fitted], tmp_path: Path) -> None:
    model, _, folder = fitted(kind)
    again = Llava(pretrained=str(folder), tokenizer=seeing.tokenizer()).eval()
    with torch.no_grad():
        found, expected = (one(unasked(seeing.batch(kind)))["logits"] for one in (again, model))
    torch.testing.assert_close(found, expected)
    again.export(tmp_path)
    first, second = (load_file(where / "model.safetensors") for where in (folder, tmp_path))
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


@pytest.mark.parametrize("kind", ["linear", "mlp", "tiles"])
def test_packed_rows_give_the_loss_and_the_gradients_of_padded_ones(kind: str) -> None:
    packed, padded = seeing.step(kind, 1), seeing.step(kind, 1, pack=False)
    assert packed.keys() == padded.keys()
    for name, value in packed.items():
        torch.testing.assert_close(value, padded[name], atol=2e-6, rtol=1e-4)


def test_two_losses_of_the_answers_have_the_gradients_of_one_pass_in_any_pieces() -> None:
    """Features of answers are as many as a piece has, and not one a sample."""
    found = []
    for micro in (None, 3):
        model = seeing.model("mlp")
        system = System(model, [NextToken(), NextToken(z=1e-4)], [1.0, 0.5], Place.here())
        losses = gradients(system, seeing.batch("mlp"), 0, micro)
        found.append([losses, *(own.grad for own in model.parameters() if own.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", seeing.KINDS)
def test_images_are_never_in_the_loss_whatever_a_batch_says(kind: str) -> None:
    rows = dict(seeing.batch(kind))
    token = seeing.tokenizer().convert_tokens_to_ids(IMAGE)
    model = seeing.model(kind)
    with torch.no_grad():
        usual = model(rows)["labels"]
        rows["learnt"] = torch.ones_like(rows["learnt"])
        every = model(rows)["labels"]
    assert len(usual) < len(every)
    assert not (every == token).any()
    assert every.tolist() == rows["input_ids"][:, 1:][~rows["image_places"][:, 1:]].tolist()


@pytest.mark.parametrize("pack", [True, False])
def test_answers_alone_have_logits_and_they_are_those_of_their_places(pack: bool) -> None:
    rows, model = seeing.batch("mlp"), seeing.model("mlp", pack=pack).eval()
    learnt = rows["learnt"][:, 1:]
    with torch.no_grad():
        answers, all_of_them = model(rows), model(unasked(rows))["logits"]
    assert 0 < len(answers["logits"]) == learnt.sum() < learnt.numel() / 2
    assert answers["labels"].tolist() == rows["input_ids"][:, 1:][learnt].tolist()
    torch.testing.assert_close(answers["logits"], all_of_them[:, :-1][learnt], atol=1e-5, rtol=0)


def test_what_a_model_sees_decides_what_it_says_and_padding_is_seen_by_nobody() -> None:
    model, rows = seeing.model("mlp").eval(), unasked(seeing.batch("mlp"))
    pixels = rows["pixel_values"]
    padding = torch.arange(pixels.shape[1]) >= rows["tiles"].sum(1, keepdim=True)
    with torch.no_grad():
        before = model(rows)["logits"]
        other = model({**rows, "pixel_values": pixels.masked_fill(padding[..., None, None, None], 9.0)})["logits"]
        after = model({**rows, "pixel_values": pixels.flip(-1) + 1})["logits"]
    assert torch.equal(other, before)
    assert (after[:4] - before[:4]).abs().amax((1, 2)).min() > 1e-3
    assert torch.equal(after[4:], before[4:])  # they see nothing


# -- trainings ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return talks.sets(tmp_path_factory.mktemp("sets"))


SYSTEMS = ["linear", "mlp", "tiles"]
"""LLaVA, LLaVA-1.5 and LLaVA-NeXT."""
STOPS = {"linear": (40,), "mlp": (16, 40, 56), "tiles": (40, 56)}
"""Samples seen before a training is told to stop: one step before the border, at it, behind it."""


def recipe_of(kind: str) -> Recipe:
    name, settings = seeing.KINDS[kind]
    return talks.recipe(name, settings, keep=9)


def run(kind: str, out: Path, folders: dict[str, str], stop_at: int | None = None) -> Trained:
    """A training; told to stop once `stop_at` samples were seen, it does so after one more step of 8."""
    seen: list[int] = []
    told = lambda: stop_at is not None and seen[-1:] >= [stop_at]  # noqa: E731
    return train(recipe_of(kind), folders, str(out), stop=told, watch=seen.append)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, str]) -> Callable[[str], Path]:
    @cache
    def trained_at_once(kind: str) -> Path:
        out = tmp_path_factory.mktemp("unbroken")
        run(kind, out, folders)
        return out

    return trained_at_once


def hashes(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    return {name: sha256(value.detach().contiguous().numpy().tobytes()).hexdigest() for name, value in weights.items()}


def at(out: Path, samples: int) -> dict[str, str]:
    """Hashes of the parameters in a checkpoint."""
    kept = Checkpoints(str(out), Place.here(), 9)
    checkpoint = Checkpoint(f"{kept.folder}/{samples:012d}", samples, {})
    found = FsspecReader(checkpoint.folder).read_metadata().state_dict_metadata
    tensors = {name: torch.zeros(told.size) for name, told in found.items() if name.startswith("model.")}  # type: ignore[union-attr]
    kept.load(checkpoint, tensors)
    kept.close()
    return hashes({name.removeprefix("model."): value for name, value in tensors.items()})


@pytest.mark.parametrize("kind", SYSTEMS)
def test_what_a_phase_freezes_has_the_hash_that_it_had(kind: str, unbroken: Callable[[str], Path]) -> None:
    out = unbroken(kind)
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    torch.manual_seed(0)
    fresh: Llava = recipe_of(kind).model.build(tokenizer=tokenizer)
    begin, aligned, tuned = hashes(dict(fresh.named_parameters())), at(out, 48), at(out, 96)
    assert begin.keys() == aligned.keys() == tuned.keys()
    first = {name for name in begin if begin[name] != aligned[name]}
    second = {name for name in begin if aligned[name] != tuned[name]}
    assert first == {name for name in begin if "multi_modal_projector" in name or "newline" in name}
    assert second == {name for name in begin if "vision_tower" not in name}
    assert any("vision_tower" in name for name in begin)


@pytest.mark.parametrize("kind", SYSTEMS)
def test_stopped_at_the_border_of_the_phases_it_ends_as_if_it_had_not_been(
    kind: str, tmp_path: Path, folders: dict[str, str], unbroken: Callable[[str], Path]
) -> None:
    for stop in STOPS[kind]:
        stopped = run(kind, tmp_path, folders, stop_at=stop)
        assert stopped.model is None
        assert stopped.samples == stop + 8
    run(kind, tmp_path, folders)
    assert left(tmp_path) == left(unbroken(kind))


def left(out: Path) -> tuple[bytes, list[float]]:
    """Weights to the bit, and the curve."""
    said = json.loads((out / "model" / "training.json").read_text())
    return (out / "model" / "model.safetensors").read_bytes(), [row["loss"] for row in said["curve"]]


def test_its_card_tells_what_each_phase_read_and_how_it_is_asked(
    unbroken: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = unbroken("mlp") / "model"
    text = (folder / "README.md").read_text()
    assert "| pairs | 0.5 |" in text
    assert "| conversations | 0.5 |" in text
    Image.new("RGB", (40, 30), "red").save(tmp_path / "picture.jpg")
    code = text.partition("```python\n")[2].partition("```")[0]
    capsys.readouterr()
    given = {"THIS FOLDER": str(folder), "picture.jpg": str(tmp_path / "picture.jpg")}
    for name, place in given.items():
        assert name in code
        code = code.replace(name, place)
    exec(code, {})
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "embeddings as head"])
def test_a_model_begins_with_the_towers_it_is_given(tmp_path: Path, folders: dict[str, str], tied: bool) -> None:
    """An image tower of one folder, a language model with its tokenizer of another."""
    words = trained(seeing.LINES, 300, 160, WRITTEN_ON, cased=True)
    words.save_pretrained(tmp_path / "language")
    torch.manual_seed(1)
    speaker: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=160,
            tie_word_embeddings=tied,
        )
    )
    speaker.save_pretrained(tmp_path / "language")
    tower = test_vision.tower("vit")
    tower.save_pretrained(tmp_path / "vision")
    given = {name: str(tmp_path / name) for name in ("vision", "language")}
    short: dict[str, Any] = {"samples": 16, "phases": [{"mixture": {"pairs": 1}, "rates": {"projector": 1, ".*": 0}}]}
    images = {"side": 32, "tokens": 16, "fit": "pad"}
    data = {"kind": "conversations", "images": images, "texts": {"context": 160}}
    train(talks.recipe(**short, data=data), {"pairs": folders["pairs"]}, str(tmp_path / "out"), weights=given)
    model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "out" / "model")
    seen = tower.state_dict()
    assert all(torch.equal(value, seen[name]) for name, value in model.model.vision_tower.state_dict().items())
    rows, known = model.get_input_embeddings().weight, len(words)
    own = speaker.get_input_embeddings().weight
    assert torch.equal(rows[:known], own)
    torch.testing.assert_close(rows[known:], own.mean(0).expand(len(rows) - known, -1))
    assert len(rows) == known + 4  # an image, and three roles
    assert torch.equal(model.lm_head.weight[:known], speaker.lm_head.weight)
    inner = model.model.language_model.layers[1].mlp.up_proj.weight
    assert torch.equal(inner, speaker.model.layers[1].mlp.up_proj.weight)


# -- what cannot be ----------------------------------------------------------------------------------------------------


def test_squares_of_other_tokens_than_the_tower_makes_are_refused() -> None:
    rows = dict(seeing.batch("mlp"))
    rows["image_places"] = rows["image_places"].clone()
    rows["image_places"][0, :20] = False
    with pytest.raises(ValueError, match=r"set data\.images\.tokens to what"):
        seeing.model("mlp")(rows)


def test_grids_that_the_model_does_not_know_are_refused() -> None:
    rows = dict(seeing.batch("tiles"))
    rows["image_sizes"] = rows["image_sizes"] // 2
    with pytest.raises(ValueError, match=r"let data\.images\.grids and image_grid_pinpoints be the same"):
        seeing.model("tiles")(rows)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"connector": "mlpp"}, "connector = 'mlpp'; expected one of linear, mlp"),
        ({"config": {"model_type": "clip"}}, "model_type = 'clip'"),
        ({"config": {"vision_confg": {}}}, "did you mean 'vision_config'"),
        ({"pretrained": "here", "vision": "there"}, "vision and language beside pretrained"),
        ({"feature_layer": -9}, "feature_layer = -9 of a tower with 3 layers"),
    ],
)
def test_what_cannot_be_built_is_told_in_a_line(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as found:
        talks.recipe().model.build(tokenizer=seeing.tokenizer(), **settings)
    assert "\n" not in str(found.value)


def test_texts_that_may_be_longer_than_the_model_are_refused_before_a_training_begins(
    tmp_path: Path, folders: dict[str, str]
) -> None:
    data = talks.recipe().data.model_dump()
    data["texts"]["context"] = 161
    with pytest.raises(RecipeError, match=r"data\.texts\.context = 161: the model has 160 places; lower it"):
        train(talks.recipe(data=data), folders, str(tmp_path))


# -- several processes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, seeing.Tensors]:
    return seeing.together(2, tmp_path_factory.mktemp("together"))


@pytest.mark.parametrize("case", seeing.CASES, ids=str)
def test_with_a_process_that_sees_nothing_loss_and_gradients_are_those_of_one(
    on_two: dict[Any, seeing.Tensors], case: tuple[str, int, seeing.Mode, int | None, str | None]
) -> None:
    kind, phase, _, _, turns = case
    alone, found = seeing.step(kind, phase, turns=turns), on_two[case]
    assert found.keys() == alone.keys()
    assert any("multi_modal_projector" in name for name in alone)
    assert not any("vision_tower" in name for name in alone)
    for name, value in alone.items():
        torch.testing.assert_close(found[name].double(), value.double(), atol=2e-6, rtol=1e-4)


# -- recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava", "llava-1.5", "llava-next"])
def test_shipped_recipes_freeze_the_tower_and_align_before_they_tune(name: str) -> None:
    for tiny in (False, True):
        recipe = Recipe.load(name, tiny=tiny)
        align, tune = recipe.phases
        assert factor(align, "model.model.language_model.layers.0.mlp.up_proj.weight") == 0
        assert factor(align, "model.model.vision_tower.embeddings.class_embedding") == 0
        assert factor(align, "model.model.multi_modal_projector.linear_1.weight") == 1
        assert factor(tune, "model.model.language_model.layers.0.mlp.up_proj.weight") > 0
        seen = factor(tune, "model.model.vision_tower.embeddings.class_embedding")
        assert (seen > 0) == (name == "llava-next")
        assert recipe.sets == {"pairs": 1, "conversations": 1}


@pytest.mark.parametrize("name", ["llava", "llava-1.5", "llava-next"])
def test_shipped_recipes_at_their_tiny_size_read_images_of_the_size_that_they_say(
    name: str, folders: dict[str, str]
) -> None:
    recipe = Recipe.load(name, tiny=True, overrides=["samples=32", "batch=16", "schedule.warmup=0"])
    source = Shards(recipe, folders, Place.here(), None)
    with closing(source.open(16)) as loader:
        rows = source.ready(next(iter(loader)))
    torch.manual_seed(0)
    loss = loss_of(recipe.model.build(tokenizer=source.tokenizer), rows)
    assert loss.item() == pytest.approx(math.log(len(source.tokenizer)), rel=0.05)
