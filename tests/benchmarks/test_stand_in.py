"""What the stand-in learns from is true, what it saves is a model like any other, and what its scores are graded by."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.miniweb.captions import Caption, Look, Relation, caption
from infra.miniweb.scenes import SHAPES, TEXTURES, Group
from pipeline.stage import Device
from stages.embed import ImageEmbeddings, TextEmbeddings
from tests.benchmarks.bench_scores import auroc, compared
from tests.benchmarks.stand_in import training
from tests.benchmarks.stand_in.lessons import CLAIMS, CLASSES, cells, claimed, crowded, false_caption, lone, truth
from tests.benchmarks.stand_in.towers import SIDE, WIDTH, new_tokenizer
from tests.benchmarks.stand_in.training import Effort, train
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


def test_what_a_caption_says_of_a_shape() -> None:
    look = Look("heart", "blue", count=2, place="on the right")
    relation = Relation(Look("star", "red"), "above", Look("cross", "green"))
    said = claimed(Caption("", (look, relation)))
    of = {shape: dict(zip(CLAIMS, said[SHAPES.index(shape)].tolist(), strict=True)) for shape in SHAPES}
    assert {shape for shape in SHAPES if of[shape]["named"]} == {"heart", "star", "cross"}
    assert of["heart"] == {
        "named": 1,
        "colour": 2,
        "count": 1,
        "size": 2,
        "texture": 4,
        "row": 1,
        "column": 2,
        "role": 4,
    }
    assert (of["star"]["role"], of["cross"]["role"]) == (2, 3)
    assert set(of["circle"].values()) == {0, NOT_LEARNT}


def test_phrases_are_one_token_and_colours_stay_apart_from_shapes() -> None:
    dice = random.Random(7)
    tokenizer = new_tokenizer([caption(scene, dice).text for scene in SCENES for _ in range(60)])
    told = tokenizer.tokenize("Three red circles in the top left corner")
    assert told == ["three", "red", "circles", "in the top left corner"]


def test_what_is_trained_is_a_model_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    effort = Effort(lone=24, crowded=60, looks=64, readings=2, images=12)
    said: list[str] = []
    train(tmp_path / "model", tmp_path / "lessons", effort, 1, said.append)
    images, texts = (kind(weights=str(tmp_path / "model")) for kind in (ImageEmbeddings, TextEmbeddings))
    found = images.open(Device())(FakeBatch(pictures=[np.zeros((50, 90, 3), np.uint8), None]))["image_embedding"]
    assert found.type.list_size == WIDTH
    assert found.is_valid().to_pylist() == [True, False]
    assert texts.gives().field(0).type == found.type
    monkeypatch.setattr(training, "see", None)  # what it learned to see is kept: a second try goes on from there
    train(tmp_path / "again", tmp_path / "lessons", effort, 1, said.append)
    assert np.load(next((tmp_path / "lessons").glob("crowded-*.npy"))).shape == (60, SIDE, SIDE, 3)


def test_an_auroc_counts_ties_half_and_a_threshold_costs_a_twentieth() -> None:
    assert auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert auroc(np.array([1.0, 3.0]), np.array([0.0, 1.0])) == 0.875
    assert auroc(np.zeros(3), np.zeros(4)) == 0.5
    clean, bad = np.linspace(0, 1, 101), np.array([0.0, 0.04, 0.06, 0.5])
    assert compared("mismatch", bad, clean).note == "4 against 101 clean pairs; 50% are below all but 5% of these"
    assert compared("mismatch", bad, clean).value == pytest.approx(1 - bad.mean(), abs=0.01)
