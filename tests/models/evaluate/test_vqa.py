"""Questions about images: every published layout is read, and what can be had without looking stands beside it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from models.captioners.decoding import Written
from models.evaluate.run import evaluate
from models.evaluate.sets import SetError, found_in, layout_of
from models.evaluate.vqa import answering, best_guesses, scores, shuffled
from models.evaluate.vqa_sets import BRIEF, Asked, Question, from_shards, read


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, str):
        Image.new("RGB", (4, 4), value).save(path)
    else:
        path.write_text(json.dumps(value))


def vqav2(folder: Path) -> None:
    asked = [{"question_id": 10 + number, "image_id": 7 + number, "question": "What is it?"} for number in range(2)]
    given = [
        [{"answer": "cat", "answer_id": n} for n in range(10)],
        [{"answer": "no", "answer_id": n} for n in range(10)],
    ]
    told = [
        {"question_id": 10 + number, "answers": answers, "answer_type": kind, "question_type": "what is"}
        for number, (answers, kind) in enumerate(zip(given, ("other", "yes/no"), strict=True))
    ]
    put(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    put(folder / "v2_mscoco_val2014_annotations.json", {"annotations": told[::-1]})
    put(folder / "val2014/COCO_val2014_000000000007.jpg", "red")
    put(folder / "val2014/COCO_val2014_000000000008.jpg", "blue")


def gqa(folder: Path) -> None:
    types = {"structural": "verify", "semantic": "attr", "detailed": "attr"}
    asked = {"question": "Is it red?", "imageId": "n7", "answer": "yes", "types": types}
    put(folder / "testdev_balanced_questions.json", {"201": asked})
    for other in ("train", "val"):  # papers report testdev
        put(folder / f"{other}_balanced_questions.json", {})
    put(folder / "images/n7.jpg", "red")


def scienceqa(folder: Path) -> None:
    problem = {"question": "Which?", "choices": ["salt", "sand"], "answer": 1, "hint": "Look.", "image": "image.png"}
    problem["subject"] = "natural science"
    put(folder / "problems.json", {"3": problem, "4": {**problem, "image": None}, "5": problem})
    put(folder / "pid_splits.json", {"test": ["3", "4"], "train": ["5"]})
    put(folder / "test/3/image.png", "red")


def vizwiz(folder: Path) -> None:
    answers = [{"answer": "unanswerable", "answer_confidence": "yes"}] * 10
    one = {"image": "VizWiz_val_0.jpg", "question": "What?", "answers": answers, "answer_type": "unanswerable"}
    put(folder / "Annotations/val.json", [one])
    put(folder / "val/VizWiz_val_0.jpg", "red")


LAYOUTS = {"vqav2": vqav2, "gqa": gqa, "scienceqa": scienceqa, "vizwiz": vizwiz}
KNOWN = {
    "vqav2": ("cat", "other", "what is", "What is it?\nAnswer the question using"),
    "gqa": ("yes", "verify", "attr", "Is it red?\nAnswer"),
    "scienceqa": ("sand", "natural science", "natural science", "Look.\nWhich?\nA. salt\nB. sand\nAnswer with the"),
    "vizwiz": ("unanswerable", "unanswerable", "unanswerable", "What?\nWhen the provided information"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_set_is_known_by_its_files_and_read(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path)
    assert layout_of(str(tmp_path)) == layout
    assert found_in(str(tmp_path)) == {tmp_path.name: str(tmp_path)}
    asked = read(layout, str(tmp_path))
    first = asked.questions[0]
    answer, kind, group, begins = KNOWN[layout]
    assert (first.answers[0], first.kind, first.group) == (answer, kind, group)
    assert first.text.startswith(begins)
    assert Image.open(io.BytesIO(asked.load(first.image))).size == (4, 4)
    assert len(asked.questions) == (2 if layout == "vqav2" else 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_an_image_that_is_not_there_and_a_file_that_is_not_whole_a_line_tells(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path)
    for image in [*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.png")]:
        image.unlink()
    asked = read(layout, str(tmp_path))
    with pytest.raises(SetError, match=r"no image .* fetch the images, too"):
        asked.load(asked.questions[0].image)
    for file in tmp_path.rglob("*.json"):
        file.write_text("[1, 2]")
    with pytest.raises(SetError, match=f"is not as {layout} publishes it"):
        read(layout, str(tmp_path))


def shard(folder: Path, samples: Sequence[Mapping[str, Any]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number, said in enumerate(samples):
            picture = io.BytesIO()
            Image.new("RGB", (4, 4), (number, 0, 0)).save(picture, "PNG")
            for ending, data in (("png", picture.getvalue()), ("json", json.dumps(said).encode())):
                entry = tarfile.TarInfo(f"s{number}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return str(folder / "0.tar")


def test_shards_ask_one_question_of_an_image_or_several(tmp_path: Path) -> None:
    one = {"question": "How many?", "answers": ["2"], "type": "count"}
    asked = from_shards(
        "q", [shard(tmp_path, [one, {"questions": [one, {**one, "type": "more", "group": "many"}]}])], None
    )
    assert [(q.image, q.kind, q.group) for q in asked.questions] == [
        ("s0", "count", "count"),
        ("s1", "count", "count"),
        ("s1", "more", "many"),
    ]
    assert asked.questions[0].text == BRIEF.replace("{question}", "How many?")
    bare = from_shards("q", [str(tmp_path / "0.tar")], "Q: {question}")
    assert bare.questions[0].text == "Q: How many?"


@pytest.mark.parametrize("said", [{"question": "?"}, {"question": "?", "answers": []}, [], 3, {"answers": ["a"]}])
def test_a_sample_that_asks_nothing_is_named(said: Any, tmp_path: Path) -> None:
    with pytest.raises(SetError, match="the json of sample s0"):
        from_shards("q", [shard(tmp_path, [said])], None)


def question(number: int, answer: str, kind: str = "colour", **more: Any) -> Question:
    return Question(str(number), f"i{number}", f"q{number}", (answer,), kind, kind, **more)


def asked(questions: Sequence[Question]) -> Asked:
    """Every image's one pixel says which it is."""

    def load(image: str) -> bytes:
        sink = io.BytesIO()
        Image.new("RGB", (1, 1), (int(image[1:]), 0, 0)).save(sink, "PNG")
        return sink.getvalue()

    return Asked("set", tuple(questions), load)


