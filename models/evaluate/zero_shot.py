"""Classes told by prompts (Radford et al. 2021, section 3.1.4): every class is the mean of its prompts' embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.evaluate.metric import Groups, Metric, mean, mean_of_classes
from models.evaluate.ranking import chance, hits
from models.towers.dual_encoder import DualEncoder, Rows

TASK = "zeroshot_classification"
BLOCK = 1024
"""Images whose scores are held at once: for a thousand classes, 4 MB."""


def class_rows(encoder: DualEncoder, classes: Sequence[str], templates: Sequence[str], batch: int) -> Rows:
    """float32 (classes, width), unit rows: the mean of the unit rows of `{c}` in every template, made a unit again."""
    prompts = [template.replace("{c}", name) for name in classes for template in templates]
    rows_ctd = encoder.embed_texts(prompts, batch).reshape(len(classes), len(templates), -1)
    means_cd = rows_ctd.mean(1)
    unit: Rows = means_cd / np.linalg.norm(means_cd, axis=1, keepdims=True).clip(1e-12)
    return unit


def accuracies(name: str, task: str, scores_nc: npt.NDArray[np.float32], labels: Groups) -> list[Metric]:
    """Whether an image's class is its best, is among its five best (from five classes on), and the mean of the classes.

    Scores float32 (images, classes), labels int64 (images,).
    """
    classes = scores_nc.shape[1]
    ks = (1, 5) if classes >= 5 else (1,)
    found = [
        hits(scores_nc[start : start + BLOCK], labels[start : start + BLOCK, None] == np.arange(classes), ks)
        for start in range(0, len(labels), BLOCK)
    ]
    found_kn = np.concatenate(found, axis=1)
    one = np.ones(1, np.int64)
    metrics = [
        Metric(name, task, f"acc{k}", *mean(found_n), float(chance(classes, one, k)[0]), len(labels))
        for k, found_n in zip(ks, found_kn, strict=True)
    ]
    recall = mean_of_classes(found_kn[0], labels)
    return [*metrics, Metric(name, task, "mean_per_class_recall", *recall, 1 / classes, len(np.unique(labels)))]


def average_precision(name: str, task: str, scores_nc: Rows, labels_nc: npt.NDArray[np.bool_]) -> list[Metric]:
    """Of every class over the images, where an image may have several; classes that no image has are left out."""
    from sklearn.metrics import average_precision_score  # it takes two seconds to import

    there = labels_nc.any(0)
    value = average_precision_score(labels_nc[:, there], scores_nc[:, there], average="macro")
    guessed = float(labels_nc[:, there].mean())
    return [Metric(name, task, "mean_average_precision", float(value), None, guessed, int(there.sum()))]
