"""A model on evaluation sets: which tasks a set is for, and its images and texts as vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from models.data.images import opened, rgb
from models.evaluate import grounded, retrieval, selection, vqa, zero_shot
from models.evaluate.metric import Groups, Metric
from models.evaluate.sets import EvaluationSet, SetError, layout_of
from models.evaluate.tasks import Task
from models.evaluate.vqa_sets import Asked, from_shards, read
from models.towers.dual_encoder import Dtype, DualEncoder, Rows
from models.towers.preprocess import Pixels

if TYPE_CHECKING:
    from models.towers.matcher import Matcher

CHUNK = 512
"""Images that are decoded and resized while the model works on as many."""
Answers = list[tuple[str, bytes]]

T = TypeVar("T")


def evaluate(
    model: str | Path | DualEncoder,
    sets: Mapping[str, str],
    *,
    tasks: Sequence[Task] | None = None,
    device: str = "cpu",
    dtype: Dtype = "float32",
    batch: int = 64,
    threads: int = 2,
    seed: int = 0,
) -> list[Metric]:
    """What a model scores on sets, each a folder by its name, in every task that the set is for, or in `tasks` of them.

    `model`: a folder that transformers loads. `batch`: images or texts at once. `threads`: that decode and resize.
    `seed`: of the folds in which a linear probe chooses its penalty. Raises `ValueError` for a folder that holds no
    dual encoder, or for questions none that writes, for a set that cannot be read and for a task that none of the sets
    is for.
    """
    published = {name: folder for name, folder in sets.items() if layout_of(folder) is not None}
    opened = [EvaluationSet.open(name, folder) for name, folder in sets.items() if name not in published]
    able = frozenset({"embed"}) if isinstance(model, DualEncoder) else grounded.abilities(Path(model))
    wanted = {one.name: [task for task in _tasks(one, able) if tasks is None or task in tasks] for one in opened}
    wanted |= {name: ["vqa"] for name in published if tasks is None or "vqa" in tasks}
    for task in tasks or ():
        if not any(task in chosen for chosen in wanted.values()):
            raise SetError(f"task {task}: none of the sets {', '.join(sets)} is for it; probes need a `train` split")
    asking = [name for name, chosen in wanted.items() if "vqa" in chosen]
    shown = [one for one in opened if one.name not in asking and wanted[one.name]]
    rows: list[Metric] = []
    if shown and "see" in able:
        rows += _seen(Path(model), shown, wanted, device, dtype, batch, threads, seed)  # type: ignore[arg-type]
    elif shown and "read" in able:
        from models.evaluate import perplexity

        language = perplexity.Reader.load(Path(model), device, dtype)  # type: ignore[arg-type]
        rows += [row for one in shown for row in perplexity.scores(one.name, language, perplexity.texts_of(one), batch)]
    elif shown and able != {"embed"}:
        rows += _grounded(Path(model), able, shown, wanted, device, dtype, batch, threads)  # type: ignore[arg-type]
    elif shown:
        encoder = model if isinstance(model, DualEncoder) else DualEncoder.load(Path(model), device, dtype)
        with ThreadPoolExecutor(threads) as pool:
            rows += [
                row for one in shown for row in _on_set(_Reader(encoder, one, batch, pool), wanted[one.name], seed)
            ]
    if asking:
        from models.captioners.captioner import Captioner  # only who asks needs one that writes

        if isinstance(model, DualEncoder):
            raise SetError(f"set {asking[0]}: a dual encoder answers no questions; name a model that writes")
        speaker = Captioner.load(Path(model), device, dtype)
        for name in asking:
            asked = read(name, sets[name]) if name in published else _questions(name, opened)
            rows += vqa.scores(asked, vqa.answering(speaker, asked, batch))
    return rows


def _questions(name: str, opened: Sequence[EvaluationSet]) -> Asked:
    one = next(one for one in opened if one.name == name)
    return from_shards(name, [f"{one.folder}/test/{number}.tar" for number in range(one.shards["test"])], one.prompt)


def _seen(
    folder: Path,
    shown: Sequence[EvaluationSet],
    wanted: Mapping[str, Sequence[Task]],
    device: str,
    dtype: Dtype,
    batch: int,
    threads: int,
    seed: int,
) -> list[Metric]:
    """What an image tower scores: by its own classes where they are the set's, and by probes."""
    from models.towers.image_encoder import ImageEncoder

    encoder = ImageEncoder.load(folder, device, dtype)
    rows: list[Metric] = []
    with ThreadPoolExecutor(threads) as pool:
        for one in shown:
            reader = _Reader(encoder, one, batch, pool)
            if "classification" in wanted[one.name] and encoder.classes == one.classes:
                scores_nc = np.concatenate([encoder.scores_prepared(some, batch) for some in reader.images("test")])
                labels = reader.labels(reader.answers("test"))
                rows += zero_shot.accuracies(one.name, "classification", scores_nc, labels)
            rows += _on_set(reader, [task for task in wanted[one.name] if task != "classification"], seed)
    return rows


