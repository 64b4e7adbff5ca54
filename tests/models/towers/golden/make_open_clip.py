"""What open_clip computes with small random weights, for `tests/models/towers/test_open_clip.py`.

    pip install --no-deps --target /tmp/open_clip open_clip_torch==3.3.0 ftfy==6.3.1 wcwidth
    PYTHONPATH=/tmp/open_clip:. python tests/models/towers/golden/make_open_clip.py

writes vit.safetensors and resnet.safetensors beside itself: weights by open_clip's names, inputs, embeddings, the loss
and its gradient by one weight of each tower. open_clip is no dependency of the tests, for it needs torchvision, of
which it uses nothing here: what its modules import is put in its place.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch

import models.without_torchvision  # isort: skip  # noqa: F401
import transformers  # noqa: F401  # before its question for torchvision gets an odd answer
from safetensors.torch import save_file

for name in ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc"):
    sys.modules[f"torchvision{name}"] = MagicMock()
sys.modules["timm"] = None  # type: ignore[assignment]  # "not installed": open_clip goes on without

import open_clip  # type: ignore[import-not-found]  # noqa: E402
from open_clip.loss import ClipLoss  # type: ignore[import-not-found]  # noqa: E402

SEED, ROWS, CONTEXT, WORDS, END = 0, 4, 8, 40, 39
TEXT = {"context_length": CONTEXT, "vocab_size": WORDS, "width": 16, "heads": 2, "layers": 2}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2},
    "resnet": {"image_size": 64, "width": 4, "layers": [1, 1, 1, 1], "head_width": 32},
}
LEARNED = {
    "vit": ("visual.conv1.weight", "transformer.resblocks.0.mlp.c_fc.weight"),
    "resnet": ("visual.conv1.weight", "token_embedding.weight"),
}


def main() -> None:
    folder = Path(__file__).parent
    for name, vision in TOWERS.items():
        torch.manual_seed(SEED)
        model = open_clip.model.CLIP(embed_dim=12, vision_cfg=vision, text_cfg=TEXT, quick_gelu=True)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if weight.ndim > 1:
                    weight.normal_(0, 1.5 * weight[0].numel() ** -0.5)
                elif weight.ndim == 1:
                    weight.normal_(float(key.endswith("weight")), 0.1)  # gains around 1, biases around 0
            for key, buffer in model.named_buffers():
                if key.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
                elif key.endswith("running_mean"):
                    buffer.normal_(0, 0.1)
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(tensor.bfloat16())  # what is saved is exact, at half the bytes
        model.eval()
        images = torch.randn(ROWS, 3, vision["image_size"], vision["image_size"]).bfloat16().float()
        texts = torch.randint(1, END, (ROWS, CONTEXT))
        texts[torch.arange(ROWS), torch.randint(2, CONTEXT, (ROWS,))] = END  # the largest: where open_clip pools
        rows = model.encode_image(images, normalize=True), model.encode_text(texts, normalize=True)
        loss = ClipLoss()(*rows, model.logit_scale.exp())
        loss.backward()
        weights = {f"weights.{key}": _short(value) for key, value in model.state_dict().items()}
        gradients = {f"gradient.{key}": model.get_parameter(key).grad for key in LEARNED[name]}
        found = {"images": _short(images), "texts": texts, "image": rows[0], "text": rows[1], "loss": loss}
        everything = {key: value.detach().contiguous() for key, value in {**weights, **gradients, **found}.items()}
        versions = {"open_clip": open_clip.__version__, "torch": torch.__version__, "seed": str(SEED)}
        save_file(everything, folder / f"{name}.safetensors", versions)


def _short(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.bfloat16() if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    main()
