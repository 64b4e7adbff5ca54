"""What the stand-in learns from is true, what it saves is a model like any other, and what its scores are graded by."""

import math
import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.data.collate import Room

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AlignModel, AutoTokenizer

from infra.miniweb.captions import caption
from infra.miniweb.scenes import SHAPES, TEXTURES, Group
from models.objectives.language import NOT_LEARNT
from models.train.finish import LAST
from pipeline.stage import Device
from stages.embed import ImageEmbeddings, TextEmbeddings
from tests.benchmarks.bench_scores import auroc, compared
from tests.benchmarks.stand_in import training
from tests.benchmarks.stand_in.batches import Captions, Looks, Numbers
from tests.benchmarks.stand_in.lessons import (
    CLASSES,
    cells,
    crowded,
    false_caption,
    lone,
    pixels,
    truth,
)
from tests.benchmarks.stand_in.student import ALIKE, Student, Truth
from tests.benchmarks.stand_in.towers import SIDE, WIDTH, new_tokenizer
from tests.benchmarks.stand_in.training import Effort, teach, trained
from tests.stages.fake_batch import FakeBatch

SCENES = [lone(number) for number in range(40)]


def test_cells_hold_what_the_scene_has_there() -> None:
    group = Group(3, "star", "red", "small", "dotted", 2, 0)
    found = cells(replace(SCENES[0], groups=(group,)))
    said = dict(zip(CLASSES, found[group.cell].tolist(), strict=True))
    assert (said["shape"], said["count"], said["row"], said["column"]) == (SHAPES.index("star"), 2, 2, 0)
    assert said["texture"] == TEXTURES.index("dotted")
    assert (np.delete(found, group.cell, 0)[:, 0] == len(SHAPES)).all()
    assert (np.delete(found, group.cell, 0)[:, 3:] == NOT_LEARNT).all()


def test_a_crowd_has_more_groups_and_never_two_in_a_cell() -> None:
    crowds = [crowded(number) for number in range(40)]
    assert all(len({group.cell for group in crowd.groups}) == len(crowd.groups) for crowd in crowds)
    assert not any(group.colour == crowd.colour for crowd in crowds for group in crowd.groups)
    assert sum(len(crowd.groups) for crowd in crowds) > 3 * sum(len(scene.groups) for scene in SCENES)


def test_false_captions_are_false_and_name_the_same_shapes() -> None:
    dice = random.Random(5)
    for scene in SCENES:
        told = false_caption(scene, dice)
        shapes = {look for claim in told.claims for look in (getattr(claim, "shape", None),) if look}
        assert not told.true_of(scene)
        assert shapes <= {group.shape for group in scene.groups}


def test_the_truth_of_all_pairs_is_that_of_each() -> None:
    dice = random.Random(6)
    captions = [tell(scene, dice) for scene in SCENES for tell in (caption, false_caption)]
    expected = [[told.true_of(scene) for scene in SCENES] for told in captions]
    assert truth(captions, SCENES).tolist() == expected


def test_phrases_are_one_token_and_colours_stay_apart_from_shapes() -> None:
    dice = random.Random(7)
    tokenizer = new_tokenizer([caption(scene, dice).text for scene in SCENES for _ in range(60)])
    told = tokenizer.tokenize("Three red circles in the top left corner")
    assert told == ["three", "red", "circles", "in the top left corner"]