def _grounded(
    folder: Path,
    able: frozenset[str],
    shown: Sequence[EvaluationSet],
    wanted: Mapping[str, Sequence[Task]],
    device: str,
    dtype: Dtype,
    batch: int,
    threads: int,
) -> list[Metric]:
    """What a BLIP scores: by its two vectors, by its head for matching, and as one that writes."""
    from models.captioners.captioner import Captioner
    from models.towers.matcher import Matcher

    rows: list[Metric] = []
    with ThreadPoolExecutor(threads) as pool:
        if "match" in able:
            matcher = Matcher.load(folder, device, dtype)
            for one in shown:
                reader = _Reader(matcher, one, batch, pool)
                rows += _on_set(reader, [task for task in wanted[one.name] if task not in grounded.TASKS], 0)
                if set(wanted[one.name]) & {grounded.MATCHING, grounded.RERANKED}:
                    rows += _matched(matcher, reader, wanted[one.name])
        for one in shown:
            if grounded.CAPTIONING in wanted[one.name]:
                writer = Captioner.load(folder, device, dtype)
                reader = _Reader(writer, one, batch, pool)
                rows += grounded.captioning(one.name, writer, reader.images("test"), reader.captions("test"), batch)
    return rows


def _matched(matcher: Matcher, reader: _Reader, wanted: Sequence[Task]) -> Iterator[Metric]:
    one, batch = reader.set, reader.batch
    captions = reader.captions("test")
    if one.kind == "image_caption_selection":
        yield from grounded.selection(one.name, matcher, reader.images("test"), captions, batch)
        return
    if grounded.MATCHING in wanted:
        yield from grounded.matching(one.name, matcher, reader.images("test"), captions, batch)
    if grounded.RERANKED in wanted:
        texts = [line for lines in captions for line in lines]
        owners = np.repeat(np.arange(len(captions)), [len(lines) for lines in captions])
        rows = reader.split("test")[0], texts, matcher.embed_texts(texts, batch), owners
        yield from grounded.reranked(one.name, matcher, reader.images("test"), *rows, batch)


def _tasks(one: EvaluationSet, able: frozenset[str]) -> list[Task]:
    """What a set is for, of a model that is able to do it."""
    if one.kind == "retrieval":
        asked: dict[str, list[Task]] = {
            "embed": ["zeroshot_retrieval"],
            "match": ["image_text_matching", "reranked_retrieval"],
            "write": ["captioning"],
            "read": ["language_modelling"],
        }
        return [task for what, found in asked.items() if what in able for task in found]
    probes: list[Task] = ["linear_probe", "knn"] if "train" in one.shards else []
    if one.kind == "classification" and "see" in able:
        return [*(["classification"] if "classify" in able else []), *probes]  # type: ignore[list-item]
    if one.kind == "texts":
        return ["language_modelling"] if "read" in able else []
    if one.kind != "vqa" and "embed" not in able:
        return []
    match one.kind:
        case "image_caption_selection":
            return ["image_caption_selection", *(["image_text_matching"] if "match" in able else [])]  # type: ignore[list-item]
        case "multilabel":
            return ["zeroshot_classification"]
        case "vqa":
            return ["vqa"]
        case "classification":
            return ["zeroshot_classification", *probes]


