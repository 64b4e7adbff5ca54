"""What a training leaves behind, and what of it the recipe decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import torch
from safetensors.torch import load, load_file

from models.recipe import Recipe, RecipeError
from models.towers.preprocess import Preprocessing
from models.train import loop
from models.train.loop import Trained, train
from models.train.parallel import Place
from models.trainable import Batch, Features
from tests.models.train.toy import Cut, Toy, ToySource, recipe

LINEAGE = {"shards": {"shards": {"selection": "4f1c", "samples": 240}}, "funnels": {}}


class Counted(ToySource):
    """Keeps how many rows of a batch were made ready together."""

    def __init__(self, batch: int, place: Place) -> None:
        super().__init__(batch, place)
        self.ready_rows: list[int] = []

    def ready(self, batch: Batch) -> Batch:
        self.ready_rows.append(len(batch["x"]))
        return batch


def run(out: str | Path, **changes: Any) -> Trained:
    return train(recipe(**changes), {}, str(out), source=ToySource(12, Place.here()), lineage=LINEAGE)


def begin() -> dict[str, torch.Tensor]:
    """The toy's weights before the first step."""
    torch.manual_seed(0)
    return Toy().state_dict()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    out = tmp_path_factory.mktemp("finished")
    return run(out), out


def test_the_model_lies_there_with_what_it_was_made_from(finished: tuple[Trained, Path]) -> None:
    trained, out = finished
    assert trained.model == f"{out}/model"
    said = json.loads((out / "model" / "training.json").read_text())
    assert said["lineage"] == LINEAGE
    assert said["code"].keys() == {"sluice", "torch", "transformers", "models"}
    assert (said["samples"], said["processes"], said["device"], said["skipped"]) == (240, 1, "cpu", {"damaged": 20})
    assert said["samples_per_second"] == pytest.approx(240 / said["seconds"])
    assert said["curve"] == list(trained.curve)
    assert [row["samples"] for row in trained.curve] == list(range(12, 241, 12))
    assert {"loss", "learning_rate", "samples_per_second", "tokens_per_second", "mfu"} <= trained.curve[-1].keys()
    assert all(0 <= row["waiting"] <= 1 and 0 < row["mfu"] < 1 for row in trained.curve)


def test_the_recipe_beside_it_is_the_one_that_was_trained(finished: tuple[Trained, Path]) -> None:
    text = (finished[1] / "model" / "recipe.yaml").read_text()
    assert Recipe.parse(text, "toy") == recipe()


def test_images_are_prepared_for_it_as_the_recipe_says(finished: tuple[Trained, Path]) -> None:
    found = Preprocessing.load(finished[1] / "model")
    images = recipe().data.images
    assert (found.size, found.crop) == (images.side, (images.side, images.side))
    assert (found.means, found.deviations) == (images.mean, images.deviation)


def test_checkpoints_carry_recipe_lineage_and_code(finished: tuple[Trained, Path]) -> None:
    marks = [json.loads(path.read_text())["facts"] for path in finished[1].glob("checkpoints/*/complete.json")]
    assert len(marks) >= 2
    for facts in marks:
        assert Recipe.model_validate(facts["recipe"]) == recipe()
        assert facts["lineage"] == LINEAGE
        assert facts["code"]["models"]


