"""The tasks on embeddings that are known: closed forms, brute force, and CLIP_benchmark's own figures.

Golden figures are those of CLIP_benchmark 1.6.2's `metrics` modules, run on the same embeddings.
"""

from functools import partial
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from models.evaluate import probes, retrieval, selection, zero_shot
from models.evaluate.metric import Metric
from models.evaluate.sets import SetError
from tests.models.evaluate.embeddings import Rows, Told, correlated, unit

IMAGES, TEXTS, OWNERS = correlated(images=60, texts=150, width=16, seed=0)


def values(metrics: list[Metric]) -> dict[str, float]:
    return {metric.metric: metric.value for metric in metrics}


# -- retrieval ---------------------------------------------------------------------------------------------------------


def test_recalls_are_those_of_clip_benchmark() -> None:
    assert values(retrieval.recalls("set", IMAGES, TEXTS, OWNERS)) == pytest.approx({
        "image_retrieval_recall@1": 0.4266666666,
        "image_retrieval_recall@5": 0.8333333333,
        "image_retrieval_recall@10": 0.9466666666,
        "text_retrieval_recall@1": 0.55,
        "text_retrieval_recall@5": 0.8666666666,
        "text_retrieval_recall@10": 0.9,
    })  # fmt: skip


def test_recalls_are_those_of_sorting_everything() -> None:
    found = values(retrieval.recalls("set", IMAGES, TEXTS, OWNERS))
    for k in retrieval.KS:
        by_text = [owner in np.argsort(-IMAGES @ text)[:k] for text, owner in zip(TEXTS, OWNERS, strict=True)]
        by_image = [bool({*OWNERS[np.argsort(-TEXTS @ image)[:k]]} & {row}) for row, image in enumerate(IMAGES)]
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(np.mean(by_text))
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(np.mean(by_image))


def test_perfect_embeddings_find_everything() -> None:
    found = retrieval.recalls("set", IMAGES, IMAGES[OWNERS], OWNERS)
    assert all(metric.value == 1 for metric in found)
    assert all(metric.standard_error == 0 for metric in found)


def test_a_model_that_tells_nothing_apart_scores_chance() -> None:
    found = retrieval.recalls("set", np.ones((60, 4), np.float32), np.ones((150, 4), np.float32), OWNERS)
    assert all(metric.value == pytest.approx(metric.chance) for metric in found)
    told = {metric.metric: metric.chance for metric in found}
    assert told["image_retrieval_recall@5"] == pytest.approx(5 / 60)
    assert told["text_retrieval_recall@1"] == pytest.approx(1 / 60)  # in all, there are as many right texts as texts


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = retrieval.recalls("set", IMAGES, TEXTS, OWNERS)
    monkeypatch.setattr(retrieval, "BLOCK", 7 * 60)
    assert retrieval.recalls("set", IMAGES, TEXTS, OWNERS) == whole


def test_the_queries_are_counted_and_texts_of_one_image_are_taken_together() -> None:
    doubled = retrieval.recalls("set", IMAGES, np.repeat(IMAGES + 0.5, 2, axis=0), np.repeat(np.arange(60), 2))
    single = retrieval.recalls("set", IMAGES, IMAGES + 0.5, np.arange(60))
    by_text = [next(m for m in found if m.metric == "image_retrieval_recall@1") for found in (doubled, single)]
    assert [metric.samples for metric in by_text] == [120, 60]
    assert by_text[0].standard_error == pytest.approx(by_text[1].standard_error)


# -- classes -----------------------------------------------------------------------------------------------------------

DICE = np.random.default_rng(1)
PROMPTS = unit(DICE.standard_normal((9, 3, 16)).astype(np.float32))
LABELS = np.argmax(IMAGES @ PROMPTS.mean(1).T + 0.4 * DICE.standard_normal((60, 9)).astype(np.float32), 1)
TRUTH = IMAGES @ PROMPTS.mean(1).T + 0.4 * DICE.standard_normal((60, 9)) > 0.2
TEMPLATES = ["{c}|0", "{c}|1", "{c}|2"]


def classes() -> Rows:
    encoder: Any = Told({f"{name}|{prompt}": PROMPTS[name, prompt] for name in range(9) for prompt in range(3)})
    return zero_shot.class_rows(encoder, [str(name) for name in range(9)], TEMPLATES, 8)


def test_zero_shot_is_that_of_clip_benchmark() -> None:
    assert values(zero_shot.accuracies("set", zero_shot.TASK, IMAGES @ classes().T, LABELS)) == pytest.approx({
        "acc1": 0.2666666667, "acc5": 0.75, "mean_per_class_recall": 0.2213064713,
    })  # fmt: skip


def test_the_mean_average_precision_is_that_of_clip_benchmark() -> None:
    found = values(zero_shot.average_precision("set", zero_shot.TASK, IMAGES @ classes().T, TRUTH))
    assert found == pytest.approx({"mean_average_precision": 0.5240063071})


def test_a_class_is_the_mean_of_its_prompts_each_as_long_as_the_other() -> None:
    expected = PROMPTS.mean(1) / np.linalg.norm(PROMPTS.mean(1), axis=1, keepdims=True)
    np.testing.assert_allclose(classes(), expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(classes(), axis=1), 1, atol=1e-6)


def test_braces_of_a_template_are_no_program() -> None:
    encoder: Any = Told({"a {c.__class__} cat": IMAGES[0]})
    zero_shot.class_rows(encoder, ["cat"], ["a {c.__class__} {c}"], 8)


