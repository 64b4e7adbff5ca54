"""Evaluation sets in CLIP_benchmark's WebDataset layout, from any store that fsspec reaches.

    shapes/classnames.txt                       one class a line
    shapes/zeroshot_classification_templates.txt   one prompt a line, `{c}` where the class stands
    shapes/dataset_type.txt                     `retrieval`, `multilabel`, …; without it, one class an image
    shapes/test/nshards.txt                     3
    shapes/test/0.tar … 2.tar                   `{key}.jpg` (or png, webp) with `.cls`, `.npy` or `.txt`
    shapes/train/…                              the same, for a linear probe

https://github.com/LAION-AI/CLIP_benchmark, `webdataset_builder.py`; its sets on the hub are read by
`hf://datasets/clip-benchmark/wds_…`. `dataset_type.txt` may also say `image_caption_selection`: the first line of a
`.txt` is right and the others are wrong; or `vqa`: questions, which `models.evaluate.vqa_sets` reads, as it does those
that are published as files of their own; or `texts`: a `.txt` each and no images, for language models.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal, get_args

import fsspec
import numpy as np
import numpy.typing as npt

from models.data.images import image_of
from models.data.shards import Damaged, DataError, Sample, Samples

Kind = Literal["classification", "multilabel", "retrieval", "image_caption_selection", "vqa", "texts"]
PUBLISHED = {
    "vqav2": "v2_OpenEnded_mscoco_*_questions.json",
    "gqa": "*_balanced_questions.json",
    "scienceqa": "pid_splits.json",
    "vizwiz": "Annotations/*.json",
}
"""Sets of questions with a layout of their own, each with a file by which it is told."""


class SetError(ValueError):
    """An evaluation set that cannot be read: one line that names it, what was expected and the remedy."""


@dataclass(frozen=True)
class EvaluationSet:
    """A set by its name, and what it says of itself."""

    name: str
    folder: str
    kind: Kind
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    shards: dict[str, int]
    """Tars of each split that is there."""
    prompt: str | None = None
    """Of a set of questions: how one is put to the model, `{question}` where it stands."""

    @classmethod
    def open(cls, name: str, folder: str) -> EvaluationSet:
        """Reads its text files. Raises `SetError`."""
        folder = folder.rstrip("/")
        store, place = fsspec.core.url_to_fs(folder)
        said = _text(store, f"{place}/dataset_type.txt")
        kind: Any = "classification" if said is None else said.strip().lower()
        if kind not in get_args(Kind):
            raise SetError(f"set {name}: dataset_type.txt says {kind!r}; expected {', '.join(get_args(Kind))}")
        shards = {}
        for split in ("train", "test"):
            count = _text(store, f"{place}/{split}/nshards.txt")
            if count is not None:
                if not count.strip().isdecimal() or int(count) < 1:
                    raise SetError(f"set {name}: {split}/nshards.txt says {count.strip()!r}; expected a number of tars")
                shards[split] = int(count)
        if "test" not in shards:
            raise SetError(f"set {name}: {folder} has no test/nshards.txt; expected CLIP_benchmark's layout")
        files = ("classnames.txt", "zeroshot_classification_templates.txt")
        classes, templates = (_lines(_text(store, f"{place}/{file}")) for file in files)
        if kind in ("classification", "multilabel"):
            if not classes:
                raise SetError(f"set {name}: {folder} has no classnames.txt; write one class a line")
            if wrong := [template for template in templates if "{c}" not in template]:
                raise SetError(f"set {name}: template {wrong[0]!r} has no {{c}}, where the class stands")
        prompt = _text(store, f"{place}/vqa_prompt.txt") if kind == "vqa" else None
        if prompt is not None and "{question}" not in prompt:
            raise SetError(f"set {name}: vqa_prompt.txt has no {{question}}, where the question stands")
        return cls(name, folder, kind, classes, templates, shards, prompt and prompt.removesuffix("\n"))

    def samples(self, split: str) -> Iterator[tuple[str, bytes, bytes]]:
        """Key, image and answer (`.cls`, `.npy` or `.txt`) of every sample.

        Nothing is left out: a mean over fewer samples would be another set's. Raises `SetError` for a tar or a sample
        that is damaged, and for one that lacks image or answer.
        """
        answer = {"classification": "cls", "multilabel": "npy", "vqa": "json"}.get(self.kind, "txt")
        try:
            found = Samples.open([f"{self.folder}/{split}/{number}.tar" for number in range(self.shards[split])])
            if found.faults:
                raise DataError(next(f"{tar}: {fault}" for tar, fault in found.faults.items()))
            for sample in found:
                yield self._checked(sample, answer)
        except (DataError, Damaged) as error:
            raise SetError(f"set {self.name}: {error}; fetch the set again") from None

    def _checked(self, sample: Sample, answer: str) -> tuple[str, bytes, bytes]:
        if answer not in sample.members:
            raise SetError(f"set {self.name}: {sample.key} has no .{answer}; it has {', '.join(sample.members)}")
        return sample.key, image_of(sample), sample.members[answer]

    def label(self, key: str, answer: bytes) -> int:
        """The class of a sample. Raises `SetError`."""
        text = answer.decode("utf-8", "replace").strip()
        if not text.isdecimal() or int(text) >= len(self.classes):
            raise SetError(
                f"set {self.name}: sample {key} is of class {text!r}; expected 0 to {len(self.classes) - 1}, a line of "
                "classnames.txt"
            )
        return int(text)

    def labels(self, key: str, answer: bytes) -> npt.NDArray[np.bool_]:
        """Which classes a sample has. Raises `SetError`."""
        try:
            found = np.load(io.BytesIO(answer), allow_pickle=False)
        except ValueError:
            found = np.zeros(0)
        if found.shape != (len(self.classes),):
            raise SetError(f"set {self.name}: sample {key} has no .npy of {len(self.classes)} numbers, one a class")
        truth: npt.NDArray[np.bool_] = found > 0
        return truth

    def captions(self, key: str, answer: bytes) -> Sequence[str]:
        """The lines of a sample. Raises `SetError`."""
        lines = [line for line in answer.decode("utf-8", "replace").splitlines() if line.strip()]
        least = 2 if self.kind == "image_caption_selection" else 1
        if len(lines) < least:
            raise SetError(f"set {self.name}: sample {key} has {len(lines)} captions; expected {least} or more lines")
        return lines


def found_in(folder: str) -> dict[str, str]:
    """A folder that is a set, or the sets in it, by their names. Raises `SetError` where there is none."""
    folder = folder.rstrip("/")
    store, place = fsspec.core.url_to_fs(folder)
    if store.exists(f"{place}/test/nshards.txt") or layout_of(folder) is not None:
        return {folder.rpartition("/")[2]: folder}
    try:
        inside = [entry["name"].rstrip("/").rpartition("/")[2] for entry in store.ls(place, detail=True)]
    except FileNotFoundError:
        inside = []
    sets = {
        name: f"{folder}/{name}"
        for name in sorted(inside)
        if store.exists(f"{place}/{name}/test/nshards.txt") or layout_of(f"{folder}/{name}") is not None
    }
    if not sets:
        raise SetError(f"{folder} is no evaluation set and holds none; expected {folder}/test/nshards.txt")
    return sets


def layout_of(folder: str) -> str | None:
    """Which of `PUBLISHED` a folder is, by the files in it; None for any other."""
    names = names_in(folder)
    return next((one for one, file in PUBLISHED.items() if any(fnmatch(name, file) for name in names)), None)


def names_in(folder: str) -> set[str]:
    """The files in a folder and in its `Annotations`; none where it is no folder."""
    store, place = fsspec.core.url_to_fs(folder.rstrip("/"))
    found: set[str] = set()
    for inside in ("", "Annotations/"):
        try:
            entries = store.ls(f"{place}/{inside}".rstrip("/"), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            continue
        found |= {inside + str(one["name"]).rpartition("/")[2] for one in entries if one["type"] == "file"}
    return found


def _text(store: Any, path: str) -> str | None:
    try:
        return str(store.cat_file(path).decode("utf-8"))
    except FileNotFoundError:
        return None


def _lines(text: str | None) -> tuple[str, ...]:
    return tuple(line.strip() for line in (text or "").splitlines() if line.strip())
