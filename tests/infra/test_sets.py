"""Evaluation sets lie as CLIP_benchmark reads them, byte for byte the same each time."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from infra.miniweb import questions, sets
from infra.miniweb.scenes import SHAPES

pytestmark = pytest.mark.filterwarnings(  # webdataset leaves the closing of tars to the collector
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sets")
    sets.write(place, samples=12, seed=3, captions=2)
    return place


def read(folder: Path, *members: str) -> list[tuple[bytes, ...]]:
    """As CLIP_benchmark's `build_wds_dataset` does, without decoding."""
    shards = int((folder / "nshards.txt").read_text())
    pattern = f"{folder}/{{0..{shards - 1}}}.tar"
    return list(webdataset.WebDataset(pattern, shardshuffle=False, empty_check=False).to_tuple(*members))


@pytest.mark.parametrize("name", ["grounds", "colours", "shapes"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_set_for_classification_has_classes_templates_and_labels(folder: Path, name: str, split: str) -> None:
    classes = (folder / name / "classnames.txt").read_text().splitlines()
    templates = (folder / name / "zeroshot_classification_templates.txt").read_text().splitlines()
    assert all(template.count("{c}") == 1 for template in templates)
    assert not (folder / name / "dataset_type.txt").exists()
    found = read(folder / name / split, "jpg", "cls")
    asked = sets.ASKED[name]
    for number, (image, label) in enumerate(found):
        question = questions.first(name if split == "test" else f"{name}/train", 3, number, asked)
        assert classes[int(label)] == question.label
        assert Image.open(io.BytesIO(image)).size == (question.scene.width, question.scene.height)
    assert len(found) == 12


def test_a_set_for_retrieval_has_captions_by_lines(folder: Path) -> None:
    assert (folder / "retrieval/dataset_type.txt").read_text() == "retrieval\n"
    asked = list(questions.retrieval(3, 12, 2))
    found = read(folder / "retrieval/test", "jpg", "txt")
    assert [text.decode().splitlines() for _, text in found] == [[c.text for c in q.captions] for q in asked]


@pytest.mark.parametrize(("name", "lines"), [("binding", 2), ("counting", 4), ("relations", 2)])
def test_a_set_for_choosing_has_the_right_caption_first(folder: Path, name: str, lines: int) -> None:
    assert (folder / name / "dataset_type.txt").read_text() == "image_caption_selection\n"
    for number, (_, text) in enumerate(read(folder / name / "test", "jpg", "txt")):
        captions = text.decode().splitlines()
        assert len(captions) == lines
        assert captions[0] == questions.first(name, 3, number, sets.ASKED[name]).captions[0].text


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_bytes_are_the_same_each_time_and_with_workers(folder: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as workers:
        sets.write(tmp_path, samples=12, seed=3, captions=2, workers=workers)
    assert contents(tmp_path) == contents(folder)


def test_the_splits_and_the_seeds_share_no_image(folder: Path, tmp_path: Path) -> None:
    assert sets.main([str(tmp_path), "--samples", "12", "--seed", "4", "--sets", "shapes"]) == 0
    images = [read(place / "shapes" / split, "jpg") for place in (folder, tmp_path) for split in ("train", "test")]
    assert len({image for split in images for (image,) in split}) == 4 * 12
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_many_samples_take_several_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "SHARD", 5)
    sets.write(tmp_path, samples=12, names=["shapes"])
    assert (tmp_path / "shapes/test/nshards.txt").read_text() == "3\n"
    labels = [int(label) for (label,) in read(tmp_path / "shapes/test", "cls")]
    assert labels == [SHAPES.index(questions.first("shapes", 0, n, questions.shape).label or "") for n in range(12)]
    assert np.unique(labels).size > 3


@pytest.mark.parametrize("said", [["--samples", "0"], ["--samples", "many"], ["--sets", "flowers"]])
def test_what_cannot_be_written_is_said(tmp_path: Path, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sets.main([str(tmp_path / "x"), *said])
    assert said[1] in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