def test_the_mean_recall_is_scikit_learns() -> None:
    scores = np.random.default_rng(3).standard_normal((60, 9)).astype(np.float32)
    found = values(zero_shot.accuracies("set", "task", scores, LABELS))
    assert found["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(LABELS, scores.argmax(1)))


def test_perfect_classes_are_all_found_and_equal_ones_by_chance() -> None:
    right = np.eye(9, dtype=np.float32)[LABELS]
    assert set(values(zero_shot.accuracies("set", "task", right, LABELS)).values()) == {1.0}
    for metric in zero_shot.accuracies("set", "task", np.zeros((60, 9), np.float32), LABELS):
        assert metric.value == pytest.approx(metric.chance)


def test_of_fewer_than_five_classes_the_five_best_are_not_asked_for() -> None:
    found = zero_shot.accuracies("set", "task", np.eye(4, dtype=np.float32), np.arange(4))
    assert [metric.metric for metric in found] == ["acc1", "mean_per_class_recall"]


def test_images_are_scored_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = zero_shot.accuracies("set", "task", IMAGES @ classes().T, LABELS)
    monkeypatch.setattr(zero_shot, "BLOCK", 7)
    assert zero_shot.accuracies("set", "task", IMAGES @ classes().T, LABELS) == whole


# -- one caption among others ------------------------------------------------------------------------------------------


def choices() -> Rows:
    others = unit(DICE_OF_CHOICES.standard_normal((3, 60, 16)).astype(np.float32))
    return unit(np.stack([TEXTS[:60] + 0.1 * IMAGES, *others], 1)).reshape(240, 16)


DICE_OF_CHOICES = np.random.default_rng(4)
FOUR = np.repeat(np.arange(60), 4)


def test_choosing_a_caption_is_comparing_it_with_each_other() -> None:
    texts = choices()
    (metric,) = selection.accuracy("set", IMAGES, texts, FOUR)
    scores = np.einsum("nd,ncd->nc", IMAGES, texts.reshape(60, 4, 16))
    assert metric.value == pytest.approx((scores[:, :1] > scores[:, 1:]).all(1).mean())
    assert metric.chance == pytest.approx(0.25)
    assert metric.samples == 60


def test_captions_that_tie_are_chosen_by_chance() -> None:
    owners = np.repeat(np.arange(60), np.arange(60) % 3 + 2)
    (metric,) = selection.accuracy("set", IMAGES, IMAGES[owners], owners)
    assert metric.value == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 4]))
    assert metric.chance == pytest.approx(metric.value)


# -- probes ------------------------------------------------------------------------------------------------------------


def blobs(samples: int, spread: float, seed: int) -> tuple[Rows, Any]:
    """Three classes around three directions."""
    dice = np.random.default_rng(seed)
    labels = np.arange(samples) % 3
    return unit(np.eye(8, dtype=np.float32)[labels] + spread * dice.standard_normal((samples, 8))), labels


PROBES = (partial(probes.linear_probe, seed=0), probes.nearest_neighbours)


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_tells_classes_that_lie_apart(probe: Any) -> None:
    found = probe("set", *blobs(90, 0.1, 0), *blobs(30, 0.1, 1), 3)
    assert values(found) == {"acc1": 1, "mean_per_class_recall": 1}


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_guesses_where_there_is_nothing_to_tell(probe: Any) -> None:
    train, test = (unit(np.random.default_rng(seed).standard_normal((600, 8)).astype(np.float32)) for seed in (0, 1))
    labels = np.arange(600) % 3
    assert values(probe("set", train, labels, test, labels, 3))["acc1"] == pytest.approx(1 / 3, abs=0.07)


@pytest.mark.parametrize("probe", PROBES)
def test_a_class_that_training_lacks_is_never_chosen_but_counted(probe: Any) -> None:
    train, train_labels = blobs(90, 0.1, 0)
    test, labels = blobs(30, 0.1, 1)
    seen = train_labels != 1
    found = probe("set", train[seen], train_labels[seen], test, labels, 3)
    assert values(found)["acc1"] == pytest.approx(2 / 3)


def test_neighbours_vote_by_how_near_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three neighbours, one at the cosine 1 outweighs two at 0.9 (temperature 0.07: 1 against 2 exp(-1.43))."""
    monkeypatch.setattr(probes, "NEIGHBOURS_ASKED", 3)
    near = np.array([0.9, np.sqrt(1 - 0.81), 0], np.float32)
    train = np.stack([np.array([1, 0, 0], np.float32), near, near * [1, -1, 1], np.array([0, 0, 1], np.float32)])
    found = probes.nearest_neighbours("set", train, np.array([0, 1, 1, 0]), train[:1], np.array([0]), 2)
    assert values(found)["acc1"] == 1


def test_a_linear_probe_chooses_its_penalty_by_cross_validation() -> None:
    """With the strongest penalty alone, classes of unequal size are all told to be the largest."""
    train, train_labels = blobs(300, 0.5, 0)
    keep = (train_labels == 0) | (np.arange(300) < 60)
    test, labels = blobs(90, 0.5, 1)
    found = values(probes.linear_probe("set", train[keep], train_labels[keep], test, labels, 3, 0))
    assert found["mean_per_class_recall"] > 0.6


def test_a_linear_probe_does_with_a_class_of_one_sample() -> None:
    train, labels = blobs(90, 0.1, 0)
    rare = (labels != 2) | (np.arange(90) == 2)
    found = probes.linear_probe("set", train[rare], labels[rare], *blobs(30, 0.1, 1), 3, 0)
    assert values(found)["acc1"] > 0.6


@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [0, 3, 6, 9]])
def test_a_linear_probe_needs_two_classes_and_a_sample_for_every_fold(kept: list[int]) -> None:
    train, labels = blobs(12, 0.1, 0)
    with pytest.raises(SetError, match="expected 2 or more classes, and 3 or more samples, for a linear probe"):
        probes.linear_probe("set", train[kept], labels[kept], train, labels, 3, 0)
