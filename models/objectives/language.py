"""What follows a text: cross-entropy of the next token, as all language models learn it."""

from __future__ import annotations

from torch.nn import functional

from models.trainable import Features, Loss, Objective, Scalars

NOT_LEARNT = -100
"""A label that is not counted: of padding, of questions, of images."""


class NextToken(Objective):
    """Cross-entropy of `logits` (n, length, vocabulary) and `labels` (n, length), a sum over the tokens that count; or
    of (tokens, vocabulary) and (tokens)."""

    def __init__(self, smoothing: float = 0, z: float = 0) -> None:
        """`smoothing`: share of the target that is spread over all tokens (Szegedy et al. 2016, section 7; BLIP: 0.1).

        `z`: weight of the squared logarithm of the softmax's denominator, which keeps logits small (PaLM, Chowdhery et
        al. 2022, section 5: 1e-4).
        """
        super().__init__()
        self._smoothing, self._z = smoothing, z

    def reads(self) -> frozenset[str]:
        return frozenset({"logits", "labels"})

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        logits_tv, labels_t = features["logits"].flatten(0, -2), features["labels"].flatten()
        learnt = labels_t != NOT_LEARNT
        total = functional.cross_entropy(
            logits_tv, labels_t, ignore_index=NOT_LEARNT, reduction="sum", label_smoothing=self._smoothing
        )
        if self._z:
            total = total + self._z * (logits_tv.logsumexp(-1).square() * learnt).sum()
        return Loss(total, learnt.sum())
