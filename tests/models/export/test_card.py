"""The model card says what is known, its code runs, and the hub can read it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from models.evaluate import Metric
from models.export import card
from models.recipe import Recipe
from tests.models.towers import tiny

FUNNEL = [
    {"rule": "downloaded", "rows": 2400, "dropped": 300, "left": 2100},
    {"rule": "a|<b>", "rows": 2100, "dropped": 1, "left": 2099},
]
METRICS = [
    Metric("retrieval", "zeroshot_retrieval", "image_retrieval_recall@5", 0.25, 0.01, 0.01, 2500),
    Metric("tags", "zeroshot_classification", "mean_average_precision", 0.5, None, 0.2, 9),
]


def training(**changed: Any) -> dict[str, Any]:
    return {
        "recipe": Recipe.load("clip-vit-b32", tiny=True).model_dump(mode="json"),
        "lineage": {"shards": {"shards": {"selection": "3d2c0b8e", "samples": 2099}}, "funnels": {"kept": FUNNEL}},
        "code": {"sluice": "0.1.0", "torch": "2.13.0"},
        "samples": 12_800,
        "samples_per_second": 321.5,
        "processes": 1,
        "device": "cpu",
        "skipped": {"no image": 3},
        "curve": [{"samples": 6400, "loss": 3.0}, {"samples": 12_800, "loss": 2.5}],
        **changed,
    }


def exported(folder: Path, kind: str = "clip", **changed: Any) -> Path:
    tiny.save(kind, folder)
    (folder / "training.json").write_text(json.dumps(training(**changed)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("model"))


def test_it_names_recipe_data_funnel_and_figures(folder: Path) -> None:
    card.write(folder, METRICS)
    lines = (folder / "README.md").read_text().splitlines()
    assert "# clip-vit-b32" in lines
    assert "| shards | 1 | 2,099 | `3d2c0b8e` |" in lines
    assert "| downloaded | 2,400 | 300 | 2,100 |" in lines
    assert "| no image | 3 |" in lines
    assert "| retrieval | zeroshot_retrieval | image_retrieval_recall@5 | 25.0% | 1.0% | 1.0% | 2,500 |" in lines
    assert "| tags | zeroshot_classification | mean_average_precision | 50.0% |  | 20.0% | 9 |" in lines
    assert "| loss at the end | 2.5 |" in lines
    assert "| speed | 322 samples/s on 1 × cpu |" in lines
    assert "| code | sluice 0.1.0, torch 2.13.0 |" in lines


def test_the_hub_reads_its_head(folder: Path) -> None:
    card.write(folder, METRICS)
    data: Any = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "zero-shot-image-classification")
    assert data.model_name == "clip-vit-b32"
    found = [(one.dataset_name, one.metric_name, one.metric_value) for one in data.eval_results or ()]
    assert found == [(one.set, one.metric, one.value) for one in METRICS]


def test_what_is_not_known_is_not_made_up(tmp_path: Path) -> None:
    said = card.text(exported(tmp_path, lineage={}, skipped={}))
    assert "Nothing is known of how these pairs were selected" in said
    assert "How well it does" not in said
    assert "could not be used" not in said
    head: Any = ModelCard(said).data
    assert head.eval_results is None


def test_of_the_best_checkpoint_it_tells_what_that_one_saw_and_lost(tmp_path: Path) -> None:
    said = card.text(exported(tmp_path, exported=9600))
    assert "weights after 9,600 of 12,800 image-text pairs (the best checkpoint), seen in batches of" in said
    assert "| loss when these weights were kept | 3 |" in said.splitlines()
    assert "loss at the end" not in said


@pytest.mark.parametrize("turns", ["apart", None])
def test_who_has_learnt_single_questions_says_so(tmp_path: Path, turns: str | None) -> None:
    settings = ["data.texts.turns=apart"] if turns else []
    recipe = Recipe.load("llava", tiny=True, overrides=settings).model_dump(mode="json")
    told = card.text(exported(tmp_path, recipe=recipe))
    assert ("| turns | each for itself: ask one question at a time |" in told) == (turns is not None)


def test_words_of_others_are_text(folder: Path) -> None:
    assert "| a\\|&lt;b> | 2,100 | 1 | 2,099 |" in card.text(folder).splitlines()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_code_that_it_shows_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(exported(tmp_path, kind))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save("picture.jpg")
    code = card.text(tmp_path).partition("```python\n")[2].partition("```")[0]
    capsys.readouterr()
    exec(code.replace("THIS FOLDER", "."), {})
    shown = capsys.readouterr().out
    assert shown.startswith("tensor([")
    assert shown.count(",") == 1


def test_a_folder_that_no_training_exported_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the folder that a training exported"):
        card.write(tmp_path)
