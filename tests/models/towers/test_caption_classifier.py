"""What SuperClass is asked for are the words of a sample's captions, and nothing that a tokenizer adds to them."""

import pytest
import torch

from models.towers.caption_classifier import CaptionClassifier
from tests.models.towers.small import words

VIT = {
    "model_type": "vit", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "patch_size": 8, "image_size": 16,
}  # fmt: skip


@pytest.mark.parametrize("captions", [1, 2])
def test_labels_are_the_words_of_all_captions_without_special_tokens_and_padding(captions: int) -> None:
    tokenizer = words(300, 16)
    model = CaptionClassifier(VIT, tokenizer=tokenizer)
    texts = ["a red circle", "two blue squares on a grey background"]
    found = tokenizer(texts, padding=True, return_tensors="pt")
    shape = (2 // captions, captions, -1) if captions > 1 else (2, -1)
    batch = {name: found[name].view(shape) for name in ("input_ids", "attention_mask")}
    features = model.encode({**batch, "pixel_values": torch.zeros(2 // captions, 3, 16, 16)})
    assert features["logits"].shape == (2 // captions, len(tokenizer))
    kept = [[token for token in row if token != -100] for row in features["labels"].tolist()]
    bare = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    assert kept == (bare if captions == 1 else [[*bare[0], *bare[1]]])


def test_without_a_tokenizer_there_is_nothing_to_learn() -> None:
    with pytest.raises(ValueError, match=r"expected a tokenizer, and data\.kind: pairs"):
        CaptionClassifier(VIT)
