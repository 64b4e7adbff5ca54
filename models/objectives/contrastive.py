"""Images and their texts near each other, and far from those of the others: the losses of CLIP, DiHT and SigLIP.

InfoNCE()(model(batch), model.scalars())     # on every process, with its own rows
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.objectives.ranks import gathered, rank, ring
from models.trainable import Features, Loss, Objective, Scalars

Costs = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""() of logits (m, n) and targets (m,): summed over rows, each of which has one of all others' rows for its own."""


class InfoNCE(Objective):
    """½ (CE of an image among all texts + CE of a text among all images), Radford et al. 2021, figure 3.

    Logits are cosines times exp(`logit_scale`). Each process compares its own rows with those of all: `local loss` and
    gather with gradient, in the words of open_clip. Memory: two matrices of own x all rows.
    """

    joint = True

    def __init__(
        self, left: str = "image", right: str = "text", temperature: float | None = None, smoothing: float = 0
    ) -> None:
        """`left`, `right`: names of features (n, d) of unit rows. `temperature`: a fixed one, not the model's own.

        `smoothing`: share of the target that is spread over all rows (ALIGN, Jia et al. 2021, section 5).
        """
        super().__init__()
        self.left, self.right = left, right
        self.temperature, self.smoothing = temperature, smoothing

    def reads(self) -> frozenset[str]:
        return frozenset({self.left, self.right})

    def needs(self) -> frozenset[str]:
        return frozenset({"logit_scale"} if self.temperature is None else ())

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        left_md, right_md = rows_of(features, self.left), rows_of(features, self.right)
        with torch.autocast(left_md.device.type, enabled=False):
            return both_ways(left_md, right_md, scale_of(scalars, self.temperature), self._costs)

    def _costs(self, logits_mn: torch.Tensor, target_m: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits_mn, target_m, reduction="sum", label_smoothing=self.smoothing)


class HardNegativeNCE(Objective):
    """InfoNCE in which others weigh the more, the more alike they are (DiHT, Radenovic et al. 2023, section 3.3).

    −log of e^s_ii over α e^s_ii + Σ_j≠i w_ij e^s_ij, with w_ij = (N − 1) e^(β s_ij) / Σ_k≠i e^(β s_ik), in both
    directions. At α = 1 and β = 0 it is InfoNCE.
    """

    joint = True

    def __init__(self, alpha: float = 1.0, beta: float = 0.25, temperature: float | None = None) -> None:
        """`alpha`: weight of a row's own among all, above 0 and at most 1. `beta`: 0 or more. `temperature`: as of
        `InfoNCE`. Raises `ValueError`."""
        super().__init__()
        if not 0 < alpha <= 1 or beta < 0:
            raise ValueError(f"alpha = {alpha:g}, beta = {beta:g}: expected 0 < alpha <= 1 and beta >= 0")
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def reads(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def needs(self) -> frozenset[str]:
        return frozenset({"logit_scale"} if self.temperature is None else ())

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        images_md, texts_md = rows_of(features, "image"), rows_of(features, "text")
        with torch.autocast(images_md.device.type, enabled=False):
            return both_ways(images_md, texts_md, scale_of(scalars, self.temperature), self._costs)

    def _costs(self, logits_mn: torch.Tensor, target_m: torch.Tensor) -> torch.Tensor:
        own_m = logits_mn.gather(1, target_m[:, None])[:, 0]
        others = logits_mn.shape[1] - 1
        counted_m = own_m + math.log(self.alpha)
        if others:
            own_mn = functional.one_hot(target_m, others + 1).bool()
            hard_m, weights_m = (
                (share * logits_mn).masked_fill(own_mn, float("-inf")).logsumexp(dim=1)
                for share in (1 + self.beta, self.beta)
            )
            counted_m = torch.logaddexp(counted_m, math.log(others) + hard_m - weights_m)
        return (counted_m - own_m).sum()


class Sigmoid(Objective):
    """Is this the text of that image? Asked of every pair alone (Zhai et al. 2023, equation 1 and section 3.3).

    Σ_ij −log σ(z_ij (exp(`logit_scale`) · cosine_ij + `logit_bias`)), z = 1 where the text is the image's and −1 where
    it is not, over the number of texts. They go round the processes, so that memory is own x own rows. A sample may
    have several texts, all of which are its own: the multi-positive loss of FLAIR (Xiao et al. 2025, L^mps).
    """

    joint = True

    def reads(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def needs(self) -> frozenset[str]:
        return frozenset({"logit_scale", "logit_bias"})

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        images_md, texts = rows_of(features, "image"), features["text"]
        with torch.autocast(images_md.device.type, enabled=False):
            scale, bias = scalar(scalars, "logit_scale").exp(), scalar(scalars, "logit_bias")
            texts_mkd = texts if texts.ndim == 3 else texts[:, None]
            total = images_md.new_zeros(())
            for owner, others_mkd in ring(texts_mkd):
                own = owner == rank()
                # Its logits are computed again in the backward pass instead of kept.
                total = total + checkpoint(
                    _unlikely, images_md, others_mkd, scale, bias, own, use_reentrant=False, preserve_rng_state=False
                )
        return Loss(total, images_md.new_tensor(texts_mkd.shape[0] * texts_mkd.shape[1]))


def _unlikely(
    images_md: torch.Tensor, texts_mkd: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, own: bool
) -> torch.Tensor:
    """(): −log of how likely the pairs of these images and texts are to be what they are."""
    logits_mmk = torch.einsum("md,nkd->mnk", images_md, texts_mkd) * scale + bias
    signs_mm = -torch.ones(logits_mmk.shape[:2], dtype=logits_mmk.dtype, device=logits_mmk.device)
    if own:
        signs_mm.fill_diagonal_(1)
    return -functional.logsigmoid(signs_mm[..., None] * logits_mmk).sum()


def both_ways(left_md: torch.Tensor, right_md: torch.Tensor, scale: torch.Tensor | float, costs: Costs) -> Loss:
    """½ (left among all right + right among all left), of unit rows whose cosines are multiplied by `scale`."""
    target_m = torch.arange(len(left_md), device=left_md.device) + rank() * len(left_md)
    total = left_md.new_zeros(())
    for rows_md, others_md in ((left_md, right_md), (right_md, left_md)):
        total = total + costs(scale * rows_md @ gathered(others_md).T, target_m)
    return Loss(total / 2, left_md.new_tensor(len(left_md)))


def scale_of(scalars: Scalars, temperature: float | None) -> torch.Tensor | float:
    """What cosines are multiplied by: the model's own, or by a fixed temperature. Raises `ValueError` as `scalar`."""
    return scalar(scalars, "logit_scale").exp() if temperature is None else 1 / temperature


def scalar(scalars: Scalars, name: str) -> torch.Tensor:
    """(). Raises `ValueError` where the model has none of that name."""
    if name not in scalars:
        raise ValueError(f"the model has no {name}; give it one at the start: `{name.removeprefix('logit_')}`")
    return scalars[name]


def rows_of(features: Features, name: str) -> torch.Tensor:
    """(m, d). Raises `ValueError` where there is none of that name, or several a sample."""
    if name not in features:
        raise ValueError(f"no features {name!r}; this model gives {', '.join(sorted(features))}")
    if features[name].ndim != 2:
        raise ValueError(f"{name} is {tuple(features[name].shape)}; this objective takes one row a sample")
    return features[name]