def test_the_toy_learns(finished: tuple[Trained, Path]) -> None:
    curve = finished[0].curve
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_all_of_it_lies_on_any_store(finished: tuple[Trained, Path], kind: str, request: pytest.FixtureRequest) -> None:
    out = f"{request.getfixturevalue('bucket') if kind == 's3' else f'memory://{uuid4().hex}'}/out"
    run(out)
    fs = fsspec.filesystem(kind)
    weights = load(fs.cat_file(f"{out}/model/model.safetensors"))
    expected = load_file(finished[1] / "model" / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert len(fs.glob(f"{out}/tensorboard/events*")) == 1
    assert run(out).samples == 240


def test_what_a_phase_freezes_is_bit_equal_afterwards(tmp_path: Path) -> None:
    phases = [
        {"name": "text", "share": 0.5, "rates": {"^image": 0, ".*": 1}},
        {"name": "scale", "share": 0.5, "rates": {"logit_scale": 1}},
    ]
    run(tmp_path / "both", phases=phases)
    run(tmp_path / "first", phases=[phases[0] | {"share": 1}], samples=120)
    start, first, both = begin(), *(load_file(tmp_path / run / "model/model.safetensors") for run in ("first", "both"))
    for name, value in both.items():
        if name.startswith("image"):
            assert torch.equal(value, start[name])
        elif name not in ("logit_scale", "steps"):
            assert not torch.equal(value, start[name])
    assert not torch.equal(both["logit_scale"], start["logit_scale"])
    # The first phase's schedule ends with it, so that its weights are those of a training of that length.
    assert all(torch.equal(both[name], first[name]) for name in first if name not in ("logit_scale", "steps"))


def test_the_moving_average_is_what_is_exported(tmp_path: Path) -> None:
    run(tmp_path / "plain", samples=12)
    run(tmp_path / "ema", samples=12, ema=0.75)
    start, plain, ema = begin(), *(load_file(tmp_path / run / "model/model.safetensors") for run in ("plain", "ema"))
    weight = "image.0.linear.weight"
    assert not torch.equal(plain[weight], start[weight])
    torch.testing.assert_close(ema[weight], 0.75 * start[weight] + 0.25 * plain[weight])
    assert torch.equal(ema["steps"], torch.tensor(1))  # buffers are as they are


def test_clipping_bounds_the_step_and_not_what_is_told(tmp_path: Path) -> None:
    settings = {"learning_rate": 1e-2, "epsilon": 1.0, "weight_decay": 0}  # so large that the step is the gradient's
    plain, clipped = (
        run(tmp_path / name, samples=12, optimizer=settings | extra)
        for name, extra in (("plain", {}), ("clipped", {"clip_norm": 1e-3}))
    )
    assert plain.curve[0]["gradient_norm"] == clipped.curve[0]["gradient_norm"] > 0.1
    start = begin()
    moved = {}
    for name in ("plain", "clipped"):
        weights = load_file(tmp_path / name / "model" / "model.safetensors")
        moved[name] = sum(float((weights[key] - start[key]).abs().sum()) for key in weights if key != "steps")
    assert moved["clipped"] < moved["plain"] / 50


def test_every_checkpoint_is_told_of_when_it_is_whole(tmp_path: Path) -> None:
    told = []

    def report(samples: int, row: dict[str, float], folder: str) -> None:
        assert Path(folder, "complete.json").exists()
        told.append((samples, row["samples"] <= 240, Path(folder).name))

    train(recipe(), {}, str(tmp_path), source=ToySource(12, Place.here()), report=report)
    assert told == [(samples, True, f"{samples:012d}") for samples in (60, 120, 180, 240)]


def test_asked_to_stop_it_keeps_a_checkpoint_and_goes_on_later(tmp_path: Path) -> None:
    source, asked = ToySource(12, Place.here()), iter([False, False, True])
    stopped = train(recipe(), {}, str(tmp_path), source=source, stop=lambda: next(asked, False))
    assert (stopped.model, stopped.samples) == (None, 36)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"{36:012d}"]
    assert source.closed == 2
    assert run_on(tmp_path).samples == 240


def run_on(out: Path) -> Trained:
    return train(recipe(), {}, str(out), source=ToySource(12, Place.here()))


def test_bfloat16_is_near_float32_and_keeps_float32_weights(tmp_path: Path, finished: tuple[Trained, Path]) -> None:
    half = run(tmp_path, precision="bfloat16")
    assert half.curve[0]["loss"] != finished[0].curve[0]["loss"]
    assert half.curve[0]["loss"] == pytest.approx(finished[0].curve[0]["loss"], rel=0.02)
    assert load_file(tmp_path / "model" / "model.safetensors")["image.0.linear.weight"].dtype == torch.float32


def test_samples_that_make_no_whole_batch_are_left(tmp_path: Path) -> None:
    assert run(tmp_path, samples=35).samples == 24


def test_patch_dropout_is_the_phase_s_and_refused_where_there_are_no_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = [], Toy.encode

    def encode(self: Toy, batch: Batch) -> Features:
        seen.append(self.patch_dropout)
        return real(self, batch)

    monkeypatch.setattr(Toy, "encode", encode)
    phases = [{"share": 0.5, "patch_dropout": 0.5}, {"share": 0.5}]
    run(tmp_path / "phases", phases=phases, samples=48)
    assert seen[-4:] == [0.5, 0.5, 0, 0]
    monkeypatch.undo()
    with pytest.raises(RecipeError, match=r"patch_dropout = 0\.5: Plain drops no patches; leave it out"):
        run(tmp_path / "none", phases=phases, samples=48, model="tests.models.train.toy.Plain")


def test_the_caller_s_random_numbers_are_its_own(tmp_path: Path) -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    run(tmp_path, samples=12)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("objective", ["models.objectives.contrastive.InfoNCE", "tests.models.train.toy.NextToken"])
def test_no_more_than_a_micro_batch_is_brought_to_the_device(tmp_path: Path, objective: str) -> None:
    source = Counted(12, Place.here())
    made = recipe(objectives=[objective], samples=24, parallel={"micro_batch": 5})
    train(made, {}, str(tmp_path), source=source)
    passes = 2 if "InfoNCE" in objective else 1
    assert source.ready_rows[1:] == [5, 5, 2] * passes * 2  # after the two rows whose operations are counted


