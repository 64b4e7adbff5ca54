"""A tokenizer of the captions at hand: every text comes back, transformers loads it, CLIP finds its ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from models.data.tokenizer import Encoder, trained

LINES = [f"A photo of {count} {colour} {thing}." for count in ["one", "two", "three"] for colour in
         ["red", "green", "blue"] for thing in ["cats", "dogs", "houses", "trees"]]  # fmt: skip
CONTEXT = 16


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return trained(LINES, vocabulary=290, context=CONTEXT)


def test_the_same_captions_give_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    again = trained(iter(LINES), vocabulary=290, context=CONTEXT)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    other = trained(LINES[:10] * 4, vocabulary=290, context=CONTEXT)
    assert other.backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str()


def test_the_vocabulary_is_kept_and_used(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 290
    assert len(tokenizer("a photo of three green houses.").input_ids) < 15  # of 29 characters


def test_words_of_special_tokens_in_a_caption_are_no_end_of_it(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, _ = Encoder(tokenizer, 40)(["cats <|endoftext|> dogs"])
    assert (ids == tokenizer.eos_token_id).sum() == 1
    assert tokenizer("cats <|endoftext|> dogs").input_ids == ids[0][ids[0] != tokenizer.pad_token_id].tolist()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_every_text_comes_back_in_lower_case(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    wanted = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    assert str(tokenizer.decode(ids, skip_special_tokens=True)).removeprefix(" ") == wanted.removeprefix(" ")


@given(st.lists(st.text(max_size=60), min_size=1, max_size=5), st.integers(4, 40))
def test_batches_are_what_transformers_makes_of_them(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], context: int
) -> None:
    ids, mask = Encoder(tokenizer, context)(texts)
    wanted = tokenizer(texts, padding="max_length", truncation=True, max_length=context, return_tensors="pt")
    assert ids.dtype == mask.dtype == torch.int64
    assert torch.equal(ids, wanted["input_ids"])
    assert torch.equal(mask, wanted["attention_mask"])
    assert (ids[:, -1][mask[:, -1] == 1] == tokenizer.eos_token_id).all()


def test_it_is_loaded_again_as_it_was_saved(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.bos_token_id) == (0, 1, 2)
    assert loaded.model_max_length == CONTEXT
    assert loaded([*LINES, "<|endoftext|>"]).input_ids == tokenizer([*LINES, "<|endoftext|>"]).input_ids


def test_clip_pools_at_the_end_of_a_text_whatever_follows_it(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CONTEXT, projection_dim=8, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = CLIPTextModelWithProjection(config)
    ids, _ = Encoder(tokenizer, CONTEXT)(["two red dogs"])
    ends = int((ids[0] == tokenizer.eos_token_id).nonzero()[0])
    other = ids.clone()
    other[0, ends + 1 :] = len(tokenizer) - 1  # the largest id, where the old rule would look
    changed = ids.clone()
    changed[0, ends - 1] = 5
    with torch.no_grad():
        plain, after, before = (model(input_ids=each).text_embeds for each in (ids, other, changed))
    assert torch.allclose(plain, after, atol=1e-6)
    assert not torch.allclose(plain, before, atol=1e-3)


def test_a_tokenizer_that_cannot_pad_is_refused() -> None:
    bare = trained(LINES, vocabulary=300, context=8)
    bare.pad_token = None
    with pytest.raises(ValueError, match="has no pad token; give it one and save it again"):
        Encoder(bare, 8)


def test_what_is_padded_is_the_tokenizers_own_padding() -> None:
    """Of many it is the end of a text, as CLIP's."""
    like_clip = trained(LINES, vocabulary=290, context=8)
    like_clip.pad_token = like_clip.eos_token
    ids, mask = Encoder(like_clip, 30)(["two red dogs"])
    assert like_clip.pad_token_id != 0
    assert set(ids[0][mask[0] == 0].tolist()) == {like_clip.pad_token_id}
