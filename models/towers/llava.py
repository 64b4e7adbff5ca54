"""A language model that sees: LLaVA, LLaVA-1.5 and LLaVA-NeXT, as transformers has them.

model = Llava({"model_type": "llava", "vision_config": {...}, "text_config": {...}}, tokenizer=tokenizer)
loss = NextToken()(model(batch), {})         # a batch of models.data.conversations
model.export(Path("model"))                  # AutoModelForImageTextToText and AutoProcessor load it

Parameters: `vision_tower` (cut off behind the layer that is read), `multi_modal_projector`, `image_newline` (AnyRes),
`language_model` and `lm_head`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from models.connectors.projections import Linear, Mlp
from models.data.chat import IMAGE, ChatTemplate
from models.fusion.prefix import labels_of, spliced
from models.objectives.language import NOT_LEARNT
from models.towers.build import check_config
from models.towers.packing import Packing
from models.towers.single import built
from models.towers.vision import IDLE, Eye, anatomy_of, loaded_tower
from models.trainable import Batch, Features, Trainable

PROCESSORS = {"llava": "LlavaProcessor", "llava_next": "LlavaNextProcessor"}
CONNECTORS = {"linear": "linear", "mlp": "gelu"}
"""What transformers' projector has between its two linear maps: for a single one nothing, and a second that does
nothing."""
PROJECTOR = "model.multi_modal_projector"
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layers of language models in which a mask says what a token sees."""