def _on_set(reader: _Reader, tasks: Sequence[Task], seed: int) -> Iterator[Metric]:
    one = reader.set
    if not tasks:
        return
    images_nd, answers = reader.split("test")
    if one.kind in ("retrieval", "image_caption_selection"):
        captions = [one.captions(key, answer) for key, answer in answers]
        texts_md = reader.texts([line for lines in captions for line in lines])
        owners = np.repeat(np.arange(len(captions)), [len(lines) for lines in captions])
        score = retrieval.recalls if one.kind == "retrieval" else selection.accuracy
        yield from score(one.name, images_nd, texts_md, owners)
        return
    if "zeroshot_classification" in tasks:
        if not one.templates:
            raise SetError(
                f"set {one.name}: {one.folder} has no zeroshot_classification_templates.txt; write prompts with {{c}}"
            )
        classes_cd = zero_shot.class_rows(reader.encoder, one.classes, one.templates, reader.batch)
        scores_nc = images_nd @ classes_cd.T
        if one.kind == "multilabel":
            truth = np.stack([one.labels(key, answer) for key, answer in answers])
            yield from zero_shot.average_precision(one.name, zero_shot.TASK, scores_nc, truth)
        else:
            yield from zero_shot.accuracies(one.name, zero_shot.TASK, scores_nc, reader.labels(answers))
    if {"linear_probe", "knn"} & set(tasks):
        from models.evaluate import probes  # with scikit-learn, which takes two seconds to import

        train_nd, train_answers = reader.split("train")
        known = one.name, train_nd, reader.labels(train_answers), images_nd, reader.labels(answers), len(one.classes)
        if "linear_probe" in tasks:
            yield from probes.linear_probe(*known, seed)
        if "knn" in tasks:
            yield from probes.nearest_neighbours(*known)


class _Reader:
    """A set through a model: images come some at a time and go again, what is kept are vectors and answers."""

    def __init__(self, encoder: Any, one: EvaluationSet, batch: int, pool: Executor) -> None:
        """`encoder`: a dual encoder, or what embeds and prepares images as one does."""
        self.encoder, self.set, self.batch = encoder, one, batch
        self._pool = pool
        self._rows: dict[str, Rows] = {}
        self._answers: dict[str, Answers] = {}

    def images(self, split: str) -> Iterator[list[Pixels]]:
        """All images as the model wants them, in whole batches, about `CHUNK` at a time. Raises `SetError`."""
        answers: Answers = []
        ahead: list[Future[Pixels]] = []
        for chunk in _chunks(self.set.samples(split), max(1, CHUNK // self.batch) * self.batch):
            coming = [self._pool.submit(self._pixels, key, data) for key, data, _ in chunk]
            answers += [(key, answer) for key, _, answer in chunk]
            if ahead:
                yield [one.result() for one in ahead]
            ahead = coming
        self._answers[split] = answers
        yield [one.result() for one in ahead]

    def answers(self, split: str) -> Answers:
        """Key and answer of every image, read without decoding one. Raises `SetError`."""
        if split not in self._answers:
            self._answers[split] = [(key, answer) for key, _, answer in self.set.samples(split)]
        return self._answers[split]

    def captions(self, split: str) -> list[Sequence[str]]:
        """The texts of every image. Raises `SetError`."""
        return [self.set.captions(key, answer) for key, answer in self.answers(split)]

    def split(self, split: str) -> tuple[Rows, Answers]:
        """float32 (images, width), unit rows, and key and answer of each. Raises `SetError`."""
        if split not in self._rows:
            some = [self.encoder.embed_prepared(images, self.batch) for images in self.images(split)]
            self._rows[split] = np.concatenate(some)
        return self._rows[split], self.answers(split)

    def _pixels(self, key: str, data: bytes) -> Pixels:
        """As the model wants it, so that no more than that is held of an image."""
        try:
            with opened(data) as image:
                prepared: Pixels = self.encoder.preprocessing(rgb(image)[..., :3])
                return prepared
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all of them for damaged files
            raise SetError(f"set {self.set.name}: the image of sample {key}: {error}; fetch the set again") from None

    def texts(self, texts: Sequence[str]) -> Rows:
        rows: Rows = self.encoder.embed_texts(texts, self.batch)
        return rows

    def labels(self, answers: Answers) -> Groups:
        return np.array([self.set.label(key, answer) for key, answer in answers])


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
