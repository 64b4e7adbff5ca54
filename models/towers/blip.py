"""BLIP: one model that embeds, matches and writes (Li et al. 2022, section 3), of transformers' modules.

model = Blip({"text_config": {...}, "vision_config": {...}}, tokenizer=tokenizer)
features = model({"pixel_values": ..., "input_ids": ..., "attention_mask": ..., "position": ...})
model.export(Path("model"))    # BlipForConditionalGeneration and BlipForImageTextRetrieval load it

Objectives: `MomentumContrast` of `image`, `text` and their slow copies, `Matching` of `match`, `NextToken` of `logits`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from models.objectives.language import NOT_LEARNT
from models.objectives.ranks import gathered, world
from models.towers import blip_vision, blip_weights
from models.towers.blip_tokens import begun, for_matching, with_marks
from models.towers.hard_negatives import fingerprints, hard_negatives
from models.towers.slow_copy import SlowCopy
from models.trainable import Batch, Features, Scalars, Trainable

HEADS = ("contrast", "match", "caption")
WAYS = (("contrast", "match", "caption"), ("contrast", "match"), ("caption",))
"""Which go together: transformers' classes have the first two in one, and matching needs what contrast finds alike."""
EMBEDDERS = ("vision_model", "text_encoder", "vision_proj", "text_proj")
TEMPERATURES = (0.001, 0.5)
"""Between which the authors hold it."""


