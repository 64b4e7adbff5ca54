"""Nucleus sampling whose draws depend on the image and not on its neighbours: a rerun writes the same captions.

The number that decides a token follows from (seed, uid, candidate, step) alone; transformers' own sampling takes
it from one generator for all rows, so that every row depends on the size of the batch and on the rows before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import LogitsProcessor

from models.captioners.decoding import Decoding
from models.splitmix import mixed

LIKELY = 256
"""Tokens among which a nucleus is looked for first: sorting a vocabulary of 30,000 takes as long as a small model."""
WIDER = {"float16": "take bfloat16 or float32", "bfloat16": "take float32"}
GOLDEN = -7046029254386353131
"""SplitMix64's increment: states of one stream, far apart for every other."""


class Finite(LogitsProcessor):
    """Raises `FloatingPointError` where a model's logits are no numbers: captions of them would be nonsense, unseen."""

    def __init__(self, model: str, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, str(dtype).removeprefix("torch.")

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        """`scores`: (rows, vocabulary); minus infinity for what is forbidden, but never for all of a row."""
        if bool(scores.amax(1).isfinite().all()):  # NaN is the largest of numbers here
            return scores
        remedy = WIDER.get(self._dtype, "fetch or train its weights again")
        raise FloatingPointError(f"{self._model}: {self._dtype} cannot hold this model's numbers; {remedy}")


class Drawing(LogitsProcessor):
    """Chooses the next token of every row: what it returns leaves `generate` no other.

    `scores`: float32 (rows,) per step, the logarithm of the probability that the model gave what was chosen.
    """

    def __init__(self, uids: Sequence[str], decoding: Decoding) -> None:
        streams = [_stream(decoding.seed, uid, one) for uid in uids for one in range(decoding.candidates)]
        self._streams = torch.tensor(streams, dtype=torch.int64)
        self._decoding = decoding
        self.scores: list[torch.Tensor] = []
        self.begins = 0
        """Tokens that stood there before the first step."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        """float32 (rows, vocabulary): 0 for the token that is chosen, minus infinity for every other."""
        step = len(self.scores)
        if not step:
            self.begins = input_ids.shape[1]
        logits_rv = scores.float()
        chosen_r = nucleus(logits_rv / self._decoding.temperature, self._decoding.top_p, self.uniform(step))
        chosen_r1 = chosen_r.unsqueeze(1)
        # The model's own probability, whatever the temperature: what comes from several settings can be compared.
        self.scores.append((logits_rv.gather(1, chosen_r1).squeeze(1) - logits_rv.logsumexp(1)).cpu())
        return torch.full_like(logits_rv, float("-inf")).scatter_(1, chosen_r1, 0.0)

    def uniform(self, step: int) -> torch.Tensor:
        """float64 (rows,) in [0, 1): the numbers that decide the tokens of a step."""
        bits = mixed(self._streams + torch.tensor(step) * GOLDEN)  # a tensor wraps around
        return ((bits >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


def nucleus(logits_rv: torch.Tensor, top_p: float, uniform_r: torch.Tensor) -> torch.Tensor:
    """int64 (rows,): the token that each number in [0, 1) falls on, among the fewest with probability `top_p`.

    Tokens stand in the order of the vocabulary, not of their probability: two that are about as likely would change
    places with the float noise of another batch, and the number would fall on the other.
    """
    probs_rv = logits_rv.softmax(1)
    count = min(LIKELY, logits_rv.shape[1])
    probs_rk, tokens_rk = probs_rv.topk(count, dim=1)
    if count < logits_rv.shape[1] and bool((probs_rk.sum(1) < top_p).any()):
        return _fallen_on(probs_rv.double().masked_fill_(~_fewest(probs_rv, top_p), 0), uniform_r)
    probs_rk = probs_rk.double()
    before_rk = probs_rk.cumsum(1) - probs_rk
    probs_rk = probs_rk.masked_fill(before_rk >= top_p, 0)
    tokens_rk, order_rk = tokens_rk.sort(dim=1)
    return tokens_rk.gather(1, _fallen_on(probs_rk.gather(1, order_rk), uniform_r)[:, None]).squeeze(1)


def _fewest(probs_rv: torch.Tensor, top_p: float) -> torch.Tensor:
    """bool (rows, vocabulary): the fewest tokens with that probability; of equal ones the first.

    Values are sorted without their places, which numpy does ten times as fast on a processor as torch sorts with them.
    """
    if probs_rv.device.type == "cpu":
        sorted_rv = torch.from_numpy(np.sort(probs_rv.numpy(), axis=1)).flip(1).double()
    else:
        sorted_rv = probs_rv.sort(dim=1, descending=True).values.double()
    count_r1 = (sorted_rv.cumsum(1) - sorted_rv < top_p).sum(1, keepdim=True)
    least_r1 = sorted_rv.gather(1, count_r1 - 1).to(probs_rv.dtype)
    above_rv, equal_rv = probs_rv > least_r1, probs_rv == least_r1
    return above_rv | (equal_rv & (equal_rv.cumsum(1) <= count_r1 - above_rv.sum(1, keepdim=True)))


def _fallen_on(probs_rk: torch.Tensor, uniform_r: torch.Tensor) -> torch.Tensor:
    """int64 (rows,): the place that a number in [0, 1) falls on, of places as wide as the probabilities, float64."""
    sums_rk = probs_rk.cumsum(1)
    total_r1 = sums_rk[:, -1:]
    wanted_r1 = uniform_r.to(sums_rk.device)[:, None] * total_r1
    wanted_r1 = torch.minimum(wanted_r1, total_r1.nextafter(torch.zeros_like(total_r1)))  # which rounding may reach
    return torch.searchsorted(sums_rk, wanted_r1, right=True).squeeze(1)


def _stream(seed: int, uid: str, candidate: int) -> int:
    """A 64-bit state, signed."""
    data = f"{seed} {uid} {candidate}".encode()
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True)
