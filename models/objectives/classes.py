"""Which of some classes: cross-entropy, as ViT learns labels, and BERT hidden tokens and which text comes next."""

from __future__ import annotations

from torch.nn import functional

from models.objectives.language import NOT_LEARNT
from models.trainable import Features, Loss, Objective, Scalars


class ClassOf(Objective):
    """Cross-entropy of logits (…, classes) and labels (…), a sum over the labels that are not -100."""

    def __init__(self, logits: str = "logits", labels: str = "labels", smoothing: float = 0) -> None:
        """`logits`, `labels`: names of features. `smoothing`: share of the target that is spread over all classes
        (Szegedy et al. 2016, section 7)."""
        super().__init__()
        self._logits, self._labels, self._smoothing = logits, labels, smoothing

    def reads(self) -> frozenset[str]:
        return frozenset({self._logits, self._labels})

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        return cross_entropy_of(features, self._logits, self._labels, self._smoothing)


class MaskedTokens(Objective):
    """MLM: the tokens that were hidden, of `masked_logits` and `masked_labels` (Devlin et al. 2019, section 3.1)."""

    def reads(self) -> frozenset[str]:
        return frozenset({"masked_logits", "masked_labels"})

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        return cross_entropy_of(features, "masked_logits", "masked_labels")


class NextSentence(Objective):
    """NSP: whether the second text goes on with the first, of `next_logits` and `next_labels` (the same section)."""

    def reads(self) -> frozenset[str]:
        return frozenset({"next_logits", "next_labels"})

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        return cross_entropy_of(features, "next_logits", "next_labels")


def cross_entropy_of(features: Features, logits: str, labels: str, smoothing: float = 0) -> Loss:
    """The loss of `ClassOf`: of the features called `logits`, (…, classes) of any float, and `labels`, (…) int64.

    Raises `ValueError` where there are no features of these names.
    """
    for name in (logits, labels):
        if name not in features:
            raise ValueError(f"no features {name!r}; this model gives {', '.join(sorted(features))}")
    logits_rc, labels_r = features[logits].flatten(0, -2), features[labels].flatten()
    total = functional.cross_entropy(
        logits_rc, labels_r, ignore_index=NOT_LEARNT, reduction="sum", label_smoothing=smoothing
    )
    return Loss(total, (labels_r != NOT_LEARNT).sum())
