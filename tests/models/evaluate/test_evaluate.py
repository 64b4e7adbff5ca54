"""A model on sets, from files to figures."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fsspec
import numpy as np
import pytest
import webdataset
from click.testing import CliRunner
from PIL import Image

from infra.miniweb import sets
from models.evaluate import Metric, SetError, evaluate, probes, retrieval, selection, zero_shot
from models.evaluate.__main__ import main
from models.evaluate.run import _Reader
from models.evaluate.sets import EvaluationSet, found_in
from models.recipe import Recipe
from models.towers.dual_encoder import DualEncoder
from models.towers.preprocess import Pixels
from tests.models.towers import tiny

SAMPLES = 18


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("clip", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sets")
    sets.write(place, samples=SAMPLES, names=("shapes", "retrieval", "counting"), captions=2)
    return place


@pytest.fixture(autouse=True)
def _one_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests look at does not depend on the search for it."""
    monkeypatch.setattr(probes, "STRENGTHS", [1.0])


@pytest.fixture
def encoder(model: Path) -> DualEncoder:
    return DualEncoder.load(model, "cpu", "float32")


def read(folder: Path, answer: str) -> list[tuple[Pixels, bytes]]:
    """Pictures and answers, by another reader."""
    tar = webdataset.tariterators.tar_file_expander([{"stream": (folder / "test/0.tar").open("rb"), "url": ""}])
    samples = webdataset.tariterators.group_by_keys(tar)
    return [(np.asarray(Image.open(io.BytesIO(sample["jpg"])).convert("RGB")), sample[answer]) for sample in samples]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_figures_are_those_of_embedding_everything_by_hand(model: Path, folder: Path, encoder: DualEncoder) -> None:
    found = evaluate(model, {name: str(folder / name) for name in ("shapes", "retrieval", "counting")})
    by_hand: list[Metric] = []
    images, labels = zip(*read(folder / "shapes", "cls"), strict=True)
    names = (folder / "shapes/classnames.txt").read_text().split()
    prompts = (folder / "shapes/zeroshot_classification_templates.txt").read_text().splitlines()
    classes = zero_shot.class_rows(encoder, names, prompts, 64)
    scores = encoder.embed_images(images, 64) @ classes.T
    by_hand += zero_shot.accuracies("shapes", zero_shot.TASK, scores, np.array([int(label) for label in labels]))
    for name, score in (("retrieval", retrieval.recalls), ("counting", selection.accuracy)):
        images, texts = zip(*read(folder / name, "txt"), strict=True)
        lines = [text.decode().splitlines() for text in texts]
        owners = np.repeat(np.arange(SAMPLES), len(lines[0]))
        texts_md = encoder.embed_texts([line for of_image in lines for line in of_image], 64)
        by_hand += score(name, encoder.embed_images(images, 64), texts_md, owners)
    probed = [metric for metric in found if metric.task in ("linear_probe", "knn")]
    assert {metric.set for metric in probed} == {"shapes"}
    assert len(probed) == 6
    assert [metric for metric in found if metric not in probed] == by_hand


