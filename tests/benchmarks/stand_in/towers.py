"""The stand-in's shape: ALIGN (Jia et al. 2021), a convolutional tower beside a BERT, both as small as will do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models.without_torchvision  # isort: skip  # noqa: F401
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as kinds
from transformers import AlignConfig, AlignModel, PreTrainedTokenizerFast
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

SIDE = 192
"""Px. Images are squeezed into a square: their nine cells are then always the same nine squares, and six halvings leave
one number of each. At half the side the smallest shapes have 8 px, which may be too few to tell them apart."""
TRUNK = 256
"""Numbers that the trunk finds for each of 3 x 3 cells."""
WIDTH = 512
CONTEXT = 64
WORDS = 600
LONGEST, STICKY, RARE = 6, 0.2, 50
"""Of phrases: their words at most, how closely these must stick together, how often they must be met."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]")


def new_model(vocabulary: int) -> Any:
    """Random weights. The last block of the vision tower reads what the blocks before it, the trunk, see."""
    vision = {
        "image_size": SIDE,
        "width_coefficient": 0.5,  # of the channels below, and of the 32 of the stem
        "depth_coefficient": 1.0,
        "in_channels": [32, 64, 96, 192, 384, 2 * TRUNK],
        "out_channels": [64, 96, 192, 384, 2 * TRUNK, 2 * WIDTH],
        "kernel_sizes": [3, 3, 3, 3, 3, 3],
        "strides": [2, 2, 2, 2, 2, 1],
        "num_block_repeats": [1, 1, 2, 2, 1, 1],
        "expand_ratios": [1, 3, 3, 3, 3, 6],
        "depthwise_padding": [],
        "hidden_dim": WIDTH,
        "drop_connect_rate": 0.0,
        "batch_norm_momentum": 0.1,
    }
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": CONTEXT,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return AlignModel(AlignConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def new_tokenizer(captions: Sequence[str]) -> Any:
    """Words, and phrases whose words are rarely apart: `in the top left corner` is one token."""
    bare = Tokenizer(kinds.WordPiece(unk_token="[UNK]"))
    bare.normalizer = normalizers.Lowercase()
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[.,]"), "isolated")]
    )
    bare.train_from_iterator(captions, trainers.WordPieceTrainer(vocab_size=WORDS, special_tokens=list(SPECIAL)))
    bare.add_tokens([AddedToken(phrase, single_word=True, normalized=True) for phrase in phrases(captions)])
    start = bare.token_to_id("[CLS]")
    bare.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", start)])
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=bare, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", model_max_length=CONTEXT
    )


def phrases(captions: Sequence[str]) -> list[str]:
    """Words in a row that make up a fifth or more of what the rarest of them is used for."""
    texts = [re.findall(r"[^\s.,]+|[.,]", text.lower()) for text in captions]
    counts = Counter(
        tuple(words[start : start + length])
        for words in texts
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    )
    return [
        " ".join(words)
        for words, count in counts.items()
        if len(words) > 1
        and not {".", ","} & set(words)
        and count >= max(RARE, STICKY * min(counts[word,] for word in words))
    ]


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """As `stages.embed` loads it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    EfficientNetImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        resample=3,
        do_center_crop=False,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
    ).save_pretrained(folder)
