"""How a model is loaded and used, by what it is: for people who find it on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from models.towers.dual_encoder import WHOLE_CONTEXT


class Use(NamedTuple):
    """What a card says of a kind of model."""

    pipeline: str
    """The hub's name of what it is for."""
    samples: str
    """What it learned from, as `12 … seen`."""
    code: str
    """Python that runs, with the folder in the place of `THIS FOLDER`."""


def use_of(config: Mapping[str, Any]) -> Use:
    """By the class that its config names; a dual encoder where that is none of the others."""
    kind = str((config.get("architectures") or [""])[0])
    for ending, use in USES.items():
        if kind.endswith(ending):
            return use
    return Use("zero-shot-image-classification", "image-text pairs", _two_towers(config))


def _two_towers(config: Mapping[str, Any]) -> str:
    places = config.get("text_config", {}).get("max_position_embeddings", 64)
    whole = config.get("model_type") in WHOLE_CONTEXT
    padding = f'padding="max_length", max_length={places}, truncation=True' if whole else "padding=True"
    return f"""import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

folder = "THIS FOLDER"  # or its name on the hub
model = AutoModel.from_pretrained(folder)
images = AutoImageProcessor.from_pretrained(folder)([Image.open("picture.jpg")], return_tensors="pt")
texts = AutoTokenizer.from_pretrained(folder)(["a red circle", "a square"], {padding}, return_tensors="pt")
with torch.inference_mode():
    image_rows = model.get_image_features(**images).pooler_output
    text_rows = model.get_text_features(**texts).pooler_output
print(torch.nn.functional.cosine_similarity(image_rows, text_rows))"""


LANGUAGE = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "THIS FOLDER"  # or its name on the hub
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
tokens = tokenizer("A picture of", return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=30)[0], skip_special_tokens=True))"""
MASKED = """import torch
from transformers import AutoTokenizer, BertForMaskedLM

folder = "THIS FOLDER"  # or its name on the hub
tokenizer, model = AutoTokenizer.from_pretrained(folder), BertForMaskedLM.from_pretrained(folder)
words = tokenizer("a picture of", add_special_tokens=False)["input_ids"]
tokens = [tokenizer.cls_token_id, *words, tokenizer.mask_token_id, tokenizer.sep_token_id]
with torch.inference_mode():
    guesses = model(torch.tensor([tokens])).logits[0, -2].topk(5).indices
print(tokenizer.batch_decode(guesses[:, None]))"""
CLASSES = """import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

folder = "THIS FOLDER"  # or its name on the hub
model = AutoModelForImageClassification.from_pretrained(folder)
images = AutoImageProcessor.from_pretrained(folder)([Image.open("picture.jpg")], return_tensors="pt")
with torch.inference_mode():
    print(model.config.id2label[int(model(**images).logits.argmax())])"""
TOWER = """import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

folder = "THIS FOLDER"  # or its name on the hub
model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
images = AutoImageProcessor.from_pretrained(folder)([Image.open("picture.jpg")], return_tensors="pt")
with torch.inference_mode():
    print(model(**images).last_hidden_state[:, 0])"""
ANSWERS = """from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "THIS FOLDER"  # or its name on the hub
processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
parts = [{"type": "image", "image": Image.open("picture.jpg")}, {"type": "text", "text": "What is this?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": parts}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
tokens = model.generate(**inputs, max_new_tokens=60)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(tokens, skip_special_tokens=True))"""
WRITES = """from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, BlipForConditionalGeneration

folder = "THIS FOLDER"  # or its name on the hub
model, tokenizer = BlipForConditionalGeneration.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
images = AutoImageProcessor.from_pretrained(folder)([Image.open("picture.jpg")], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**images, max_new_tokens=30), skip_special_tokens=True))"""
MATCHES = """import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, BlipForImageTextRetrieval

folder = "THIS FOLDER"  # or its name on the hub
model, tokenizer = BlipForImageTextRetrieval.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
images = AutoImageProcessor.from_pretrained(folder)([Image.open("picture.jpg")], return_tensors="pt")
tokens = tokenizer(["a red circle"], return_tensors="pt")
tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
if "[ENC]" in tokenizer.get_vocab():
    tokens["input_ids"][:, 0] = tokenizer.convert_tokens_to_ids("[ENC]")
with torch.inference_mode():
    print(model(**images, **tokens).itm_score.softmax(-1)[:, 1])  # how likely they belong together"""
USES = {
    "BlipForConditionalGeneration": Use("image-to-text", "image-text pairs", WRITES),
    "BlipForImageTextRetrieval": Use("zero-shot-image-classification", "image-text pairs", MATCHES),
    "ForCausalLM": Use("text-generation", "texts", LANGUAGE),
    "BertForPreTraining": Use("fill-mask", "pairs of texts", MASKED),
    "ForImageClassification": Use("image-classification", "labelled images", CLASSES),
    "LlavaForConditionalGeneration": Use("image-text-to-text", "images with captions or conversations", ANSWERS),
    "LlavaNextForConditionalGeneration": Use("image-text-to-text", "images with captions or conversations", ANSWERS),
    "ViTModel": Use("image-feature-extraction", "images", TOWER),
}
"""By how the names of transformers' classes end."""
