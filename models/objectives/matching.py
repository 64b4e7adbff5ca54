"""Do this image and this text belong together? Asked of pairs that a model joined (ITM, Li et al. 2021, equation 5)."""

from __future__ import annotations

from torch.nn import functional

from models.objectives.language import NOT_LEARNT
from models.trainable import Features, Loss, Objective, Scalars


class Matching(Objective):
    """Cross-entropy of `match` (n, pairs, 2) and `match_labels` (n, pairs): 1 where the two belong together, else 0.

    A mean over the pairs, but for those labelled -100. Which wrong pairs are asked of, the model has decided.
    """

    def reads(self) -> frozenset[str]:
        return frozenset({"match", "match_labels"})

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        if "match" not in features:
            raise ValueError(f"no features 'match'; this model gives {', '.join(sorted(features))}")
        logits, labels = features["match"].flatten(0, 1), features["match_labels"].flatten()
        total = functional.cross_entropy(logits, labels, ignore_index=NOT_LEARNT, reduction="sum")
        return Loss(total, (labels != NOT_LEARNT).sum())
