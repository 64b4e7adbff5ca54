"""What a model can do that nobody trained it for: classes, retrieval, the right caption among wrong ones.

    python -m models.evaluate MODEL SETS --out metrics.json

tasks.py      what a model can be asked to do
metric.py     one number, how far it may be off, and what guessing gives
ranking.py    whether something right is among the first k
sets.py       evaluation sets in CLIP_benchmark's layout
zero_shot.py, retrieval.py, selection.py, probes.py   the tasks, from embeddings
answers.py, vqa_sets.py, vqa.py   questions: which answer is right, who asks them, what a model answers
run.py        a model on sets
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from models.evaluate.metric import Metric
from models.evaluate.tasks import TASKS, Task

if TYPE_CHECKING:
    from models.evaluate.run import evaluate
    from models.evaluate.sets import SetError

__all__ = ["TASKS", "Metric", "SetError", "Task", "evaluate"]


MADE_IN = {"SetError": "models.evaluate.sets", "evaluate": "models.evaluate.run"}


def __getattr__(name: str) -> Any:
    """What needs torch, when it is asked for: the command line lists its commands without those seconds."""
    if name not in MADE_IN:
        raise AttributeError(f"module 'models.evaluate' has no attribute {name!r}")
    return getattr(import_module(MADE_IN[name]), name)
