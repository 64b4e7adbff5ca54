"""What a model can do that nobody trained it for: classes, retrieval, the right caption among wrong ones.

    python -m models.evaluate MODEL SETS --out metrics.json

metric.py     one number, how far it may be off, and what guessing gives
ranking.py    whether something right is among the first k
sets.py       evaluation sets in CLIP_benchmark's layout
zero_shot.py, retrieval.py, selection.py, probes.py   the tasks, from embeddings
answers.py, vqa_sets.py, vqa.py   questions: which answer is right, who asks them, what a model answers
run.py        a model on sets
"""

from models.evaluate.metric import Metric
from models.evaluate.run import TASKS, Task, evaluate
from models.evaluate.sets import SetError

__all__ = ["TASKS", "Metric", "SetError", "Task", "evaluate"]
