"""Which tokens a caption has, told from its image alone: SuperClass (Huang et al. 2024, section 3).

objective = CaptionTokens(tokens=49_408)     # needs features `logits` (n, tokens) and `labels` (n, length)
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from models.objectives.language import NOT_LEARNT
from models.objectives.ranks import world
from models.objectives.sizes import wrong_size
from models.trainable import Features, Loss, Objective, Scalars


class CaptionTokens(Objective):
    """Softmax cross-entropy of the logits with the tokens of each caption, those that few captions have weighing more.

    A token's weight is its inverse document frequency, ln(N / (1 + df)) and at least 0: of N captions of earlier steps
    df had it. The weights of a caption are brought to a sum of 1. Labels of -100 are none of its tokens. In the first
    step all tokens weigh the same; a caption whose tokens all weigh nothing is not learnt from.
    """

    def __init__(self, tokens: int = 49_408) -> None:
        """`tokens`: how many the tokenizer has, at most."""
        super().__init__()
        self.seen: torch.Tensor
        self.frequencies: torch.Tensor
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("frequencies", torch.zeros(tokens, dtype=torch.int64))
        self._coming: torch.Tensor | None = None

    def reads(self) -> frozenset[str]:
        return frozenset({"logits", "labels"})

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        for name in sorted(self.reads()):
            if name not in features:
                raise ValueError(f"no features {name!r}; this model gives {', '.join(sorted(features))}")
        logits_nv, labels_nl = features["logits"], features["labels"]
        rows, tokens = logits_nv.shape
        if tokens > len(self.frequencies):
            raise wrong_size("tokens", len(self.frequencies), "logits", tokens)
        exact = torch.promote_types(logits_nv.dtype, torch.float32)
        said_nv = logits_nv.new_zeros(rows, tokens + 1, dtype=exact)  # what is not learnt has a column of its own
        said_nv.scatter_(1, labels_nl.masked_fill(labels_nl == NOT_LEARNT, tokens), 1)
        said_nv = said_nv[:, :tokens]
        counts = torch.cat([said_nv.detach().sum(0), said_nv.new_tensor([rows])])
        self._coming = counts if self._coming is None else self._coming + counts
        weights_nv = said_nv * self._rarity(tokens)
        sums_n = weights_nv.sum(1)
        target_nv = weights_nv / sums_n.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        return Loss(-(target_nv * logits_nv.log_softmax(1, dtype=exact)).sum(), (sums_n > 0).sum())

    def _rarity(self, tokens: int) -> torch.Tensor:
        """(tokens,): ln(N / (1 + df)), 1 for all before any caption was seen."""
        rarity_v = (self.seen / (1 + self.frequencies[:tokens])).log().clamp(min=0)
        return torch.where(self.seen > 0, rarity_v, 1)

    @torch.no_grad()
    def after_step(self) -> None:
        """The captions of the step, those of all processes, are counted."""
        if self._coming is None:
            return
        counts = self._coming.long()
        if world() > 1:
            dist.all_reduce(counts)
        self.frequencies[: len(counts) - 1] += counts[:-1]
        self.seen += counts[-1]
        self._coming = None