def test_a_model_that_looks_beats_its_shuffled_images_and_the_best_guess() -> None:
    colours = ["red", "blue", "red", "green", "red", "blue"]
    known = {f"i{number}": colour for number, colour in enumerate(colours)}
    found = asked([question(number, colour) for number, colour in enumerate(colours)])
    rows = {row.metric: row for row in scores(found, lambda questions, images: [known[image] for image in images])}
    assert rows["vqa_accuracy"].value == 1
    assert rows["vqa_accuracy"].chance == 0.5, "red, three of six"
    turned = [colours[(number + 3) % 6] for number in range(6)]
    expected = sum(one == other for one, other in zip(colours, turned, strict=True)) / 6
    assert rows["vqa_accuracy_shuffled"].value == pytest.approx(expected)
    assert rows["exact_match"].samples == 6
    assert "vqa_accuracy/colour" not in rows, "there is one kind only"


def test_what_is_transparent_lies_over_white_as_in_training() -> None:
    """And what has 16 bits is scaled, not cut off."""
    pictures = {}
    for name, picture in {
        "clear": Image.new("RGBA", (8, 6), (200, 0, 0, 0)),
        "bits": Image.fromarray(np.full((6, 8), 128 * 257, np.uint16)),
    }.items():
        sink = io.BytesIO()
        picture.save(sink, "PNG")
        pictures[name] = sink.getvalue()
    seen: list[np.ndarray] = []

    def write(pixels: Sequence[np.ndarray], keys: Sequence[str], *_: Any) -> list[list[Written]]:
        seen.extend(pixels)
        return [[Written("red", None)] for _ in keys]

    asking = Asked("set", (question(0, "red"), question(1, "red")), pictures.__getitem__)
    answer = answering(cast(Any, SimpleNamespace(write=write)), asking, 4)
    assert answer(asking.questions, ["clear", "bits"]) == ["red", "red"]
    assert [one.shape for one in seen] == [(6, 8, 3)] * 2
    assert (seen[0] == 255).all()
    assert (seen[1] == 128).all()


def test_every_kind_has_numbers_of_its_own() -> None:
    found = asked([question(0, "red"), question(1, "blue"), question(2, "2", "count"), question(3, "2", "count")])
    rows = {row.metric: row for row in scores(found, lambda questions, images: ["2"] * len(questions))}
    assert (rows["vqa_accuracy/count"].value, rows["vqa_accuracy/count"].chance) == (1, 1)
    assert (rows["vqa_accuracy/colour"].value, rows["vqa_accuracy/colour"].chance) == (0, 0.5)
    assert (rows["vqa_accuracy"].value, rows["vqa_accuracy"].chance) == (0.5, 0.75)
    assert [rows[f"vqa_accuracy/{kind}_shuffled"].samples for kind in ("colour", "count")] == [2, 2]


def test_no_question_keeps_its_image_and_none_gets_one_of_another_kind() -> None:
    questions = [question(number, "a", "one" if number % 2 else "two") for number in range(9)]
    turned = shuffled(questions)
    for one, image in zip(questions, turned, strict=True):
        assert image != one.image
        assert int(image[1:]) % 2 == int(one.image[1:]) % 2
    assert sorted(turned) == sorted(one.image for one in questions)
    assert shuffled([question(0, "a")]) == ["i0"]


def test_of_choices_the_best_guess_is_a_letter() -> None:
    """Salt is right most often, and B."""
    said = [("salt", ("sand", "salt")), ("iron", ("gold", "iron")), ("salt", ("salt", "sand"))]
    questions = [question(number, right, choices=choices) for number, (right, choices) in enumerate(said)]
    assert best_guesses(questions) == ["B"] * 3
    rows = {row.metric: row for row in scores(asked(questions), lambda questions, images: ["(B)"] * len(questions))}
    assert rows["vqa_accuracy"].value == pytest.approx(2 / 3)


def test_a_folder_that_cannot_answer_is_told_of(tmp_path: Path) -> None:
    vizwiz(tmp_path / "vizwiz")
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="holds no model"):
        evaluate(tmp_path / "model", {"vizwiz": str(tmp_path / "vizwiz")})