class Llava(Trainable):
    """`logits` (answers, vocabulary) and `labels` (answers): the tokens of all answers, from the tokens before them; of
    a batch that does not say what is `learnt`, `logits` (n, length, vocabulary)."""

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        pretrained: str | None = None,
        vision: str | None = None,
        language: str | None = None,
        connector: str = "mlp",
        feature_layer: int = -2,
        select: str | None = None,
        pack: bool = True,
        tokenizer: Any = None,
    ) -> None:
        """`config`: as transformers writes it, with `model_type` llava or llava_next, `vision_config`, `text_config`
        and, for the latter, `image_grid_pinpoints`. `vision`, `language`: folders or hub ids of an image tower and of a
        causal language model, instead of random ones; their configs come from there. `pretrained`: of a whole model,
        instead of all that.

        `connector`: `linear` or `mlp`. `feature_layer`: of the tower, whose output is read; `select`: `default` without
        its class token, `full` with it or where it has none; by default as the tower is. `pack`: see
        `models.towers.packing`. `tokenizer`: with an image token and a chat template. Raises `ValueError`.
        """
        super().__init__()
        if connector not in CONNECTORS:
            raise ValueError(f"connector = {connector!r}; expected one of {', '.join(CONNECTORS)}")
        if pretrained is not None:
            if vision is not None or language is not None:
                raise ValueError("vision and language beside pretrained, which has its own; leave them out")
            self.model = _grown(built(AutoModelForImageTextToText, None, pretrained), tokenizer)
            _known(self.model.config.model_type)
        else:
            self.model = _new(config or {}, vision, language, tokenizer)
            has_class = anatomy_of(self.model.config.vision_config).class_token
            self.model.config.vision_feature_layer = feature_layer
            self.model.config.vision_feature_select_strategy = select or ("default" if has_class else "full")
            self.model.config.projector_hidden_act = CONNECTORS[connector]
            if self.model.config.model_type == "llava":
                tower = self.model.config.vision_config
                self.model.config.image_seq_length = (tower.image_size // tower.patch_size) ** 2
        self.tokenizer, self._pack = tokenizer, pack
        said = self.model.config
        if not isinstance(said.vision_feature_layer, int):
            raise ValueError(f"vision_feature_layer = {said.vision_feature_layer}: one layer can be read, not several")
        self._linear = said.projector_hidden_act == "linear"
        self.model.model.multi_modal_projector = self._connector(pretrained is not None)
        self._eye = Eye(self.model.model.vision_tower, said.vision_feature_layer, said.vision_feature_select_strategy)
        if tokenizer is not None:
            self._speaks(tokenizer)

    def _connector(self, keeps: bool) -> nn.Module:
        """`keeps`: the weights that transformers' projector has."""
        said, theirs = self.model.config, self.model.model.multi_modal_projector
        seen, width = said.vision_config.hidden_size, said.text_config.hidden_size
        if not self._linear:
            own = Mlp(seen, width, said.projector_hidden_act)
            if keeps:
                own.load_state_dict(theirs.state_dict())
            return own
        single = Linear(seen, width)
        if keeps:
            with torch.no_grad():
                single.weight.copy_(theirs.linear_2.weight @ theirs.linear_1.weight)
                single.bias.copy_(theirs.linear_2.weight @ theirs.linear_1.bias + theirs.linear_2.bias)
        return single

    def _speaks(self, tokenizer: Any) -> None:
        """Generation ends where answers end."""
        settings = self.model.generation_config
        settings.bos_token_id, settings.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
        settings.eos_token_id = ChatTemplate(tokenizer).end_tokens

    @property
    def context(self) -> int:
        """Tokens that there are places for, those of images among them."""
        return int(self.model.config.text_config.max_position_embeddings)

    def check_branches(self, length: int) -> None:
        """A mask says what attention sees in branches, and beside it transformers makes none of its own."""
        said = self.model.model.language_model.config
        kinds = {*(getattr(said, "layer_types", None) or ())} - ATTENTION
        windows = [getattr(said, name, None) for name in ("sliding_window", "attention_chunk_size")]
        if not self._pack:
            raise ValueError("pack = False; expected packed texts; leave pack or data.texts.turns out")
        if said._attn_implementation != "sdpa":
            raise ValueError(f"{said._attn_implementation} attention; expected sdpa; leave data.texts.turns out")
        if kinds:
            raise ValueError(f"{min(kinds)} layers; expected attention alone; leave data.texts.turns out")
        if any(window is not None and window < length for window in windows):
            raise ValueError(
                f"texts of {length} tokens and a language model that sees {min(filter(None, windows))} back; leave "
                "data.texts.turns out, or lower data.texts.context"
            )

    def encode(self, batch: Batch) -> Features:
        ids_nl, mask_nl = batch["input_ids"], batch["attention_mask"]
        places_nl = batch.get("image_places", torch.zeros_like(ids_nl, dtype=torch.bool))
        if ids_nl.shape[1] > self.context:
            raise ValueError(
                f"texts of {ids_nl.shape[1]} tokens; the model has {self.context} places; lower texts.context"
            )
        core = self.model.model
        embedded_nld = spliced(core.get_input_embeddings()(ids_nl), places_nl, self._seen(batch))
        if "branches" in batch:
            self.check_branches(ids_nl.shape[1])
        if self._pack:
            packing = Packing(mask_nl, None, batch.get("branches"), batch.get("positions"))
            packed = core.language_model(inputs_embeds=packing.pack(embedded_nld), **packing.arguments)
            hidden_nld = packing.unpack(packed.last_hidden_state)
        else:
            said = core.language_model(inputs_embeds=embedded_nld, attention_mask=mask_nl, use_cache=False)
            hidden_nld = said.last_hidden_state
        if "learnt" not in batch:
            return {"logits": self.model.lm_head(hidden_nld)}
        labels_nl = labels_of(ids_nl, batch["learnt"], places_nl)
        answers_nl = labels_nl != NOT_LEARNT  # of a conversation the least part, and a vocabulary is wide
        return {"logits": self.model.lm_head(hidden_nld[answers_nl]), "labels": labels_nl[answers_nl]}

    def _seen(self, batch: Batch) -> torch.Tensor:
        """(places, width of the language model): all images of the batch, one after the other.

        Where there are none the tower sees a black tile of which nothing is kept, so that its gradients are 0 and not
        missing: other processes wait for its part in what they add up.
        """
        core, said = self.model.model, self.model.config
        tiles_nk = batch.get("tiles", batch["input_ids"].new_zeros(0, 0))
        has_nk = tiles_nk > 0
        counts, sizes = tiles_nk[has_nk].tolist(), list[list[int]]()
        if counts:
            pixels = batch["pixel_values"]
            real_nt = torch.arange(pixels.shape[1], device=pixels.device) < tiles_nk.sum(1, keepdim=True)
            pixels_t3ss, sizes = pixels[real_nt], batch["image_sizes"][has_nk].tolist()
        else:
            side = said.vision_config.image_size
            pixels_t3ss = core.get_input_embeddings().weight.new_zeros(1, 3, side, side)
        features_tpd: torch.Tensor = core.multi_modal_projector(self._eye(pixels_t3ss))
        if said.model_type == "llava":
            return features_tpd.flatten(0, 1) if counts else features_tpd[0][:0]
        if not counts:
            return torch.cat([features_tpd[0][:0], core.image_newline[None][:0].to(features_tpd.dtype)])
        self._laid_out(counts, sizes)
        strategy = said.vision_feature_select_strategy
        images, _ = core.pack_image_features(
            torch.split(features_tpd, counts), sizes, strategy, image_newline=core.image_newline
        )
        return torch.cat(images)

    def _laid_out(self, counts: list[int], sizes: list[list[int]]) -> None:
        said = self.model.config
        for count, size in zip(counts, sizes, strict=True):
            expected = image_size_to_num_patches(size, said.image_grid_pinpoints, said.vision_config.image_size)
            if count != expected:
                raise ValueError(
                    f"an image of {size[0]} x {size[1]} px in {count} tiles, and the model expects {expected}; let "
                    "data.images.grids and image_grid_pinpoints be the same"
                )

    def export(self, folder: Path) -> None:
        """Config, safetensors, the tokenizer where one was given, and what transformers' processor wants to know."""
        with self._eye.complete():
            weights = self.model.state_dict()
            if self._linear:
                width = self.model.config.text_config.hidden_size
                for name in ("weight", "bias"):
                    weights[f"{PROJECTOR}.linear_1.{name}"] = weights.pop(f"{PROJECTOR}.{name}")
                weights[f"{PROJECTOR}.linear_2.weight"] = torch.eye(width)
                weights[f"{PROJECTOR}.linear_2.bias"] = torch.zeros(width)
            self.model.save_pretrained(folder, state_dict=weights)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        said = self.model.config
        processor = {
            "processor_class": PROCESSORS[said.model_type],
            "image_token": IMAGE,
            "num_additional_image_tokens": int(anatomy_of(said.vision_config).class_token),
            "patch_size": said.vision_config.patch_size,
            "vision_feature_select_strategy": said.vision_feature_select_strategy,
        }
        (folder / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def _known(kind: str) -> None:
    if kind not in PROCESSORS:
        raise ValueError(f"model_type = {kind!r}; expected one of {', '.join(PROCESSORS)}")


def _new(config: Mapping[str, Any], vision: str | None, language: str | None, tokenizer: Any) -> Any:
    """transformers' model, random but for the towers that come from folders."""
    said = dict(config)
    kind = said.pop("model_type", "llava")
    _known(kind)
    check_config(kind, said)
    tower = loaded_tower(vision) if vision is not None else None
    speaker = built(AutoModelForCausalLM, None, language) if language is not None else None
    if tower is not None:
        said["vision_config"] = tower.config.to_dict()
    if speaker is not None:
        speaker = _grown(speaker, tokenizer)
        said["text_config"] = speaker.config.to_dict()
    elif tokenizer is not None:
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        said["text_config"] = {**said.get("text_config", {}), **special, "vocab_size": len(tokenizer)}
    if tokenizer is not None:
        said["image_token_index"] = tokenizer.convert_tokens_to_ids(IMAGE)
    whole = AutoConfig.for_model(kind, **said)
    model = AutoModelForImageTextToText.from_config(  # type: ignore[no-untyped-call]
        whole, dtype=torch.float32
    )
    if tower is not None:
        missing, unexpected = model.model.vision_tower.load_state_dict(tower.state_dict(), strict=False)
        if odd := [name for name in [*missing, *unexpected] if name.split(".")[0] not in IDLE]:
            raise ValueError(f"vision = {vision!r}: {odd[0]} is not in both towers, the folder's and the model's")
    if speaker is not None:
        model.model.language_model.load_state_dict(speaker.base_model.state_dict())
        model.lm_head.weight.data.copy_(speaker.get_output_embeddings().weight.data)
        model.tie_weights()
    return model


def _grown(model: Any, tokenizer: Any) -> Any:
    """With a row for every token; new ones begin as the mean of the others (Hewitt 2021)."""
    if tokenizer is None or len(tokenizer) <= model.get_input_embeddings().num_embeddings:
        return model
    known = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for rows in {id(part): part for part in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
            rows.weight[known:] = rows.weight[:known].mean(0)
    return model
