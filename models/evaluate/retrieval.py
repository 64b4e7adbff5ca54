"""The image of a text and the texts of an image, found among all of a set: recall at 1, 5 and 10.

As papers of CLIP's kind count it: 1 for a query with one of its right items among the first k, else 0.
"""

from __future__ import annotations

import numpy as np

from models.evaluate.metric import Groups, Metric, mean
from models.evaluate.ranking import chance, hits
from models.towers.dual_encoder import Rows

TASK = "zeroshot_retrieval"
KS = (1, 5, 10)
BLOCK = 4_000_000
"""Scores that are held at once: some 40 MB with their masks."""


def recalls(name: str, images_nd: Rows, texts_md: Rows, owners: Groups) -> list[Metric]:
    """Both ways; text j tells of image `owners[j]`, and every image has one text or more.

    Texts of one image are no samples of their own: the standard error takes them together.
    """
    images, texts = len(images_nd), len(texts_md)
    captions = np.bincount(owners, minlength=images)
    places = np.arange(images)
    ways = {
        "image_retrieval": (texts_md, images_nd, owners, places, owners, np.ones(texts, np.int64)),
        "text_retrieval": (images_nd, texts_md, places, owners, places, captions),
    }
    metrics = []
    for way, (queries, items, query_owner, item_owner, groups, right) in ways.items():
        rows = max(1, BLOCK // len(items))
        found_kq = np.concatenate(
            [
                hits(queries[start : start + rows] @ items.T, query_owner[start : start + rows, None] == item_owner, KS)
                for start in range(0, len(queries), rows)
            ],
            axis=1,
        )
        metrics += [
            Metric(
                name, TASK, f"{way}_recall@{k}", *mean(found_q, groups),
                float(chance(len(items), right, k).mean()), len(queries),
            )
            for k, found_q in zip(KS, found_kq, strict=True)
        ]  # fmt: skip
    return metrics
