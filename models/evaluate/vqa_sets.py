"""Questions about images, as those who ask them publish them, on any store that fsspec reaches.

    questions/dataset_type.txt                      `vqa`; tars as the other sets have them (`models.evaluate.sets`)
    questions/vqa_prompt.txt                        how a question is put, `{question}` where it stands
    questions/test/0.tar                            `{key}.jpg` with `{key}.json`: {"question", "answers", "type"}

    vqav2/v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/COCO_val2014_….jpg
    gqa/testdev_balanced_questions.json, images/….jpg
    scienceqa/problems.json, pid_splits.json, test/<id>/image.png
    vizwiz/Annotations/val.json, val/….jpg

Of ScienceQA the questions of the test split that have an image are asked, which papers call IMG.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import fsspec

from models.data.images import image_of
from models.data.shards import Damaged, DataError, Samples
from models.evaluate.sets import PUBLISHED, SetError, layout_of, names_in

BRIEF = "{question}\nAnswer the question using a single word or phrase."
"""How LLaVA-1.5 puts a question with a short answer (Liu et al. 2024, section 3.3)."""
LETTER = "{question}\n{choices}\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = (
    "{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
    "Answer the question using a single word or phrase."
)
"""How it puts those of ScienceQA and VizWiz."""
SPLITS = ("testdev", "val", "test", "train")
"""Of which several lie in one folder, the first counts: papers report GQA's testdev, and VQAv2's has no answers."""


@dataclass(frozen=True)
class Question:
    """A question about an image, and what people answered."""

    key: str
    image: str
    """What the image is called in its set: the same name, the same image."""
    text: str
    """As it is put to the model."""
    answers: tuple[str, ...]
    """Of several annotators, or the one that is right."""
    kind: str
    """What the results are told apart by."""
    group: str
    """Questions for which one and the same answer is a fair guess: those that begin alike, or ask for the same."""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """All questions of a set."""

    name: str
    questions: tuple[Question, ...]
    load: Callable[[str], bytes] = field(repr=False, compare=False)
    """The bytes of an image by its name. Raises `SetError`."""


def read(name: str, folder: str) -> Asked:
    """A set in one of the layouts of files. Raises `SetError`."""
    layout = layout_of(folder)
    if layout is None:
        raise SetError(f"set {name}: {folder} is none of {', '.join(LAYOUTS)}; expected their files")
    try:
        questions, images = LAYOUTS[layout](folder, sorted(names_in(folder)))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        told = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise SetError(f"set {name}: {folder} is not as {layout} publishes it: {told}; fetch it again") from None
    if not questions:
        raise SetError(f"set {name}: {folder} has no question with an image; expected {layout}'s files")
    store, root = fsspec.core.url_to_fs(folder.rstrip("/"))

    def load(image: str) -> bytes:
        for place in images:
            path = posixpath.join(root, place, image)
            if store.exists(path):
                return bytes(store.cat_file(path))
        raise SetError(f"set {name}: no image {image} in {folder}/{images[0]}; fetch the images, too")

    return Asked(name, tuple(questions), load)


def from_shards(name: str, tars: Sequence[str], prompt: str | None) -> Asked:
    """A set in the WebDataset layout. Raises `SetError`."""
    try:
        samples = Samples.open(list(tars))
        if samples.faults:
            raise DataError(next(f"{tar}: {fault}" for tar, fault in samples.faults.items()))
        places: dict[str, int] = {}
        questions: list[Question] = []
        for place, sample in enumerate(samples):
            image_of(sample)
            places[sample.key] = place
            try:
                questions += _of_sample(sample.key, json.loads(sample.members["json"]), prompt or BRIEF)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise SetError(
                    f"set {name}: the json of sample {sample.key}: {error}; expected question, answers and type"
                ) from None
    except (DataError, Damaged) as error:
        raise SetError(f"set {name}: {error}; fetch the set again") from None

    def load(image: str) -> bytes:
        return image_of(samples.read(places[image]))

    return Asked(name, tuple(questions), load)


def _of_sample(key: str, said: Any, prompt: str) -> Iterator[Question]:
    for number, one in enumerate(said.get("questions", [said])):
        kind, choices = str(one.get("type", "question")), tuple(map(str, one.get("choices", ())))
        answers = tuple(map(str, one["answers"]))
        if not answers:
            raise ValueError("no answers")
        text = prompt.replace("{question}", str(one["question"])).replace("{choices}", _lettered(choices))
        yield Question(f"{key}/{number}", key, text, answers, kind, str(one.get("group", kind)), choices)


# -- as they are published ---------------------------------------------------------------------------------------------

Read = Callable[[str, Sequence[str]], tuple[list[Question], list[str]]]
"""Folder and the names in it -> questions, and the folders in which images are looked for."""


def _vqav2(folder: str, names: Sequence[str]) -> tuple[list[Question], list[str]]:
    file = _of_first_split(names, PUBLISHED["vqav2"])
    split = file.removeprefix("v2_OpenEnded_mscoco_").removesuffix("_questions.json")
    answered = {one["question_id"]: one for one in _json(folder, f"v2_mscoco_{split}_annotations.json")["annotations"]}
    found = []
    for one in _json(folder, file)["questions"]:
        said = answered[one["question_id"]]
        answers = tuple(answer["answer"] for answer in said["answers"])
        image, text = f"COCO_{split}_{one['image_id']:012d}.jpg", BRIEF.replace("{question}", one["question"])
        found.append(
            Question(str(one["question_id"]), image, text, answers, said["answer_type"], said["question_type"])
        )
    return found, [split, "images", "."]


def _gqa(folder: str, names: Sequence[str]) -> tuple[list[Question], list[str]]:
    found = []
    for key, one in _json(folder, _of_first_split(names, PUBLISHED["gqa"])).items():
        text, kinds = BRIEF.replace("{question}", one["question"]), one.get("types", {})
        kind = kinds.get("structural", "question")
        group = kinds.get("detailed", kind)
        found.append(Question(key, f"{one['imageId']}.jpg", text, (one["answer"],), kind, group))
    return found, ["images", "."]


def _scienceqa(folder: str, names: Sequence[str]) -> tuple[list[Question], list[str]]:
    problems, wanted = _json(folder, "problems.json"), _json(folder, "pid_splits.json")["test"]
    found = []
    for key in wanted:
        one = problems[key]
        if not one.get("image"):
            continue
        choices = tuple(one["choices"])
        asked = "\n".join(part for part in (one.get("hint", ""), one["question"]) if part)
        text = LETTER.replace("{question}", asked).replace("{choices}", _lettered(choices))
        right, subject = choices[one["answer"]], one.get("subject", "question")
        found.append(Question(key, f"test/{key}/{one['image']}", text, (right,), subject, subject, choices))
    return found, [".", "images"]


def _vizwiz(folder: str, names: Sequence[str]) -> tuple[list[Question], list[str]]:
    file = _of_first_split(names, PUBLISHED["vizwiz"])
    split = posixpath.basename(file).removesuffix(".json")
    found = []
    for number, one in enumerate(_json(folder, file)):
        answers = tuple(answer["answer"] for answer in one["answers"])
        text, kind = UNANSWERABLE.replace("{question}", one["question"]), one.get("answer_type", "question")
        found.append(Question(f"{split}/{number}", one["image"], text, answers, kind, kind))
    return found, [split, "images", "."]


LAYOUTS: Mapping[str, Read] = {"vqav2": _vqav2, "gqa": _gqa, "scienceqa": _scienceqa, "vizwiz": _vizwiz}
"""How each is read."""


def _lettered(choices: Sequence[str]) -> str:
    return "\n".join(f"{chr(ord('A') + number)}. {text}" for number, text in enumerate(choices))


def _of_first_split(names: Iterable[str], pattern: str) -> str:
    """The file of the split that is evaluated on."""
    found = [name for name in names if fnmatch(name, pattern)]
    return next((name for split in SPLITS for name in found if split in name), found[0])


def _json(folder: str, name: str) -> Any:
    store, root = fsspec.core.url_to_fs(folder.rstrip("/"))
    try:
        return json.loads(store.cat_file(posixpath.join(root, name)))
    except FileNotFoundError:
        raise ValueError(f"there is no {name}") from None
