"""CLIP with its ResNet (Radford et al. 2021, section 2.4), which transformers has no class of.

Three convolutions begin it, every stride is an average of pixels before a convolution (Zhang 2019), and at its end
attention gathers the pixels, their mean asking. With this module imported, transformers' Auto classes know the model
type `clip_resnet`. timm has the tower, too, and through `TimmWrapperModel` transformers, but timm needs torchvision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoConfig, AutoModel, CLIPModel, CLIPTextConfig, CLIPTextModel, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPPreTrainedModel

EXPANSION = 4
"""Channels of a block's output to those of its 3 x 3 convolution."""


class CLIPResNetVisionConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """RN50 by default."""

    model_type = "clip_resnet_vision_model"
    base_config_key = "vision_config"

    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    """Channels behind the stem; the last stage gives 32 times as many."""
    num_attention_heads: int = 32
    image_size: int = 224


class CLIPResNetConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    model_type = "clip_resnet"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=CLIPResNetVisionConfig),
        "text_config": SubConfigSpec(config_class=CLIPTextConfig),
    }

    vision_config: Any = None
    text_config: Any = None
    projection_dim: int = 1024
    logit_scale_init_value: float | int = 2.6592
    initializer_factor: float = 1.0


class Block(nn.Module):
    """A bottleneck (He et al. 2016); its stride is an average of pixels, on both ways."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        outer = inner * EXPANSION
        self.way = nn.Sequential(
            *_convolution(channels, inner, 1), nn.ReLU(), *_convolution(inner, inner, 3), nn.ReLU(),
            nn.AvgPool2d(stride),
        )  # fmt: skip
        self.last = nn.Sequential(*_convolution(inner, outer, 1))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != outer:
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), *_convolution(channels, outer, 1))

    def forward(self, images_nchw: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.last(self.way(images_nchw)) + self.shortcut(images_nchw))


class AttentionPool(nn.Module):
    """One row out of all pixels of the last stage: what their mean asks for."""

    def __init__(self, channels: int, side: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.empty(side * side + 1, channels))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, channels) for _ in range(3))
        self.out_proj = nn.Linear(channels, width)

    def forward(self, images_nchw: torch.Tensor) -> torch.Tensor:
        pixels_nlc = images_nchw.flatten(2).transpose(1, 2)
        pixels_nlc = torch.cat([pixels_nlc.mean(dim=1, keepdim=True), pixels_nlc], dim=1) + self.positions
        asked = self.q_proj(pixels_nlc[:, :1]), self.k_proj(pixels_nlc), self.v_proj(pixels_nlc)
        per_head = (rows.unflatten(2, (self.heads, -1)).transpose(1, 2) for rows in asked)
        pooled: torch.Tensor = self.out_proj(functional.scaled_dot_product_attention(*per_head).flatten(1))
        return pooled


class Tower(nn.Module):
    """(n, width) of (n, 3, side, side)."""

    def __init__(self, config: CLIPResNetVisionConfig, width: int) -> None:
        super().__init__()
        stem = config.width
        self.stem = nn.Sequential(
            *_convolution(3, stem // 2, 3, stride=2), nn.ReLU(), *_convolution(stem // 2, stem // 2, 3), nn.ReLU(),
            *_convolution(stem // 2, stem, 3), nn.ReLU(), nn.AvgPool2d(2),
        )  # fmt: skip
        stages, channels = [], stem
        for number, depth in enumerate(config.depths):
            inner = stem * 2**number
            blocks = [Block(channels, inner, 1 if number == 0 else 2)]
            channels = inner * EXPANSION
            stages.append(nn.Sequential(*blocks, *(Block(channels, inner, 1) for _ in range(depth - 1))))
        self.stages = nn.Sequential(*stages)
        side = config.image_size // 2 ** (len(config.depths) + 1)
        self.pool = AttentionPool(channels, side, config.num_attention_heads, width)

    def forward(self, images_nchw: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.pool(self.stages(self.stem(images_nchw)))
        return rows


class CLIPResNetModel(CLIPPreTrainedModel):  # type: ignore[no-untyped-call]
    """transformers' `CLIPModel` with this tower in place of the ViT; its attention pool is the projection."""

    config_class = CLIPResNetConfig
    _no_split_modules = ["CLIPEncoderLayer", "Block"]
    get_text_features = CLIPModel.get_text_features

    def __init__(self, config: CLIPResNetConfig) -> None:
        super().__init__(config)
        self.text_model = CLIPTextModel._from_config(config.text_config)  # type: ignore[no-untyped-call]
        self.vision_model = Tower(config.vision_config, config.projection_dim)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.start = float(config.logit_scale_init_value)
        self.logit_scale = nn.Parameter(torch.tensor(self.start))
        self.post_init()  # type: ignore[no-untyped-call]

    def get_image_features(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=self.vision_model(pixel_values))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As OpenAI's `CLIP.initialize_parameters`."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=5**0.5)  # torch's own; CLIPPreTrainedModel's is far too wide here
            return
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, AttentionPool):
            deviation = module.positions.shape[1] ** -0.5
            init.normal_(module.positions, std=deviation)
            for projection in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
                init.normal_(projection.weight, std=deviation)
        elif isinstance(module, Block):
            init.zeros_(module.last.get_parameter("1.weight"))  # every block begins as its shortcut
        elif isinstance(module, CLIPResNetModel):
            init.normal_(module.text_projection.weight, std=module.text_projection.in_features**-0.5)
            init.constant_(module.logit_scale, module.start)


def _convolution(channels: int, out: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out)


AutoConfig.register(CLIPResNetConfig.model_type, CLIPResNetConfig)
AutoModel.register(CLIPResNetConfig, CLIPResNetModel)
