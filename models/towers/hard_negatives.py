"""Wrong partners that are easily taken for the right ones: drawn in proportion to what the towers think of them.

Align before Fuse (Li et al. 2021, section 3.2). The draw is a function of similarities and of the samples' places in
the order of the training alone, so that any number of processes, and a second pass, draw the same.
"""

from __future__ import annotations

import torch

from models.splitmix import mixed

BITS = 53
"""That a float64 holds of a hash."""


def fingerprints(rows: torch.Tensor) -> torch.Tensor:
    """int64 (n,) of (n, …), floating or integer: alike where, but for 1 in 2^64, all values of two rows are."""
    flat = rows.flatten(1)
    words_nk = flat.double().view(torch.int64) if flat.is_floating_point() else flat.long()
    places_k = mixed(torch.arange(words_nk.shape[1], device=rows.device))
    return mixed(words_nk ^ places_k).sum(1)


def hard_negatives(
    logits_mn: torch.Tensor, forbidden_mn: torch.Tensor, places_m: torch.Tensor, places_n: torch.Tensor, draw: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 (m,): one of n for each of m, with probability softmax of its logits over those that are not forbidden.

    And bool (m,): whether there was any. `places`: of the samples in the order of the training, int64. `draw`: which
    of several draws for the same samples this is. By the largest of logits with Gumbel noise, one for every pair.
    """
    hashes_mn = mixed(mixed(2 * places_m + draw)[:, None] + places_n)
    uniform_mn = ((hashes_mn >> (64 - BITS)) & ((1 << BITS) - 1)).double().add(0.5) / (1 << BITS)
    noisy_mn = logits_mn.double() - (-uniform_mn.log()).log()
    return noisy_mn.masked_fill(forbidden_mn, -torch.inf).argmax(1), ~forbidden_mn.all(1)
