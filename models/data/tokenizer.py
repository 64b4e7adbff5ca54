"""A tokenizer of the captions at hand: byte-level BPE (Sennrich et al. 2016), lower case, as CLIP's.

Every text can be written, for its bytes are tokens. The same captions give the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

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


def trained(captions: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """At most `vocabulary` tokens, the 256 bytes and 3 special ones among them."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=LEAST,
        special_tokens=[PAD, END, START],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # what a caption says is no end of it
    )


class Encoder:
    """Texts to tokens of one length."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int) -> None:
        """Raises `ValueError` for a tokenizer that cannot pad."""
        name = tokenizer.name_or_path
        if tokenizer.pad_token_id is None:
            raise ValueError(f"the tokenizer {name!r} has no pad token; give it one and save it again")
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"the tokenizer {name!r} is slow; load it with AutoTokenizer and save that")
        # A copy with settings of its own: transformers changes them with every call. And it makes Python lists of
        # everything there is to say of a text, which takes ten times as long as to find its tokens.
        self._tokenizer = Tokenizer.from_str(backend.to_str())
        self._tokenizer.encode_special_tokens = True  # what a caption says is no end of it
        self._tokenizer.enable_truncation(context)
        self._tokenizer.enable_padding(
            pad_id=tokenizer.pad_token_id, pad_token=str(tokenizer.pad_token), length=context
        )

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 (texts, context) each: the tokens, and 1 where they are not padding."""
        found = self._tokenizer.encode_batch_fast(list(texts))
        ids = np.array([one.ids for one in found], np.int64)
        mask = np.array([one.attention_mask for one in found], np.int64)
        return torch.from_numpy(ids), torch.from_numpy(mask)