def test_the_loss_of_captions_asks_for_pairs_and_for_the_right_images_among_others() -> None:
    first, second = torch.eye(2)
    true = torch.tensor([[[True, False], [False, True]], [[True, True], [True, False]]])
    features = {"image": torch.eye(2), "text": torch.stack([first, second, second, first]).view(2, 2, 2), "true": true}
    loss = Truth()(features, {"logit_scale": torch.tensor(0.0), "logit_bias": torch.tensor(0.5)})
    pairs = 2 * math.log1p(math.exp(-1.5)) + 2 * math.log1p(math.exp(0.5))
    among = math.log(math.e + 1) - 1  # of the first caption; the third is true of both images
    assert (loss.total.item(), loss.count.item()) == (pytest.approx(pairs + among), 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in that was trained for three steps."""
    folder = tmp_path_factory.mktemp("stand-in")
    teach(folder, Effort(lone=24, crowded=60, looks=64, readings=2, images=12), 1)
    return folder


def test_what_is_trained_is_a_model_like_any_other(folder: Path) -> None:
    images, texts = (kind(weights=str(folder / "model")) for kind in (ImageEmbeddings, TextEmbeddings))
    found = images.open(Device())(FakeBatch(pictures=[np.zeros((50, 90, 3), np.uint8), None]))["image_embedding"]
    assert found.type.list_size == WIDTH
    assert found.is_valid().to_pylist() == [True, False]
    assert texts.gives().field(0).type == found.type
    assert np.load(next(folder.glob("crowded-*.npy"))).shape == (60, SIDE, SIDE, 3)


def test_reading_leaves_the_trunk_as_it_sees(folder: Path) -> None:
    sees, reads = (load_file(folder / name / "model.safetensors") for name in ("seeing/model", "model"))
    last = max(int(name.split(".")[3]) for name in sees if name.startswith("vision_model.encoder.blocks."))
    learned = {name for name in sees if not torch.equal(sees[name], reads[name])}
    assert {name.split(".")[0] for name in learned} == {"text_model", "text_projection", "temperature", "vision_model"}
    seen = [name for name in learned if name.startswith("vision_model.")]
    assert seen
    assert all(name.startswith(f"vision_model.encoder.blocks.{last}.") for name in seen)


def test_the_saved_model_computes_what_was_trained(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    student = Student(tokenizer, str(folder / "model")).train()
    images = np.stack([pixels(scene, SIDE) for scene in SCENES])
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1  # its figures are of these images alone: after three steps all would look the same
    with torch.no_grad():
        student.model.vision_model.encoder.blocks[-1](student.trunk(torch.from_numpy(images)))
        student.logit_scale.fill_(math.log(20))
    student.eval().export(tmp_path)
    model = AlignModel.from_pretrained(tmp_path)
    assert model.temperature.item() == pytest.approx(1 / 20)

    captions = Captions(training.seen(student, images), SCENES, tokenizer, each=2)
    rows = [captions.row(number, random.Random(number), Room(), 0) for number in range(len(SCENES))]
    texts = tokenizer([told.text for _, some in rows for told in some], padding=True, return_tensors="pt")
    assert len(texts["input_ids"]) > ALIKE
    assert len({*texts["attention_mask"].sum(1).tolist()}) > 4
    with torch.inference_mode():
        features = student(captions.batch(rows))
        expected = torch.nn.functional.normalize(model.get_text_features(**texts).pooler_output, dim=1)
    torch.testing.assert_close(features["text"].flatten(0, 1), expected, atol=1e-5, rtol=0)
    embed = ImageEmbeddings(weights=str(tmp_path)).open(Device())
    found = np.array(embed(FakeBatch(pictures=list(images)))["image_embedding"].to_pylist())
    assert (found @ found.T).min() < 0.9
    np.testing.assert_allclose(features["image"], found, atol=5e-3)


def test_half_the_captions_of_a_batch_are_true_of_their_images_and_a_later_start_is_the_same_training(
    folder: Path,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    source = Numbers(len(SCENES), 16, Captions(torch.zeros(len(SCENES), 1), SCENES, tokenizer, each=3), tokenizer)
    with closing(source.open(0)) as began, closing(source.open(16)) as went_on:
        first, second, again = next(began), next(began), next(went_on)
    own = first["true"].diagonal(dim1=0, dim2=2).T
    assert own.tolist() == [[True] * 3 + [False] * 3] * 16
    assert len({*source.keys(0, 32)}) == 32  # another scene at every place, until all were seen
    assert first["input_ids"].tolist() != second["input_ids"].tolist()
    for name, column in second.items():
        assert torch.equal(column, again[name])


def test_what_is_asked_of_an_image_has_its_answers_beside_it(folder: Path) -> None:
    looks = Looks([pixels(scene, SIDE) for scene in SCENES[:2]], SCENES)
    batch = looks.batch([1, 0])
    features = Student(AutoTokenizer.from_pretrained(folder / "model")).encode(batch)
    for number, (name, answers) in enumerate(CLASSES.items()):
        assert features[name].shape == (2, 9, answers)
        true = np.stack([cells(SCENES[row])[:, number] for row in (1, 0)])
        assert np.array_equal(features[f"true {name}"], true)


def test_it_is_trained_once_by_the_same_code_with_the_same_effort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []
    monkeypatch.setattr(training, "KEPT", tmp_path)
    monkeypatch.setattr(training, "teach", lambda folder, *_: begun.append(folder))
    model = trained()
    model.mkdir(parents=True)
    assert trained() == model
    assert begun == [model.parent] * 2  # it was stopped before the end
    (model / LAST).touch()
    assert trained() == model
    assert len(begun) == 2
    assert trained(Effort(readings=1)) != model


def test_an_auroc_counts_ties_half_and_a_threshold_costs_a_twentieth() -> None:
    assert auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert auroc(np.array([1.0, 3.0]), np.array([0.0, 1.0])) == 0.875
    assert auroc(np.zeros(3), np.zeros(4)) == 0.5
    clean, bad = np.linspace(0, 1, 101), np.array([0.0, 0.04, 0.06, 0.5])
    assert compared("mismatch", bad, clean).note == "4 against 101 clean pairs; 50% are below all but 5% of these"
    assert compared("mismatch", bad, clean).value == pytest.approx(1 - bad.mean(), abs=0.01)
