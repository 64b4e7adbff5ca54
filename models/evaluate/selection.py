"""The right caption of an image among wrong ones that differ in little: bindings, counts, relations.

CLIP_benchmark's `image_caption_selection` with one image (SugarCrepe, Hsieh et al. 2023).
"""

from __future__ import annotations

import numpy as np

from models.evaluate.metric import Groups, Metric, mean
from models.evaluate.ranking import chance, hits
from models.towers.dual_encoder import Rows

TASK = "image_caption_selection"


def accuracy(name: str, images_nd: Rows, texts_md: Rows, owners: Groups) -> list[Metric]:
    """Whether an image is nearest to the first of its texts; text j is asked of image `owners[j]`, in order."""
    counts = np.bincount(owners, minlength=len(images_nd))
    starts = np.concatenate([[0], counts.cumsum()])
    found = np.empty(len(images_nd))
    for row, image_d in enumerate(images_nd):
        scores = texts_md[starts[row] : starts[row + 1]] @ image_d
        found[row] = hits(scores[None], np.arange(len(scores))[None] == 0, (1,))[0, 0]
    guessed = float(np.mean([chance(int(count), np.ones(1, np.int64), 1)[0] for count in counts]))
    return [Metric(name, TASK, "text_acc", *mean(found), guessed, len(images_nd))]
