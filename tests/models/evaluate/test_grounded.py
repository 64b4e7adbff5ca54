"""BLIP on sets: its numbers are those of asking the model about each pair by hand."""

from __future__ import annotations

import io
import tarfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoTokenizer, BlipForImageTextRetrieval

from infra.miniweb import sets
from models.captioners.captioner import Captioner
from models.evaluate import evaluate
from models.evaluate.caption_scores import caption_scores
from models.evaluate.grounded import CAPTIONS, RANKED
from models.towers.dual_encoder import Rows
from models.towers.matcher import Matcher
from models.towers.preprocess import Pixels
from tests.models.captioners import tiny

SAMPLES = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sets")
    sets.write(place, samples=SAMPLES, names=("retrieval", "binding", "grounds"), captions=2)
    return place


def read(folder: Path) -> tuple[list[Pixels], list[list[str]]]:
    images, texts = [], []
    with tarfile.open(folder / "test/0.tar") as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            if member.name.endswith(".jpg"):
                images.append(np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB")))
            else:
                texts.append(content.read().decode().splitlines())
    return images, texts


def figures(model: Path, folder: Path, *names: str) -> dict[tuple[str, str, str], float]:
    found = evaluate(model, {name: str(folder / name) for name in names})
    return {(one.set, one.task, one.metric): one.value for one in found}


def test_a_filter_scores_as_transformers_does(tmp_path: Path) -> None:
    model = Matcher.load(tiny.matcher(tmp_path), "cpu", "float32")
    theirs: Any = BlipForImageTextRetrieval.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    dice = np.random.default_rng(0)
    images = [model.preprocessing(dice.integers(0, 256, (20, 24, 3), np.uint8)) for _ in range(3)]
    texts, image_of = [*tiny.TEXTS, "a box"], np.array([0, 1, 2, 0, 1])
    found = model.scores(images, texts, image_of, 2)
    pixels = model.preprocessing.normalise(torch.from_numpy(np.stack(images))).permute(0, 3, 1, 2)
    for row, (text, image) in enumerate(zip(texts, image_of, strict=True)):
        given = tokenizer([text], return_tensors="pt")
        said = {
            "input_ids": given["input_ids"],
            "attention_mask": given["attention_mask"],
            "pixel_values": pixels[[image]],
        }
        with torch.no_grad():
            matched = theirs(**said).itm_score.softmax(1)[0, 1]
            cosine = theirs(**said, use_itm_head=False).itm_score[0, 0]
        np.testing.assert_allclose(found[row], [matched, cosine], atol=1e-6)


def test_no_more_images_are_held_than_are_looked_at_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Matcher.load(tiny.matcher(tmp_path), "cpu", "float32")
    dice = np.random.default_rng(0)
    images = [model.preprocessing(dice.integers(0, 256, (20, 24, 3), np.uint8)) for _ in range(9)]
    image_of = np.array([8, 0, 3, 3, 5, 0, 1, 8])  # some of them of no text
    texts = (tiny.TEXTS * 2)[: len(image_of)]
    expected = np.concatenate(
        [model.scores([images[n]], [text], np.array([0]), 1) for n, text in zip(image_of, texts, strict=True)]
    )
    look, most = model._looked, []
    held: list[weakref.ref[torch.Tensor]] = []

    def looked(some: Any) -> Any:
        most.append(sum(one() is not None for one in held))
        found = look(some)
        held.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(model, "_looked", looked)
    np.testing.assert_allclose(model.scores(images, texts, image_of, 2), expected, atol=1e-5)
    assert len(held) == 5
    assert max(most) == 0


def test_a_filter_matches_chooses_and_ranks_anew(tmp_path: Path, folder: Path) -> None:
    found = figures(tiny.matcher(tmp_path), folder, "retrieval", "binding", "grounds")
    model = Matcher.load(tmp_path, "cpu", "float32")
    images, texts = read(folder / "retrieval")
    prepared = [model.preprocessing(image) for image in images]
    told = [line for lines in texts for line in lines]
    every = np.repeat(np.arange(SAMPLES), len(told))
    scores: Rows = model.scores(prepared, told * SAMPLES, every, 64).reshape(SAMPLES, len(told), 2)

    def best(order: Rows, right: set[int]) -> float:
        return float(int(np.argmax(order)) in right)

    by_itc = np.mean([best(scores[:, text, 1], {text // 2}) for text in range(len(told))])
    assert found["retrieval", "zeroshot_retrieval", "image_retrieval_recall@1"] == pytest.approx(by_itc)
    again = []
    for text in range(len(told)):
        cosines, order = scores[:, text, 1], np.full(SAMPLES, -1.0, np.float32)
        top = np.argsort(-cosines)[:RANKED]
        order[top] = scores[top, text, 0]
        again.append(best(order, {text // 2}))
    assert found["retrieval", "reranked_retrieval", "image_retrieval_recall@1"] == pytest.approx(np.mean(again))
    other = [(row + 1) % SAMPLES for row in range(SAMPLES)]
    right = [scores[row, 2 * row, 0] >= 0.5 for row in range(SAMPLES)]
    right += [scores[row, 2 * other[row], 0] < 0.5 for row in range(SAMPLES)]
    assert found["retrieval", "image_text_matching", "itm_accuracy"] == pytest.approx(np.mean(right))
    images, texts = read(folder / "binding")
    chosen = []
    for image, lines in zip(images, texts, strict=True):
        one = model.scores([model.preprocessing(image)], lines, np.zeros(len(lines), np.int64), 64)
        chosen.append(float(np.argmax(one[:, 0]) == 0))
    assert found["binding", "image_text_matching", "text_acc"] == pytest.approx(np.mean(chosen))
    assert ("grounds", "zeroshot_classification", "acc1") in found
    assert not any(task == "captioning" for _, task, _ in found)


def test_a_captioner_is_compared_with_what_people_wrote(tmp_path: Path, folder: Path) -> None:
    found = figures(tiny.captioner(tmp_path), folder, "retrieval", "grounds")
    images, texts = read(folder / "retrieval")
    captioner = Captioner.load(tmp_path, "cpu", "float32")
    written = captioner.write(images, [""] * SAMPLES, CAPTIONS)
    known = caption_scores([captions[0].text for captions in written], texts)
    assert {set_ for set_, _, _ in found} == {"retrieval"}
    assert found["retrieval", "captioning", "cider"] == pytest.approx(known.cider)
    assert found["retrieval", "captioning", "bleu_4"] == pytest.approx(known.bleu[3])
    assert found["retrieval", "captioning", "rouge_l"] == pytest.approx(known.rouge_l)
