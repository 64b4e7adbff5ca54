"""Texts that share a row give what each gives alone: outputs and gradients."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoConfig, AutoModelForCausalLM

from models.towers.packing import Packing, first_fit

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
KINDS = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
    "qwen3": {"head_dim": 8},
}
LENGTHS = (5, 1, 12, 3, 0, 12, 7)


def small(kind: str, attention: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL, **KINDS[kind], attn_implementation=attention)
    return AutoModelForCausalLM.from_config(config).double()  # type: ignore[no-untyped-call]


def padded(left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(len(LENGTHS), 14, dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        mask[row, 14 - length : 14] = 1
    if not left:
        mask = mask.flip(1)
    return torch.randint(1, 97, mask.shape, generator=torch.Generator().manual_seed(1)) * mask, mask


@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_give_the_logits_and_gradients_of_texts_alone(kind: str, attention: str, left: bool) -> None:
    model = small(kind, attention)
    tokens, mask = padded(left)
    weights = torch.randn(*tokens.shape, 97, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    packing = Packing(mask)
    assert packing.rows == 4  # of 7, one of them empty
    logits = packing.unpack(model(input_ids=packing.pack(tokens), **packing.arguments).logits)
    (logits * weights).sum().backward()  # type: ignore[no-untyped-call]
    found = {name: own.grad.clone() for name, own in model.named_parameters()}
    model.zero_grad()
    for row, (ids, here) in enumerate(zip(tokens, mask.bool(), strict=True)):
        if here.any():
            alone = model(input_ids=ids[here][None]).logits[0]
            torch.testing.assert_close(logits[row, here], alone, atol=1e-9, rtol=0)
            (alone * weights[row, here]).sum().backward()
    assert not logits[~mask.bool()].any()
    for name, own in model.named_parameters():
        torch.testing.assert_close(found[name], own.grad, atol=1e-9, rtol=1e-9, msg=name)


def test_embeddings_are_packed_as_tokens_are_and_get_their_gradients_back() -> None:
    tokens, mask = padded()
    embedded = torch.randn(*tokens.shape, 3, requires_grad=True)
    packing = Packing(mask, room=20)
    again = packing.unpack(packing.pack(embedded))
    torch.testing.assert_close(again, embedded * mask[..., None])
    (again * again.detach()).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(embedded.grad, embedded.detach() * mask[..., None])
    assert packing.pack(tokens).shape == packing.position_ids.shape == (2, 20)  # 40 tokens


def test_no_text_is_split_or_laid_over_another_and_rows_are_nearly_full() -> None:
    dice = Random(0)
    lengths = [dice.randint(1, 60) for _ in range(500)]
    rows, starts = first_fit(lengths, 64)
    taken = {(row, start + place) for row, start, n in zip(rows, starts, lengths, strict=True) for place in range(n)}
    assert len(taken) == sum(lengths)
    assert max(place for _, place in taken) < 64
    assert max(rows) + 1 <= 1.05 * sum(lengths) / 64


def test_a_text_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="room = 8: a text of 12 tokens does not fit"):
        Packing(padded()[1], room=8)
