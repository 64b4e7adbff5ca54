"""What a model can be asked to do."""

from __future__ import annotations

from typing import Literal, get_args

Task = Literal[
    "zeroshot_classification",
    "zeroshot_retrieval",
    "image_caption_selection",
    "linear_probe",
    "knn",
    "vqa",
    "image_text_matching",
    "reranked_retrieval",
    "captioning",
    "classification",
    "language_modelling",
]
TASKS: tuple[Task, ...] = get_args(Task)
