"""A tokenizer of the texts at hand: byte-level BPE (Sennrich et al. 2016); of captions in lower case, as CLIP's.

Every text can be written, for its bytes are tokens. The same captions give the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, END, START = "<|pad|>", "<|endoftext|>", "<|startoftext|>"
"""In the order of their ids. The end is not 2: of a config that says so, transformers' CLIP takes the place of the
largest id for the end of a text, whatever that is."""
LEAST = 2
"""Times that a pair of tokens must be seen to become one."""


class Marks(NamedTuple):
    """Tokens that no text has, which get the first ids in this order, and where they stand."""

    pad: str = PAD
    end: str = END
    start: str = START
    mask: str | None = None
    """In place of tokens that are to be guessed; texts then come in pairs, too, each with an end of its own."""
    closes: bool = True
    """Whether a text that is given has its end. That of a model which writes on has none."""


CAPTION = Marks()
WRITTEN_ON = Marks(closes=False)
MASKED = Marks("[PAD]", "[SEP]", "[CLS]", "[MASK]")
"""Called as BERT calls them (Devlin et al. 2019, section 3)."""


def trained(
    texts: Iterable[str], vocabulary: int, context: int, marks: Marks = CAPTION, cased: bool = False
) -> PreTrainedTokenizerFast:
    """At most `vocabulary` tokens, the 256 bytes and the special ones among them."""
    tokenizer = Tokenizer(BPE())
    normal = [normalizers.NFC()] if cased else [normalizers.NFC(), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(normal)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=LEAST,
        special_tokens=[marks.pad, marks.end, marks.start, *([marks.mask] if marks.mask else [])],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start, end = marks.start, f" {marks.end}" if marks.closes else ""
    ends = [(token, tokenizer.token_to_id(token)) for token in (marks.start, marks.end)]
    pair = {"pair": f"{start} $A{end} $B:1 {marks.end}:1"} if marks.mask else {}
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A{end}", special_tokens=ends, **pair)
    masked = {"cls_token": marks.start, "sep_token": marks.end, "mask_token": marks.mask} if marks.mask else {}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=marks.start,
        eos_token=marks.end,
        pad_token=marks.pad,
        **masked,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # what a caption says is no end of it
    )


class Encoder:
    """Texts to tokens of one length."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int) -> None:
        """Raises `ValueError` for a tokenizer that cannot pad."""
        if tokenizer.pad_token_id is None:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} has no pad token; give it one and save it again"
            )
        self._tokenizer = _copied(tokenizer)
        self._tokenizer.enable_truncation(context)
        self._tokenizer.no_padding()
        self._context, self._pad = context, tokenizer.pad_token_id

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 (texts, context) each: the tokens, and 1 where they are not padding."""
        found = [one.ids for one in self._tokenizer.encode_batch_fast(list(texts))]
        told = np.arange(self._context) < np.array([len(tokens) for tokens in found])[:, None]
        ids = np.full(told.shape, self._pad, np.int64)
        ids[told] = np.fromiter(chain.from_iterable(found), np.int64)  # padding would pass through Python, too
        return torch.from_numpy(ids), torch.from_numpy(told.astype(np.int64))


class Tokens:
    """Texts to tokens, as many as they are; with a start where the tokenizer gives texts one, and an end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises `ValueError` for a tokenizer without an end."""
        self._tokenizer = _copied(tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        first, last = (
            getattr(tokenizer, f"{name}_token_id") if getattr(tokenizer, f"{name}_token_id") is not None else other
            for name, other in (("bos", tokenizer.cls_token_id), ("eos", tokenizer.sep_token_id))
        )
        if last is None:
            raise ValueError(f"the tokenizer {tokenizer.name_or_path!r} has no end token; give it an eos_token")
        self._start = [first] if first is not None and first in self._tokenizer.encode("").ids[:1] else []
        self._end = [last]
        self._pad = tokenizer.pad_token_id or 0  # whatever it is, the mask hides it

    def __call__(self, text: str, start: bool = True, end: bool = True) -> list[int]:
        """`start`, `end`: whether the text's own are among them; False within a longer text."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [*(self._start if start else ()), *found, *(self._end if end else ())]

    def padded(self, rows: Sequence[Sequence[int]], length: int) -> dict[str, torch.Tensor]:
        """int64 (rows, length) each: `input_ids`, and `attention_mask`, 1 where they are not padding."""
        ids, mask = np.full((len(rows), length), self._pad, np.int64), np.zeros((len(rows), length), np.int64)
        for number, tokens in enumerate(rows):
            ids[number, : len(tokens)], mask[number, : len(tokens)] = tokens, 1
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def _copied(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """With settings of its own: transformers changes them with every call. And it makes Python lists of everything
    there is to say of a text, which takes ten times as long as to find its tokens. Raises `ValueError`."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"the tokenizer {tokenizer.name_or_path!r} is slow; load it with AutoTokenizer and save that")
    copied = Tokenizer.from_str(backend.to_str())
    copied.encode_special_tokens = True  # what a caption says is no end of it
    return copied