class Blip(Trainable):
    """Unit rows `image` and `text` (n, d) and their slow copies' `image_m` and `text_m`; `match` (n, 3, 2) and
    `match_labels` (n, 3): of the pair itself, of its image with another text, of its text with another image; `logits`
    (n, length - 1, vocabulary) and `labels` (n, length - 1) of the decoder.

    Other texts and images are drawn out of the whole batch of all processes by how alike they are; of a batch that is
    cut up (`parallel.micro_batch`), out of the rows that are encoded at once. Where all others are copies of the pair's
    own, nothing is learnt of them (label -100).
    """

    optional = frozenset({"image_m", "text_m"})

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        pretrained: str | None = None,
        heads: Sequence[str] = HEADS,
        momentum: float | None = 0.995,
        temperature: float | None = None,
        image_size: int | None = None,
        hardness: float = 1,
        vision: str | None = None,
        tokenizer: Any = None,
    ) -> None:
        """`config`: keys of transformers' BlipConfig; its class's defaults for what it leaves out.

        `pretrained`: a folder or a hub id, instead of a config. `heads`: which parts there are. `momentum`: of the slow
        copy, a step; None for no copy. `temperature`: at the start, by default 0.07, or the folder's. `image_size`: of
        images, in px, where it is not what `pretrained` was trained on. `hardness`: wrong partners are drawn by softmax
        of the model's logits times this; 1 as published, 0 for any alike. `vision`: a folder or a hub id of a ViT, with
        which the image tower of a config begins. `tokenizer`: gives the text side its vocabulary and special tokens;
        `[DEC]` and `[ENC]` are added to a BERT's. Raises `ValueError`.
        """
        super().__init__()
        self.vision_model: Any
        self.text_encoder: Any
        self.text_decoder: Any
        self.vision_proj: Any
        self.text_proj: Any
        self.itm_head: Any
        self._hardness = hardness
        if tuple(name for name in HEADS if name in heads) not in WAYS or not set(heads) <= set(HEADS):
            raise ValueError(f"heads = {list(heads)}: expected contrast and match, caption, or all three")
        if (config is None) == (pretrained is None):
            raise ValueError("expected either a config or pretrained; a fine-tuning begins with --weights pretrained=…")
        self.tokenizer: Any = None if tokenizer is None else with_marks(tokenizer)
        wanted = self.tokenizer, "match" in heads, "caption" in heads
        if pretrained is None:
            self.config, parts = blip_weights.built(config or {}, *wanted)
            self.config.logit_scale_init_value = -math.log(0.07)
            if vision is not None:
                blip_vision.begin_with(parts["vision_model"], vision)
        elif vision is not None:
            raise ValueError(
                f"vision = {vision!r} beside pretrained = {pretrained!r}, which has its own; leave one out"
            )
        else:
            self.config, parts = blip_weights.loaded(pretrained, *wanted)
        if image_size is not None:
            blip_weights.resize(self.config, parts["vision_model"], image_size)
        for name, part in parts.items():
            self.add_module(name, part)
        self.slow: SlowCopy | None = None
        if "match" in heads:
            start = self.config.logit_scale_init_value if temperature is None else -math.log(temperature)
            self.logit_scale = nn.Parameter(torch.tensor(float(start)))
            if momentum is not None:
                self.slow = SlowCopy({name: parts[name] for name in EMBEDDERS}, momentum)
                for layer in self.slow.get_submodule("text_encoder.encoder.layer").children():
                    del layer.crossattention  # it never looks from a text at an image

    @property
    def context(self) -> int:
        """Tokens of a text that there are places for."""
        return int(self.config.text_config.max_position_embeddings)

    def encode(self, batch: Batch) -> Features:
        ids_nl, mask_nl = batch["input_ids"], batch["attention_mask"]
        if ids_nl.ndim != 2 or ids_nl.shape[1] > self.context:
            raise ValueError(
                f"texts {tuple(ids_nl.shape)}: expected one a sample, of at most {self.context} tokens; set "
                "data.captions to 1, or lower texts.context"
            )
        seen_npd = self.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state
        features: Features = {}
        if hasattr(self, "text_encoder"):
            features = {
                "image": _unit(self.vision_proj(seen_npd[:, 0])),
                "text": _unit(self.text_proj(_first(self.text_encoder, ids_nl, mask_nl))),
            }
            features |= self._slowly(batch)
            features |= self._matched(batch, features, seen_npd)
        if hasattr(self, "text_decoder"):
            features |= self._written(ids_nl, mask_nl, seen_npd)
        return features

    @torch.no_grad()
    def _slowly(self, batch: Batch) -> Features:
        if self.slow is None:
            return {}
        part = self.slow.get_submodule
        seen_npd = part("vision_model")(pixel_values=batch["pixel_values"]).last_hidden_state
        read_nd = _first(part("text_encoder"), batch["input_ids"], batch["attention_mask"])
        return {
            "image_m": _unit(part("vision_proj")(seen_npd[:, 0])),
            "text_m": _unit(part("text_proj")(read_nd)),
        }

    def _matched(self, batch: Batch, features: Features, seen_npd: torch.Tensor) -> Features:
        if len(seen_npd) * world() < 2:
            raise ValueError("one sample at once: there is no wrong text for it; raise batch or parallel.micro_batch")
        ids_nl, mask_nl = batch["input_ids"], batch["attention_mask"]
        image, text = self._negatives(batch, features)
        all_ids_nl, all_masks_nl, all_seen_npd = gathered(ids_nl), gathered(mask_nl), gathered(seen_npd)
        hidden_nd = _first(
            self.text_encoder,
            for_matching(torch.cat([ids_nl, all_ids_nl[text[0]], ids_nl]), self.tokenizer),
            torch.cat([mask_nl, all_masks_nl[text[0]], mask_nl]),
            torch.cat([seen_npd, seen_npd, all_seen_npd[image[0]]]),
        )
        wrong = [torch.where(there, 0, NOT_LEARNT) for _, there in (text, image)]
        logits_n32 = self.itm_head(hidden_nd).unflatten(0, (3, len(ids_nl))).transpose(0, 1)
        return {"match": logits_n32, "match_labels": torch.stack([torch.ones_like(wrong[0]), *wrong], dim=1)}

    @torch.no_grad()
    def _negatives(self, batch: Batch, features: Features) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """An image for every text and a text for every image, of all processes' rows, and whether there is one.

        None is of a row with the same caption or the same image. That is known by the image's file where the batch says
        it (`image_id`): two crops of a copy have no pixel in common. Else by its pixels.
        """
        scale = self._hardness * self.logit_scale.exp()
        places_m = batch["position"]
        image_m = batch["image_id"] if "image_id" in batch else fingerprints(batch["pixel_values"])
        prints = [image_m, fingerprints(batch["input_ids"])]
        same_mn = torch.stack([own[:, None] == gathered(own) for own in prints]).any(0)
        found = []
        for draw, (left, right) in enumerate((("text", "image"), ("image", "text"))):
            logits_mn = scale * features[left] @ gathered(features[right]).T
            found.append(hard_negatives(logits_mn, same_mn, places_m, gathered(places_m), draw))
        return found

    def _written(self, ids_nl: torch.Tensor, mask_nl: torch.Tensor, seen_npd: torch.Tensor) -> Features:
        logits_nlv = self.text_decoder(
            input_ids=begun(ids_nl, self.config.text_config.bos_token_id)[:, :-1],
            attention_mask=mask_nl[:, :-1],
            encoder_hidden_states=seen_npd,
            use_cache=False,
        ).logits
        return {"logits": logits_nlv, "labels": ids_nl[:, 1:].masked_fill(mask_nl[:, 1:] == 0, NOT_LEARNT)}

    def scalars(self) -> Scalars:
        return {"logit_scale": self.logit_scale} if hasattr(self, "text_encoder") else {}

    @torch.no_grad()
    def after_step(self) -> None:
        if hasattr(self, "text_encoder"):
            lowest, highest = TEMPERATURES
            self.logit_scale.clamp_(-math.log(highest), -math.log(lowest))
        if self.slow is not None:
            self.slow.follow(self)

    def export(self, folder: Path) -> None:
        """Config, safetensors, and the tokenizer where one was given."""
        if hasattr(self, "text_encoder"):
            self.config.logit_scale_init_value = self.logit_scale.item()
            self.config.projection_dim = self.config.image_text_hidden_size  # where a width is looked for
        blip_weights.save(self.config, self, folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def _first(
    encoder: nn.Module, ids_nl: torch.Tensor, mask_nl: torch.Tensor, seen_npd: torch.Tensor | None = None
) -> torch.Tensor:
    """(n, d): what the text encoder makes of the first token, grounded in an image where one is given."""
    hidden_nld: torch.Tensor = encoder(
        input_ids=ids_nl, attention_mask=mask_nl, encoder_hidden_states=seen_npd
    ).last_hidden_state
    return hidden_nld[:, 0]


def _unit(rows_nd: torch.Tensor) -> torch.Tensor:
    """Of length one; normalised in float32 under autocast, too."""
    return functional.normalize(rows_nd.to(torch.promote_types(rows_nd.dtype, torch.float32)), dim=-1)