def test_batches_chunks_and_threads_change_nothing(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {name: str(folder / name) for name in ("shapes", "retrieval", "counting")}
    whole = evaluate(model, given)
    monkeypatch.setattr("models.evaluate.run.CHUNK", 5)
    for one, other in zip(whole, evaluate(model, given, batch=4, threads=1), strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-6)


def test_only_the_tasks_that_are_asked_for(model: Path, folder: Path) -> None:
    given = {name: str(folder / name) for name in ("shapes", "retrieval")}
    assert {metric.task for metric in evaluate(model, given, tasks=["knn"])} == {"knn"}
    with pytest.raises(SetError, match="task image_caption_selection: none of the sets shapes, retrieval is for it"):
        evaluate(model, given, tasks=["image_caption_selection"])


def test_sets_are_read_from_any_store(model: Path, folder: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(folder / "shapes"), "/sets/shapes", recursive=True)
    try:
        assert found_in("memory://sets") == {"shapes": "memory://sets/shapes"}
        here = evaluate(model, {"shapes": str(folder / "shapes")}, tasks=["zeroshot_classification"])
        assert evaluate(model, found_in("memory://sets"), tasks=["zeroshot_classification"]) == here
    finally:
        store.rm("/sets", recursive=True)


def test_several_labels_an_image_give_the_mean_average_precision(model: Path, tmp_path: Path) -> None:
    sets.write(tmp_path, samples=8, names=["shapes"])
    folder = tmp_path / "shapes"
    (folder / "dataset_type.txt").write_text("multilabel\n")
    dice = np.random.default_rng(0)

    def several(name: str, data: bytes) -> tuple[str, bytes]:
        if not name.endswith("cls"):
            return name, data
        sink = io.BytesIO()
        np.save(sink, dice.random(9) < 0.5)
        return name.replace("cls", "npy"), sink.getvalue()

    rewritten(folder / "test/0.tar", several)
    (metric,) = evaluate(model, {"shapes": str(folder)})
    assert metric.metric == "mean_average_precision"
    assert 0.3 < metric.value < 0.8


# -- what cannot be read -----------------------------------------------------------------------------------------------


def rewritten(tar: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> None:
    """The tar with every member changed; None leaves one out."""
    with tarfile.open(tar) as source:
        members = [(m.name, source.extractfile(m).read()) for m in source if m.isreg()]  # type: ignore[union-attr]
    with tarfile.open(tar, "w") as sink:
        for changed in (change(name, data) for name, data in members):
            if changed is not None:
                entry = tarfile.TarInfo(changed[0])
                entry.size = len(changed[1])
                sink.addfile(entry, io.BytesIO(changed[1]))


def of_sample_2(ending: str, data: bytes | None) -> Callable[[Path], None]:
    def change(name: str, there: bytes) -> tuple[str, bytes] | None:
        if name != f"s0000002.{ending}":
            return name, there
        return None if data is None else (name, data)

    return lambda folder: rewritten(folder / "test/0.tar", change)


def cut(folder: Path) -> None:
    tar = folder / "test/0.tar"
    tar.write_bytes(tar.read_bytes()[:-15_000])


def written(file: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(text)


def without(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).unlink()


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("shapes", of_sample_2("cls", b"9"), "sample s0000002 is of class '9'; expected 0 to 8"),
        ("shapes", of_sample_2("cls", b"heart"), "is of class 'heart'"),
        ("shapes", of_sample_2("cls", None), "s0000002 has no .cls; it has jpg"),
        ("shapes", of_sample_2("jpg", b"\xff\xd8\xff\xe0 no picture"), "the image of sample s0000002"),
        ("shapes", of_sample_2("jpg", None), "s0000002: no image"),
        ("shapes", cut, "the file ends"),
        ("shapes", without("test/0.tar"), "0.tar"),
        ("shapes", without("classnames.txt"), "no classnames.txt; write one class a line"),
        ("shapes", without("zeroshot_classification_templates.txt"), "no zeroshot_classification_templates.txt"),
        ("shapes", written("zeroshot_classification_templates.txt", "a circle\n"), "template 'a circle' has no {c}"),
        ("shapes", without("test/nshards.txt"), "has no test/nshards.txt"),
        ("shapes", written("test/nshards.txt", "many"), "nshards.txt says 'many'"),
        ("shapes", written("dataset_type.txt", "flowers"), "dataset_type.txt says 'flowers'; expected classification"),
        ("shapes", written("dataset_type.txt", "multilabel"), "s0000000 has no .npy; it has"),
        ("retrieval", of_sample_2("txt", b" \n"), "sample s0000002 has 0 captions; expected 1 or more"),
        ("counting", of_sample_2("txt", b"one"), "sample s0000002 has 1 captions; expected 2 or more"),
    ],
)
def test_a_set_that_cannot_be_read_whole_is_an_error_of_one_line(
    encoder: DualEncoder, tmp_path: Path, name: str, damage: Callable[[Path], object], said: str
) -> None:
    """A mean over fewer samples would be a figure of another set."""
    sets.write(tmp_path, samples=4, names=[name])
    damage(tmp_path / name)
    with pytest.raises(SetError) as caught:
        evaluate(encoder, {name: str(tmp_path / name)})
    assert str(caught.value).startswith(f"set {name}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_captions_are_lines_and_empty_ones_are_none(tmp_path: Path) -> None:
    sets.write(tmp_path, samples=1, names=["retrieval"])
    one = EvaluationSet.open("retrieval", str(tmp_path / "retrieval"))
    assert one.captions("s", b"a cat\n\n a dog\r\n") == ["a cat", " a dog"]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_shows_a_table_and_writes_rows(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new/metrics.json"
    result = CliRunner().invoke(main, [str(model), str(folder), "--task", "zeroshot_retrieval", "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["metrics"]
    expected = evaluate(model, {"retrieval": str(folder / "retrieval")})
    assert [Metric(**row) for row in rows] == expected
    shown = next(line.split() for line in result.output.splitlines() if "image_retrieval_recall@10" in line)
    assert shown[:3] == ["retrieval", "zeroshot_retrieval", "image_retrieval_recall@10"]
    assert shown[3] == f"{expected[2].value:.1%}"
    assert shown[-2:] == ["55.6%", "36"]  # chance: 10 of 18 images


def test_the_command_writes_figures_into_the_card_of_a_model_that_was_trained_here(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "model"
    shutil.copytree(model, copied)
    arguments = [str(copied), str(folder / "retrieval"), "--card"]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code != 0
    assert "training.json cannot be read" in refused.output
    recipe = Recipe.load("clip-vit-b32", tiny=True).model_dump(mode="json")
    (copied / "training.json").write_text(json.dumps({"recipe": recipe, "samples": 5, "curve": [], "device": "cpu"}))
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 0, told.output
    assert "| retrieval | zeroshot_retrieval | image_retrieval_recall@10 |" in (copied / "README.md").read_text()


def test_the_command_takes_a_model_from_any_store_and_leaves_its_card_there(model: Path, folder: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(model), "/clip/model", recursive=True)
    recipe = Recipe.load("clip-vit-b32", tiny=True).model_dump(mode="json")
    said = {"recipe": recipe, "samples": 5, "curve": [], "device": "cpu"}
    store.pipe_file("/clip/model/training.json", json.dumps(said).encode())
    try:
        arguments = [str(folder / "retrieval"), "--card"]
        told = CliRunner().invoke(main, ["memory://clip/model", *arguments])
        assert told.exit_code == 0, told.output
        assert "| retrieval | zeroshot_retrieval |" in store.cat_file("/clip/model/README.md").decode()
        refused = CliRunner().invoke(main, ["memory://clip", *arguments])
        assert "training.json cannot be read" in refused.output
    finally:
        store.rm("/clip", recursive=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{model}/none", "{sets}"], "expected that of a model, such as the folder `model` of a training"),
        (["{model}", "{model}"], "is no evaluation set and holds none"),
        (["{sets}", "{sets}"], "holds no model that transformers knows"),
        (["{model}", "{sets}", "--task", "flowers"], "'flowers' is not one of"),
        (["{model}"], "Missing argument 'SET...'"),
        (["{model}", "{sets}", "{sets}/retrieval"], "two sets are called 'retrieval'"),
    ],
)
def test_what_the_command_cannot_do_it_says(model: Path, folder: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, [one.format(model=model, sets=folder) for one in arguments])
    assert result.exit_code != 0
    assert said in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_what_is_transparent_lies_over_white_as_in_training() -> None:
    sink = io.BytesIO()
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(sink, "PNG")
    seen: list[np.ndarray] = []
    encoder = SimpleNamespace(preprocessing=seen.append)
    _Reader(encoder, *cast(Any, (SimpleNamespace(name="toys"), 1, None)))._pixels("0", sink.getvalue())
    assert (seen[0] == 255).all()
