"""Random dual encoders of a few thousand weights, one of every class, saved as their authors save theirs.

Tokenizers are trained here, on a few lines.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
from tokenizers import models as kinds
from transformers import (
    AlignConfig,
    AlignModel,
    BertTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

LINES = 20 * ["a red circle on a white ground", "two blue squares", "一只猫坐在垫子上", "the cat sat on the mat"]
SIDE, PATCH, WIDTH = 32, 8, 16
KINDS = ("clip", "metaclip_2", "siglip", "siglip2", "align", "chinese_clip")


def save(kind: str, folder: Path, seed: int = 0) -> Path:
    """A model, its tokenizer and its image processor in `folder`."""
    torch.manual_seed(seed)
    model = _model(kind)
    with torch.no_grad():  # as initialised, a tiny tower tells nothing apart
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    image_processor(kind).save_pretrained(folder)
    return folder


def _model(kind: str) -> Any:
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = tokenizer(kind)
    text = layers | {"vocab_size": len(words), "pad_token_id": words.pad_token_id}
    text |= {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    vision = layers | {"image_size": SIDE, "patch_size": PATCH}
    if kind == "clip":
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    if kind == "metaclip_2":
        return MetaClip2Model(MetaClip2Config(text_config=text, vision_config=vision, projection_dim=WIDTH))
    if kind == "chinese_clip":
        return ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    if kind == "siglip":
        return SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    if kind == "siglip2":
        flexible = layers | {"num_patches": 16, "patch_size": PATCH}
        return Siglip2Model(Siglip2Config(text_config=text, vision_config=flexible))
    small: dict[str, Any] = {
        "width_coefficient": 0.25,
        "depth_coefficient": 0.1,
        "hidden_dim": WIDTH,
        "image_size": SIDE,
    }
    small |= {"in_channels": [8, 8], "out_channels": [8, 4 * WIDTH], "kernel_sizes": [3, 3], "strides": [1, 2]}
    small |= {"num_block_repeats": [1, 1], "expand_ratios": [1, 6], "depthwise_padding": []}
    return AlignModel(AlignConfig(text_config=text, vision_config=small, projection_dim=WIDTH))


def image_processor(kind: str) -> Any:
    """transformers' own, for pictures of a few pixels."""
    if kind in ("clip", "metaclip_2"):
        return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    if kind == "chinese_clip":
        return ChineseCLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    if kind == "siglip":
        return SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    if kind == "siglip2":
        return Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=16)
    return EfficientNetImageProcessorPil(  # as kakaobrain/align-base
        size={"height": SIDE + 8, "width": SIDE + 8},
        crop_size={"height": SIDE, "width": SIDE},
        do_center_crop=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
    )


@cache
def tokenizer(kind: str) -> Any:
    """A small one of the class that the model's authors use, or of its bare form where that needs sentencepiece."""
    if kind == "clip":
        return _clip_words()
    if kind in ("align", "chinese_clip"):
        return _bert_words()
    return _pieces(**({"eos_token": "</s>", "pad_token": "</s>"} if kind == "siglip" else {}))


def _clip_words() -> Any:
    bare = Tokenizer(kinds.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, end_of_word_suffix="</w>"
    )
    bare.train_from_iterator(LINES, trainer)
    words = sorted({*bare.get_vocab(), *(f"{letter}</w>" for letter in alphabet)})
    vocab = {word: place for place, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def _bert_words() -> Any:
    bare = Tokenizer(kinds.WordPiece(unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    bare.train_from_iterator(LINES, trainer)
    return BertTokenizer(vocab=bare.get_vocab(), model_max_length=512)


def _pieces(pad_token: str = "<pad>", eos_token: str = "</s>") -> Any:
    bare = Tokenizer(kinds.Unigram())
    bare.pre_tokenizer = pre_tokenizers.Metaspace()
    special = list(dict.fromkeys(["<s>", pad_token, eos_token, "<unk>"]))
    bare.train_from_iterator(LINES, trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>"))
    end = bare.token_to_id(eos_token)
    bare.post_processor = processors.TemplateProcessing(single=f"$A {eos_token}", special_tokens=[(eos_token, end)])
    fast: Any = PreTrainedTokenizerFast
    words = fast(tokenizer_object=bare, unk_token="<unk>", pad_token=pad_token, eos_token=eos_token, bos_token="<s>")
    words.model_input_names = ["input_ids"]  # as the authors' tokenizer_config.json says: padding is not masked
    return words
