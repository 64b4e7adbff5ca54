"""An evaluation set may be larger than memory: its images come, are looked at, and go."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from infra.miniweb import sets
from models.data.images import save_preprocessor
from models.evaluate import Metric, evaluate, probes
from models.evaluate.run import _Reader
from models.recipe import Images
from models.towers.preprocess import Pixels
from models.towers.vit import VisionClassifier
from tests.models.captioners import tiny as blip
from tests.models.evaluate.test_single import VIT, of_classes
from tests.models.towers import tiny

SAMPLES, SOME = 24, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sets")
    sets.write(place, samples=SAMPLES, names=("retrieval", "binding", "shapes"), captions=2)
    of_classes(place / "own", ["dark", "light"])
    return place


def classifier(folder: Path) -> Path:
    VisionClassifier(VIT, classes=["dark", "light"]).eval().export(folder)
    save_preprocessor(Images(side=32), folder)
    return folder


MODELS: dict[str, tuple[Callable[[Path], Path], tuple[str, ...], set[str]]] = {
    "clip": (
        lambda folder: tiny.save("clip", folder),
        ("retrieval", "binding", "shapes"),
        {"zeroshot_retrieval", "image_caption_selection", "zeroshot_classification", "linear_probe", "knn"},
    ),
    "filter": (
        blip.matcher,
        ("retrieval", "binding"),
        {"zeroshot_retrieval", "image_caption_selection", "image_text_matching", "reranked_retrieval"},
    ),
    "captioner": (blip.captioner, ("retrieval",), {"captioning"}),
    "classifier": (classifier, ("own",), {"classification", "linear_probe", "knn"}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_only_some_images_of_a_set_are_held_at_once_and_the_figures_are_the_same(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(probes, "STRENGTHS", [1.0])
    save, names, tasks = MODELS[kind]
    model, given = save(tmp_path), {name: str(folder / name) for name in names}

    def figures() -> list[Metric]:
        return evaluate(model, given, batch=SOME, threads=1)

    whole = figures()
    held: list[weakref.ref[Pixels]] = []
    most = 0
    prepare = _Reader._pixels

    def counted(self: _Reader, key: str, data: bytes) -> Pixels:
        nonlocal most
        made = np.array(prepare(self, key, data))
        held.append(weakref.ref(made))
        most = max(most, sum(ref() is not None for ref in held))
        return made

    monkeypatch.setattr(_Reader, "_pixels", counted)
    monkeypatch.setattr("models.evaluate.run.CHUNK", SOME)
    found = figures()
    assert {metric.task for metric in found} == tasks
    assert len(held) >= SAMPLES
    assert most <= 3 * SOME, "what the model looks at, what comes next, and what it looked at last"
    for one, other in zip(whole, found, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-6)
