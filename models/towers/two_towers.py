"""An image tower and a text tower to be trained: any dual encoder that transformers builds or loads.

model = TwoTowers({"model_type": "clip", "projection_dim": 512, ...}, tokenizer=tokenizer)
loss = InfoNCE()(model({"pixel_values": ..., "input_ids": ..., "attention_mask": ...}), model.scalars())
model.export(Path("model"))                  # transformers' AutoModel loads it

Known kinds: clip, metaclip_2, clip_resnet, siglip, siglip2, align, chinese_clip, and vision-text-dual-encoder, which
joins any two towers, timm's (`models.towers.timm`) among them. Their own losses are not used: those see the rows of one
process only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from models.towers import quick_gelu, timm
from models.towers.build import dual_encoder
from models.towers.dual_encoder import WHOLE_CONTEXT
from models.towers.patch_dropout import PatchDropout
from models.trainable import Batch, Features, Scalars, Trainable

SIGMOID = {"siglip": (10.0, -10.0), "siglip2": (10.0, -10.0)}
"""Scale and bias that SigLIP starts with (Zhai et al. 2023, section 3.2); transformers starts with 1 and 0."""
IMAGES = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
"""What image towers read: the last two are of images of any shape (SigLIP 2's NaFlex)."""
PATCHES = ("clip", "siglip")
"""Whose image towers' last tokens `TwoTowers` can give, too, beside those of timm's transformers."""
TOKENS = ("input_ids", "attention_mask")
PLACES = 8
"""Texts are cut to multiples of so many places: few lengths, and masks as kernels want them aligned."""
CUT = (
    *("clip_text_model", "metaclip_2_text_model", "align_text_model", "chinese_clip_text_model"),
    *("bert", "roberta", "xlm-roberta"),
)
"""Text towers known to give the same however much padding follows a text. SigLIP's read it."""
TAUGHT = ("teacher_image", "teacher_text")
"""Rows of another model that lie in the batch, for objectives to read."""
IDLE = {"align": ("text_model.pooler",)}
"""Modules whose output nobody reads: without gradients, which DistributedDataParallel would wait for."""


class TwoTowers(Trainable):
    """Unit rows `image` (n, d) and `text` (n, d), or (n, k, d) where the batch has k texts a sample; and `views`
    (n, v, width), not of length one and as the image tower pools them, where it has v more views of an image."""

    optional = frozenset({"patches", "position", "views", *TAUGHT})

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        pretrained: str | Mapping[str, str | None] | None = None,
        scale: float | None = None,
        bias: float | None = None,
        scale_limit: float | None = 100,
        patches: bool = False,
        tokenizer: Any = None,
    ) -> None:
        """`config`: as transformers writes it, with its `model_type`; what it leaves out is that class's default.

        `pretrained`: a folder or a hub id; or one for the tower `vision`, for `text`, or for both, whose configs then
        come from there; None is none. `scale`, `bias`: what cosines are multiplied with and what is added, at the
        start; by default what the kind was published with. `scale_limit`: the largest scale (Radford et al. 2021,
        section 2.5).
        `patches`: encode also gives `patches` (n, patches, d), not of length one, and the batch's `position` (n,).
        `tokenizer`: gives the text tower its vocabulary and its special tokens. Raises `ValueError`.
        """
        super().__init__()
        self.model = dual_encoder(config, pretrained, tokenizer)
        quick_gelu.put_into(self.model)
        self.tokenizer = tokenizer
        self.kind: str = self.model.config.model_type
        self._scale_limit, self._gives_patches = scale_limit, patches
        vision = self.model.config.vision_config
        self._is_timm: bool = vision.model_type == timm.KIND
        known = timm.is_vit(self.model.vision_model.timm_model) if self._is_timm else self.kind in PATCHES
        if not known:
            self.optional = self.optional - {"patches", "position"}
        if patches and not known:
            named = getattr(vision, "architecture", self.kind)
            raise ValueError(f"patches of {named!r} are not known; take {' or '.join(PATCHES)}, or a ViT of timm's")
        self._idle = {name: self._without(name) for name in IDLE.get(self.kind, ())}
        self._patches: PatchDropout | None = None
        anew = not any(pretrained.values()) if isinstance(pretrained, Mapping) else pretrained is None
        self._begin(scale, bias, anew)

    def _begin(self, scale: float | None, bias: float | None, anew: bool) -> None:
        usual = SIGMOID.get(self.kind, (None, None)) if anew else (None, getattr(self.model.config, "logit_bias", None))
        scale, bias = scale or usual[0], usual[1] if bias is None else bias
        with torch.no_grad():
            if scale is not None and self.kind == "align":
                self.model.temperature.fill_(1 / scale)
            elif scale is not None:
                self.model.logit_scale.fill_(math.log(scale))
            if bias is not None and hasattr(self.model, "logit_bias"):
                self.model.logit_bias.fill_(bias)
            elif bias is not None:  # its class has none: exported in the config
                self.model.logit_bias = nn.Parameter(torch.tensor(float(bias)))

    def encode(self, batch: Batch) -> Features:
        features: Features = {name: batch[name] for name in TAUGHT if name in batch}
        if "pixel_values" in batch:
            if self._patches is not None:
                self._patches.positions_n = batch.get("position")
            seen = self.model.get_image_features(**{name: batch[name] for name in IMAGES if name in batch})
            features["image"] = _unit(seen)
            if self._gives_patches:
                features |= {"patches": self._projected(seen.last_hidden_state), "position": batch["position"]}
        if "view_pixel_values" in batch:
            views_nvchw = batch["view_pixel_values"]
            if self._patches is not None:
                self._patches.positions_n = _of_views(batch.get("position"), views_nvchw.shape[1])
            pooled = self.model.vision_model(pixel_values=views_nvchw.flatten(0, 1)).pooler_output
            features["views"] = pooled.unflatten(0, views_nvchw.shape[:2])
        if "input_ids" in batch:
            features["text"] = self._texts(batch)
        widths = {name: features[name].shape[-1] for name in ("image", "text") if name in features}
        if len(set(widths.values())) > 1:
            raise ValueError(f"widths {widths}; set projection_dim of {self.kind!r} to that of the image")
        return features

    def _projected(self, tokens_nld: torch.Tensor) -> torch.Tensor:
        """(n, patches, d): a tower's last tokens in the space of its output."""
        if self.kind == "siglip":
            return tokens_nld
        if self._is_timm:
            tower = self.model.vision_model.timm_model
            seen_nld: torch.Tensor = self.model.visual_projection(tower.fc_norm(tokens_nld))
            return seen_nld[:, tower.num_prefix_tokens :]
        projected_nld: torch.Tensor = self.model.visual_projection(self.model.vision_model.post_layernorm(tokens_nld))
        return projected_nld[:, 1:]  # the first is the class token

    def places(self, batch: Batch) -> Mapping[str, int]:
        """Those of the longest text and one more, in eights; what is padding in all texts behind that is left out. One
        more, for where a tokenizer sets no end but pads with ends, CLIP reads that one."""
        if not all(name in batch for name in TOKENS) or self.model.config.text_config.model_type not in CUT:
            return {}
        told = batch["attention_mask"].flatten(0, -2).any(0).nonzero()
        longest = int(told.max()) + 1 if len(told) else 0
        return dict.fromkeys(TOKENS, (longest // PLACES + 1) * PLACES)

    def _texts(self, batch: Batch) -> torch.Tensor:
        tokens = {name: batch[name] for name in TOKENS if name in batch}
        texts, length = tokens["input_ids"].shape[:-1], tokens["input_ids"].shape[-1]
        if length > self.context:
            raise ValueError(f"texts of {length} tokens; the text tower has {self.context} places; lower texts.context")
        tokens = {name: value.flatten(0, -2) for name, value in tokens.items()}
        if self.kind in WHOLE_CONTEXT:  # it reads the last place, and padding is not masked
            whole = functional.pad(tokens["input_ids"], (0, self.context - length), value=self._padding)
            tokens = {"input_ids": whole}
        rows = _unit(self.model.get_text_features(**tokens))
        return rows.reshape(*texts, rows.shape[-1])

    @property
    def context(self) -> int:
        """Tokens of a text that the text tower has places for."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def images(self) -> dict[str, Any]:
        """`side`, `mean` and `deviation` that a pretrained tower is used to, where it says so: timm's do."""
        return timm.trained_on(self.model.config.vision_config.to_dict()) if self._is_timm else {}

    @property
    def _padding(self) -> int:
        said = self.model.config.text_config.pad_token_id
        return 0 if said is None else int(said)

    def scalars(self) -> Scalars:
        if self.kind == "align":
            return {"logit_scale": -self.model.temperature.log()}
        found = {"logit_scale": self.model.logit_scale}
        return found | {"logit_bias": self.model.logit_bias} if hasattr(self.model, "logit_bias") else found

    @torch.no_grad()
    def after_step(self) -> None:
        if self._scale_limit is None:
            return
        if self.kind == "align":
            self.model.temperature.clamp_(min=1 / self._scale_limit)
        else:
            self.model.logit_scale.clamp_(max=math.log(self._scale_limit))

    @property
    def patch_dropout(self) -> float:
        """Share of the patches that the image tower does not see while it trains; set anew for every phase."""
        return 0.0 if self._patches is None else self._patches.share

    @patch_dropout.setter
    def patch_dropout(self, share: float) -> None:
        if self._patches is None:
            if share == 0:
                return
            if self._is_timm:
                raise ValueError("patch_dropout of timm's towers is not known; take a ViT of transformers', or 0")
            tower = self.model.vision_model
            self._patches = PatchDropout(getattr(tower, "embeddings", tower))
        self._patches.share = share

    def export(self, folder: Path) -> None:
        """Config and safetensors, and the tokenizer where one was given."""
        for name, module in self._idle.items():
            self._put(name, module)
        weights = self.model.state_dict()
        if self.kind not in SIGMOID and (bias := weights.pop("logit_bias", None)) is not None:
            self.model.config.logit_bias = bias.item()
        self.model.save_pretrained(folder, state_dict=weights)
        for name in self._idle:
            self._without(name)
        if self.tokenizer is not None:
            tokenizer = copy.deepcopy(self.tokenizer)
            if self.kind in WHOLE_CONTEXT:  # as its authors': padding is not masked
                tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids"]
            tokenizer.save_pretrained(folder)

    def _without(self, name: str) -> nn.Module:
        """Takes a module out of the model, so that it is neither trained nor waited for."""
        module: nn.Module = self.model.get_submodule(name)
        self._put(name, None)
        return module

    def _put(self, name: str, module: nn.Module | None) -> None:
        parent, _, own = name.rpartition(".")
        setattr(self.model.get_submodule(parent), own, module)


def _of_views(positions_n: torch.Tensor | None, views: int) -> torch.Tensor | None:
    """(n · views,): a place of its own for every view, so that each loses other patches."""
    if positions_n is None:
        return None
    return (positions_n[:, None] * views + torch.arange(views, device=positions_n.device)).flatten()


def _unit(outputs: Any) -> torch.Tensor:
    """(n, d), of length one; normalised in float32 under autocast, too."""
    rows = outputs.pooler_output
    return functional.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)
