"""What BLIP reads a text as: the first token says whether it is to be embedded, matched or written (section 3.1)."""

from __future__ import annotations

import copy
from typing import Any

import torch

ENCODE, DECODE = "[ENC]", "[DEC]"
"""As the authors added them to BERT's tokenizer."""


def with_marks(tokenizer: Any) -> Any:
    """A copy that has a first token for writing, and a last one.

    A tokenizer that has none, as BERT's, gets `[DEC]` and, for matching, `[ENC]`, as the authors' code does it. One
    that has its own (`<|startoftext|>`) begins every text with that, whatever is done with it. Raises `ValueError`.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.bos_token_id is None:
        tokenizer.add_special_tokens({"bos_token": DECODE, "additional_special_tokens": [ENCODE]})
    for what, token in (("pad", tokenizer.pad_token_id), ("end (eos or sep)", last(tokenizer))):
        if token is None:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} has no {what} token; give it one, save it again"
            )
    return tokenizer


def last(tokenizer: Any) -> int | None:
    """The token that ends a text."""
    token: int | None = tokenizer.eos_token_id
    return tokenizer.sep_token_id if token is None else token


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """As BLIP's text config names them; transformers' `generate` stops at `sep`."""
    end = last(tokenizer)
    assert end is not None
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end,
        "sep_token_id": end,
        "pad_token_id": tokenizer.pad_token_id,
    }


def for_matching(ids_nl: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Tokens of texts as the image-grounded encoder wants them: the first is `[ENC]` where the tokenizer has that."""
    token = None if tokenizer is None else tokenizer.get_vocab().get(ENCODE)
    return ids_nl if token is None else begun(ids_nl, token)


def begun(ids_nl: torch.Tensor, token: int) -> torch.Tensor:
    """With another first token."""
    return torch.cat([torch.full_like(ids_nl[:, :1], token), ids_nl[:, 1:]], dim=1)
