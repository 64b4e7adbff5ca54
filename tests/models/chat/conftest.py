"""A LLaVA so small that it answers at once; what it says means nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from models.data.chat import ready_to_chat
from models.data.images import save_preprocessor
from models.data.tokenizer import trained
from models.recipe import Images
from models.towers.llava import Llava

CONFIG = {
    "model_type": "llava",
    "vision_config": {
        "model_type": "clip_vision_model", "initializer_range": 0.2, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "image_size": 16,
    },
    "text_config": {
        "model_type": "llama", "initializer_range": 0.2, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 96,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one with random weights, as a training leaves it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llava")
    tokenizer = ready_to_chat(trained(["what is this? a red square on a blue ground"] * 2, 300, 64))
    Llava(CONFIG, tokenizer=tokenizer).eval().export(folder)
    save_preprocessor(Images(side=16, fit="centre", tokens=4), folder)
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (20, 20), "red").save(path)
    return path
