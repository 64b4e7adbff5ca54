"""Classes are what their prompts mean; probabilities are the model's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from models.towers.dual_encoder import DualEncoder
from pipeline.errors import SluiceError
from pipeline.identity import find_resources, generation_key, node_identity
from pipeline.rows import RowBatch
from pipeline.stage import Column, Device
from stages.kit.vectors import vector_type, vectors
from stages.zero_shot import ZeroShot
from tests.models.towers import tiny

SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("a red circle",),
    "squares": ("two blue squares",),
    "cat": ("the cat",),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save("clip", tmp_path_factory.mktemp("clip")))


def judged(stage: ZeroShot, rows_nd: np.ndarray, present: list[bool] | None = None) -> pa.Table:
    here = np.array(present if present is not None else [True] * len(rows_nd), bool)
    found = stage.open(Device())(RowBatch(pa.table({"image_embedding": vectors(rows_nd, here)}), None))
    assert found.schema == stage.gives()
    return found


def embedded(weights: str, *texts: str) -> np.ndarray:
    return DualEncoder.load(Path(weights), "cpu", "float32").embed_texts(texts, 8)


def test_an_image_that_lies_where_a_prompt_lies_is_of_its_class(weights: str) -> None:
    stage = ZeroShot(weights=weights, classes=SHAPES)
    rows_nd = embedded(weights, "two blue squares", "the cat", "a red circle")
    assert judged(stage, rows_nd)["zero_shot"].to_pylist() == ["squares", "cat", "circle"]


def test_probabilities_are_the_softmax_at_the_models_scale(weights: str) -> None:
    stage = ZeroShot(weights=weights, classes=SHAPES, column="shape")
    found = judged(stage, embedded(weights, "no image")).to_pylist()[0]
    cosines = embedded(weights, "no image") @ embedded(weights, *(texts[0] for texts in SHAPES.values())).T
    powers = np.exp(np.exp(2.6592) * cosines[0])
    assert [found[f"shape_{name}"] for name in SHAPES] == pytest.approx((powers / powers.sum()).tolist(), abs=5e-3)
    assert list(found) == ["shape", "shape_circle", "shape_squares", "shape_cat"]


def test_a_model_that_was_trained_with_a_sigmoid_gives_each_class_its_own(tmp_path: Path) -> None:
    folder = str(tiny.save("siglip", tmp_path))
    rows_nd = embedded(folder, "no image")
    cosines = rows_nd @ embedded(folder, *(texts[0] for texts in SHAPES.values())).T
    expected = 1 / (1 + np.exp(-cosines[0]))  # scale 1 and bias 0, as the tiny model was made
    found = judged(ZeroShot(weights=folder, classes=SHAPES), rows_nd).to_pylist()[0]
    assert [found[f"zero_shot_{name}"] for name in SHAPES] == pytest.approx(expected.tolist(), abs=2e-3)
    softly = judged(ZeroShot(weights=folder, classes=SHAPES, probability="softmax"), rows_nd).to_pylist()[0]
    assert sum(softly[f"zero_shot_{name}"] for name in SHAPES) == pytest.approx(1)


def test_a_class_is_the_mean_of_all_its_prompts_in_all_templates(weights: str) -> None:
    classes = {"cat": ("cat", "kitten"), "dog": ("dog",)}
    templates = ("a photo of a {}.", "the {}")
    stage = ZeroShot(weights=weights, classes=classes, templates=templates)
    image = embedded(weights, "no image")
    means = [
        embedded(weights, *(template.replace("{}", word) for word in words for template in templates)).mean(axis=0)
        for words in classes.values()
    ]
    logits = np.exp(2.6592) * np.array([image[0] @ mean / np.linalg.norm(mean) for mean in means])
    expected = np.exp(logits) / np.exp(logits).sum()
    found = judged(stage, image).to_pylist()[0]
    assert [found["zero_shot_cat"], found["zero_shot_dog"]] == pytest.approx(expected.tolist(), abs=5e-3)


def test_the_golden_row_holds_or_the_revision_is_raised(weights: str) -> None:
    assert ZeroShot.revision == 1
    row = judged(ZeroShot(weights=weights, classes=SHAPES), np.eye(16, dtype=np.float32)[:1]).to_pylist()[0]
    assert row.pop("zero_shot") == GOLDEN_CLASS
    assert list(row.values()) == pytest.approx(GOLDEN, abs=5e-3)


GOLDEN_CLASS, GOLDEN = "squares", [0.0334, 0.5975, 0.3692]


def test_an_image_that_was_not_downloaded_is_of_no_class(weights: str) -> None:
    found = judged(ZeroShot(weights=weights, classes=SHAPES), embedded(weights, "the cat"), [False, True]).to_pylist()
    assert set(found[0].values()) == {None}
    assert found[1]["zero_shot"] == "cat"
    none = judged(ZeroShot(weights=weights, classes=SHAPES), np.zeros((0, 16), np.float32), [])
    assert none.num_rows == 0


def test_prompts_may_lie_in_a_file_which_is_then_part_of_the_identity(weights: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_text("circle: [a red circle]\nsquares: [two blue squares]\ncat:\n- the cat\n")
    rows_nd = embedded(weights, "the cat", "a red circle")
    stage = ZeroShot(weights=weights, prompts=str(file))
    assert judged(stage, rows_nd) == judged(ZeroShot(weights=weights, classes=SHAPES), rows_nd)
    before = key(stage)
    file.write_text("circle: [a round thing]\nsquares: [two blue squares]\n")
    assert key(ZeroShot(weights=weights, prompts=str(file))) != before
    assert ZeroShot(weights=weights, prompts=str(file)).gives().names[1:] == ["zero_shot_circle", "zero_shot_squares"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat: [a cat]", "expected two or more classes, each with its prompts"),
        ("- cat", "expected two or more classes, each with its prompts"),
        ("cat: a cat\ndog: [a dog]", "class 'cat' has the prompts 'a cat'; expected a list of texts"),
        ("a cat: [a cat]\ndog: [a dog]", "class 'a cat' becomes a column; use letters, digits and _"),
        ("cat: []\ndog: [a dog]", r"class 'cat' has the prompts \[\]; expected a list of texts"),
        ("cat: [", "is no YAML"),
    ],
)
def test_a_file_that_is_no_list_of_classes_is_refused_in_one_line(
    weights: str, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "prompts.yaml").write_text(text)
    with pytest.raises(SluiceError, match=f"^prompts .*prompts.yaml[^\n]*{message}[^\n]*$"):
        ZeroShot(weights=weights, prompts=str(tmp_path / "prompts.yaml")).gives()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "give either classes or prompts"),
        ({"classes": SHAPES, "prompts": "x.yaml"}, "give either classes or prompts"),
        ({"classes": SHAPES, "templates": ["a photo"]}, "'a photo' has no {} for the prompt"),
        ({"classes": {"cat": ["a cat"]}}, "expected two or more classes"),
    ],
)
def test_parameters_that_say_nothing_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ZeroShot.model_validate({"weights": "w", **parameters})


def test_embeddings_of_another_model_are_refused_before_work_starts(weights: str) -> None:
    stage = ZeroShot(weights=weights, classes=SHAPES)
    stage.check([Column("image_embedding", "scores", "image", vector_type(16))])
    with pytest.raises(SluiceError, match="weights is for embeddings of width 16, those of image_embedding have 32"):
        stage.check([Column("image_embedding", "scores", "image", vector_type(32))])


def key(stage: ZeroShot) -> str:
    return generation_key(node_identity([stage], 0), find_resources([stage]), {}, {})
