"""Images as a text sees them: what FLAIR learns beside global embeddings (Xiao et al. 2025, section 3).

objective = TextConditioned(width=512)       # needs `TwoTowers(..., patches=True)`
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.objectives.contrastive import scalar
from models.objectives.ranks import rank, ring, world
from models.objectives.sizes import wrong_size
from models.splitmix import mixed
from models.trainable import Features, Loss, Objective, Scalars

NEEDED = ("text", "patches", "position")


class Pool(nn.Module):
    """Attention from texts to the patches of an image, and to a zero, for a text that the image says nothing of."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.normed = nn.ModuleDict({name: nn.LayerNorm(width) for name in ("text", "key", "value")})
        self.attention = nn.MultiheadAttention(width, heads, add_zero_attn=True, batch_first=True)

    def forward(self, texts_mnd: torch.Tensor, patches_mpd: torch.Tensor) -> torch.Tensor:
        """(m, n, d), of length one: image i of m as each of its own n texts sees it."""
        # Texts come with length one; at this length, LayerNorm's epsilon does not show.
        queries = self.normed["text"](texts_mnd * texts_mnd.shape[-1] ** 0.5)
        keys, values = (self.normed[name](patches_mpd) for name in ("key", "value"))
        return functional.normalize(self.attention(queries, keys, values, need_weights=False)[0], dim=-1)


class TextConditioned(Objective):
    """The sigmoid loss between a text and an image pooled by that text (FLAIR's L^tcs).

    An image meets all K texts of its own and one of every other sample, drawn anew at every step; the sum over them is
    divided by N + K − 1, as in the authors' code. The texts go round the processes.
    """

    joint = True
    remedy = "`patches: true` of the model"

    def __init__(self, width: int, heads: int = 8) -> None:
        """`width`: of the embeddings. Raises `ValueError` where it is no multiple of `heads`."""
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads = {heads}: expected a divisor of width = {width}")
        self._width = width
        self.pool = Pool(width, heads)

    def reads(self) -> frozenset[str]:
        return frozenset(NEEDED)

    def needs(self) -> frozenset[str]:
        return frozenset({"logit_scale", "logit_bias"})

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        for name in NEEDED:
            if name not in features:
                raise ValueError(f"no features {name!r}; the model needs `patches: true`, and the batch `position`")
        texts, patches_mpd, positions_m = (features[name] for name in NEEDED)
        if patches_mpd.shape[-1] != self._width:
            raise wrong_size("width", self._width, "patches", patches_mpd.shape[-1])
        texts_mkd = texts if texts.ndim == 3 else texts[:, None]
        with torch.autocast(patches_mpd.device.type, enabled=False):
            given = (scalar(scalars, "logit_scale").exp(), scalar(scalars, "logit_bias"), patches_mpd)
            total = self._unlikely(*given, texts_mkd, 1)
            for (owner, others_mkd), (_, places_m) in zip(ring(texts_mkd), ring(positions_m), strict=True):
                drawn_mm = mixed(mixed(positions_m)[:, None] + places_m) % others_mkd.shape[1]
                chosen_mmd = others_mkd[torch.arange(len(places_m), device=drawn_mm.device), drawn_mm]
                if owner == rank():
                    chosen_mmd = _without_own(chosen_mmd)
                # All that the pool computes for these pairs is computed again in the backward pass instead of kept.
                total = total + cast(
                    torch.Tensor, checkpoint(self._unlikely, *given, chosen_mmd, -1, use_reentrant=False)
                )
        return Loss(total, total.new_tensor(len(texts_mkd) + (texts_mkd.shape[1] - 1) / world()))

    def _unlikely(
        self, scale: torch.Tensor, bias: torch.Tensor, patches_mpd: torch.Tensor, texts_mnd: torch.Tensor, sign: int
    ) -> torch.Tensor:
        cosines_mn = (self.pool(texts_mnd, patches_mpd) * texts_mnd).sum(dim=-1)
        return -functional.logsigmoid(sign * (scale * cosines_mn + bias)).sum()

    def export(self, folder: Path) -> None:
        """The pool, beside the model: `text_conditioned.safetensors`."""
        save_file(self.pool.state_dict(), folder / "text_conditioned.safetensors")


def _without_own(rows_mmd: torch.Tensor) -> torch.Tensor:
    """(m, m - 1, d) of (m, m, d): without the diagonal."""
    others = ~torch.eye(len(rows_mmd), dtype=torch.bool, device=rows_mmd.device)
    return rows_mmd[others].reshape(len(rows_mmd), len(rows_mmd) - 1, rows_mmd.shape[-1])