@pytest.mark.parametrize("micro", [None, 5])
def test_what_a_model_need_not_see_is_not_shown_to_it(tmp_path: Path, micro: int | None) -> None:
    """Of every piece anew; and what is learned is the same."""
    Cut.shown.clear()
    for name in ("Toy", "Cut"):
        more: dict[str, Any] = {"model": f"tests.models.train.toy.{name}", "parallel": {"micro_batch": micro}}
        run(tmp_path / name, samples=120, **more)
    assert len(set(Cut.shown[-10:])) > 1
    expected, found = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("Toy", "Cut"))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_an_objective_that_needs_a_scalar_which_the_model_lacks_is_refused_before_the_training(tmp_path: Path) -> None:
    sigmoid = "models.objectives.contrastive.Sigmoid"
    with pytest.raises(RecipeError) as error:
        run(tmp_path, objectives=["models.objectives.contrastive.InfoNCE", sigmoid])
    told = f"objectives: {sigmoid} needs logit_bias, and the model has logit_scale; "
    assert str(error.value) == f"{told}take a model that has it, or another objective"
    assert not list(tmp_path.iterdir())
    towers, data = Recipe.load("clip-vit-b32", tiny=True).model.model_dump(), {"texts": {"context": 32}}
    with pytest.raises(RecipeError) as error:
        run(tmp_path, model=towers, objectives=[sigmoid], data=data)
    remedy = "give models.towers.two_towers.TwoTowers a `bias` to begin with, or take another objective"
    assert str(error.value) == told + remedy
    towers["parameters"]["bias"] = -10.0
    with pytest.raises(RecipeError, match=f"{sigmoid} needs image, and"):  # for the toy's rows have no pixels
        run(tmp_path, model=towers, objectives=[sigmoid], data=data)


@pytest.mark.parametrize(
    ("model", "name", "missing", "remedy"),
    [
        ("Toy", "classes.MaskedTokens", "masked_labels, masked_logits", ""),
        ("Toy", "language.NextToken", "logits", ""),
        ("Toy", "distillation.SimilarityDistillation", "teacher_image, teacher_text", ""),  # whatever the data
        ("Centred", "momentum.MomentumContrast", "image_m, text_m", ""),
        ("Slowed", "momentum.MomentumContrast", "image_m, text_m", "`momentum` of the model"),
    ],
)
def test_an_objective_that_reads_a_feature_which_the_model_does_not_give_is_refused_before_the_training(
    tmp_path: Path, model: str, name: str, missing: str, remedy: str
) -> None:
    source = ToySource(12, Place.here())
    objectives = ["models.objectives.contrastive.InfoNCE", f"models.objectives.{name}"]
    made = recipe(model=f"tests.models.train.toy.{model}", objectives=objectives)
    with pytest.raises(RecipeError) as error:
        train(made, {}, str(tmp_path), source=source)
    assert str(error.value) == (
        f"objectives: models.objectives.{name} needs {missing}, and tests.models.train.toy.{model} gives image, "
        f"labels, text, tokens; {f'set {remedy}, or ' if remedy else ''}take another model or objective"
    )
    assert not list(tmp_path.iterdir())
    assert (source.seen, source.closed) == ([0], 1)  # one batch, of which two rows are counted


SLOWED = {"tests.models.train.toy.Slowed": {"momentum": 0.9}}
CONTRAST = "models.objectives.momentum.MomentumContrast"


def test_features_that_one_phase_lacks_are_refused_before_the_training(tmp_path: Path) -> None:
    phases = [{"name": "all", "share": 0.5}, {"name": "text", "share": 0.5, "rates": {"^text": 1}}]
    with pytest.raises(RecipeError, match=f"{CONTRAST} needs image_m, text_m, and"):
        run(tmp_path, model=SLOWED, objectives=[{CONTRAST: {"width": 8, "queue": 24}}], phases=phases)
    assert not list(tmp_path.iterdir())


def test_features_of_another_shape_are_refused_before_checkpoints_are_deleted(tmp_path: Path) -> None:
    run(tmp_path, samples=24, checkpoint_every=12)
    there = sorted(tmp_path.glob("checkpoints/*"))
    assert there
    wider = recipe(model=SLOWED, objectives=[{CONTRAST: {"width": 16, "queue": 24}}])
    told = f"^objectives: {CONTRAST}: width = 16: the model gives 'image' of 8 numbers; set width to 8$"
    with pytest.raises(RecipeError, match=told):
        train(wider, {}, str(tmp_path), source=ToySource(12, Place.here()), resume=False)
    assert sorted(tmp_path.glob("checkpoints/*")) == there


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("momentum.MomentumContrast", {"alpha": 2}, ": alpha = 2: expected a share, 0 to 1"),
        ("caption_tokens.CaptionTokens", {"tokens": -1}, " of {'tokens': -1}: .*[Dd]imension"),
        ("text_conditioned.TextConditioned", {}, ": missing a required argument: 'width'$"),
    ],
)
def test_an_objective_that_cannot_be_built_is_told_in_a_line(
    tmp_path: Path, name: str, parameters: dict[str, float], told: str
) -> None:
    with pytest.raises(RecipeError, match=rf"^objectives: models\.objectives\.{name}{told}") as error:
        run(tmp_path, objectives=[{f"models.objectives.{name}": parameters}])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_rows_that_are_looked_at_first_leave_nothing_in_an_objective(tmp_path: Path) -> None:
    system, works = loop._laid_out(
        recipe(model=SLOWED, objectives=[{CONTRAST: {"width": 8, "queue": 24}}]),
        ToySource(12, Place.here()),
        Place.here(),
        {},
    )
    (contrast,) = system.objectives
    contrast.after_step()
    assert works
    assert not any(value.any() for value in contrast.state_dict().values())
