"""Captioners other than BLIP, as transformers builds them: with processors, prompts and templates of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
import transformers
from transformers import PreTrainedTokenizerFast

from models.captioners.captioner import Captioner
from models.captioners.decoding import Decoding
from tests.models.captioners import tiny

SIZE = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
VISION = {**SIZE, "image_size": 16, "patch_size": 8}
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)
T: Any = transformers


def tokenizer(image: bool) -> Any:
    """With a token for the place of an image, where the model has one."""
    plain = tiny.tokenizer()
    ends = {"bos_token": plain.bos_token, "eos_token": plain.eos_token, "pad_token": plain.pad_token}
    if image:
        ends["extra_special_tokens"] = {"image_token": "<image>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer, **ends)  # type: ignore[no-untyped-call]


def ends(own: Any) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(own), **{name: getattr(own, name) for name in names}}


def square(**more: Any) -> Any:
    return T.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, **more)


def git() -> tuple[Any, Any]:
    own = tokenizer(image=False)
    config = T.GitConfig(vision_config=VISION, **SIZE, **ends(own), max_position_embeddings=64)
    return T.GitForCausalLM(config), T.GitProcessor(square(), own)


def blip_2() -> tuple[Any, Any]:
    own = tokenizer(image=True)
    former = {**SIZE, "encoder_hidden_size": 32, "vocab_size": len(own)}
    text = {"model_type": "opt", **ends(own), "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
    config = T.Blip2Config(
        vision_config=VISION, qformer_config=former, text_config=text, num_query_tokens=4,
        image_token_index=own.image_token_id,
    )  # fmt: skip
    images = T.BlipImageProcessorPil(size={"height": 16, "width": 16})
    return T.Blip2ForConditionalGeneration(config), T.Blip2Processor(images, own, num_query_tokens=4)


def llava() -> tuple[Any, Any]:
    own = tokenizer(image=True)
    text = T.LlamaConfig(**SIZE, **ends(own), max_position_embeddings=256)
    config = T.LlavaConfig(
        vision_config=T.CLIPVisionConfig(**VISION), text_config=text, image_token_index=own.image_token_id
    )
    processor = T.LlavaProcessor(
        square(), own, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )  # fmt: skip
    return T.LlavaForConditionalGeneration(config), processor


def florence_2() -> tuple[Any, Any]:
    own = tokenizer(image=True)
    vision = {name: [2] * 4 for name in ("num_heads", "num_groups")}
    vision |= {"embed_dim": [8, 8, 8, 32], "depths": [1] * 4}
    half = {"layers": 1, "attention_heads": 2, "ffn_dim": 64}
    text: dict[str, Any] = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in half.items()}
    text |= {"model_type": "bart", **ends(own), "d_model": 32, "max_position_embeddings": 128}
    text |= {"decoder_start_token_id": own.eos_token_id, "forced_bos_token_id": None}
    config = T.Florence2Config(
        vision_config={**vision, "projection_dim": 32, "window_size": 2},
        text_config=text, image_token_id=own.image_token_id, is_encoder_decoder=True,
    )  # fmt: skip
    images = T.CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    return T.Florence2ForConditionalGeneration(config), T.Florence2Processor(images, own)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("build", [git, blip_2, llava, florence_2])
def test_it_writes_captions_that_do_not_depend_on_the_neighbours(
    build: Callable[[], tuple[Any, Any]], tmp_path: Path
) -> None:
    model, processor = build()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    captioner = Captioner.load(tmp_path, "cpu", "float32")
    assert captioner.name == type(model).__name__
    dice = np.random.default_rng(0)
    images = [dice.integers(0, 256, (20 + n, 24, 3), dtype=np.uint8) for n in range(3)]
    drawn = Decoding(candidates=2, most_tokens=5, least_tokens=5, seed=1)
    for decoding in (drawn, Decoding(method="beam", beams=2, candidates=2, most_tokens=4)):
        together = captioner.write(images, ["a", "b", "c"], decoding)
        for image, uid, captions in zip(images, "abc", together, strict=True):
            (alone,) = captioner.write([image], [uid], decoding)
            assert [one.text for one in alone] == [one.text for one in captions]
            assert [one.score for one in alone] == pytest.approx([one.score for one in captions], abs=1e-4)
            assert len(captions) == 2
    assert len({one.text for captions in captioner.write(images, ["a", "b", "c"], drawn) for one in captions}) == 6


def test_one_that_chats_is_asked_by_its_template_whatever_the_lengths_of_the_prompts(tmp_path: Path) -> None:
    model, processor = llava()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    captioner = Captioner.load(tmp_path, "cpu", "float32")
    image = np.full((16, 16, 3), 99, np.uint8)
    decoding = Decoding(most_tokens=6, least_tokens=6)
    prompts: list[str | None] = ["what is it, in many words, please?", "a cat?", None]
    together = captioner.write([image] * 3, ["a", "a", "a"], decoding, prompts)
    alone = [captioner.write([image], ["a"], decoding, [prompt])[0] for prompt in prompts]
    assert [captions[0].text for captions in together] == [captions[0].text for captions in alone]
    assert not any("ASSISTANT" in captions[0].text for captions in together)
