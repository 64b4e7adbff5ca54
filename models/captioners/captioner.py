"""Captions by any model of transformers that goes from an image to text: BLIP, BLIP-2, GIT, Florence-2, LLaVA, ….

captioner = Captioner.load(Path("blip-image-captioning-base"), "cpu", "float32")
captioner.write([image_hwc], ["0f3c…"], Decoding(candidates=2))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import logging

from models.captioners.decoding import Decoding, Written
from models.captioners.drawing import Drawing, Finite
from models.captioners.inputs import BlipInputs, Inputs, ProcessorInputs
from models.towers.halving import Halving
from models.towers.preprocess import Pixels, Preprocessing

Dtype = Literal["float32", "float16", "bfloat16"]


class PromptError(ValueError):
    """A prompt that leaves no room for a caption: one line with its length and the model's."""


class Captioner:
    """Writes captions in batches that halve where memory runs out; keys and values of past tokens are cached."""

    def __init__(self, model: Any, inputs: Inputs) -> None:
        self._model = model.eval().requires_grad_(False)
        self._inputs = inputs
        self._ends = _ends(model)
        self._room: int | None = None
        self._places: int | None = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)

    @classmethod
    def load(cls, folder: Path, device: str, dtype: Dtype) -> Captioner:
        """From a folder that `save_pretrained` wrote: config, safetensors, tokenizer, image processor.

        Raises `ValueError` for a model that writes no text, for weights that lack a tensor, for files that are missing.
        """
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        loads: Any = AutoModelForImageTextToText
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            config = AutoConfig.from_pretrained(folder, **options)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{folder} holds no model that transformers knows: {_line(error)}") from None
        if type(config) not in loads._model_mapping:
            raise ValueError(f"{folder} holds a {config.model_type!r}, which writes no captions; name a captioner")
        try:
            model, found = loads.from_pretrained(
                folder, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, **options
            )
            kind = config.model_type
            inputs: Inputs = BlipInputs(folder) if kind == "blip" else ProcessorInputs(folder, kind)
        except (OSError, ImportError, ValueError) as error:
            raise ValueError(f"{folder} cannot be loaded: {_line(error)}") from None
        if absent := sorted(found["missing_keys"]):  # transformers would go on with random numbers in their place
            raise ValueError(f"{folder} lacks {len(absent)} tensors, {absent[0]} among them; name a captioner's folder")
        return cls(model.to(device), inputs)

    @property
    def name(self) -> str:
        """The model's class in transformers."""
        return type(self._model).__name__

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What may be made of every image by itself before it is given to `write`, as its `prepared` says."""
        return self._inputs.preprocessing

    def write(
        self,
        images: Sequence[Pixels],
        uids: Sequence[str],
        decoding: Decoding,
        prompts: Sequence[str | None] | None = None,
        batch: int = 32,
        prepared: bool = False,
    ) -> list[list[Written]]:
        """`decoding.candidates` captions of every image, uint8 (height, width, 3), RGB.

        `uids` are what the draws follow from. `prompts`: what the captions begin with, or what a model that chats is
        asked; the captions do not repeat them. Images with prompts of one length come together in a batch of at most
        `batch`. `prepared`: `preprocessing` has been at the images. Captions end, too, where the model's places for
        tokens do. Raises `PromptError` where a prompt leaves too few of them, `FloatingPointError` where the model's
        numbers overflow.
        """
        asked = list(prompts) if prompts is not None else [None] * len(images)
        if self.preprocessing is not None and not prepared:
            images = [self.preprocessing(image) for image in images]
        sizes = [self._inputs.size(prompt) for prompt in asked]
        order = sorted(range(len(images)), key=lambda row: sizes[row])
        found: list[list[Written]] = [[] for _ in images]
        for group in [order] if self._inputs.pads else _alike(order, sizes):

            def generate(start: int, end: int, rows: Sequence[int] = group) -> list[list[Written]]:
                chosen = rows[start:end]
                inputs = self._inputs([images[row] for row in chosen], [asked[row] for row in chosen])
                return self._generate(inputs, [uids[row] for row in chosen], decoding)

            halving = Halving(min(batch, self._room or batch), generate)
            written = [captions for part in halving(len(group)) for captions in part]
            if halving.rows < batch:
                self._room = halving.rows  # a size at which memory ran out is not tried again
            for row, captions in zip(group, written, strict=True):
                found[row] = captions
        return found

    @torch.inference_mode()
    def _generate(
        self, inputs: dict[str, torch.Tensor], uids: Sequence[str], decoding: Decoding
    ) -> list[list[Written]]:
        model = self._model
        given = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        options: dict[str, Any] = {
            "num_return_sequences": decoding.candidates,
            "max_new_tokens": self._longest(given, decoding),
            "min_new_tokens": decoding.least_tokens,
            "use_cache": True,
        }
        finite = Finite(self.name, model.dtype)
        scores_r: list[float | None]
        if decoding.method == "nucleus":
            drawing = Drawing(uids, decoding)
            # `Drawing` leaves one token, so that nothing remains to be drawn; yet only sampling gives several rows.
            options |= {"do_sample": True, "num_beams": 1, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
            tokens_rl = model.generate(**given, **options, logits_processor=[finite, drawing])[:, drawing.begins :]
            scores_r = [*_mean_scores(tokens_rl.cpu(), torch.stack(drawing.scores, 1), self._ends)]
        else:
            begins = _Begins()
            options |= {"do_sample": False, "num_beams": decoding.beams, "length_penalty": 1.0}
            options |= {"return_dict_in_generate": True, "output_scores": True, "logits_processor": [finite, begins]}
            said = model.generate(**given, **options)
            tokens_rl = said.sequences[:, begins.count :]
            scores_r = said.sequences_scores.tolist() if decoding.beams > 1 else [None] * len(tokens_rl)
        texts = self._inputs.tokenizer.batch_decode(tokens_rl, skip_special_tokens=True)
        written = [Written(" ".join(text.split()), score) for text, score in zip(texts, scores_r, strict=True)]
        count = decoding.candidates
        return [written[start : start + count] for start in range(0, len(written), count)]

    def _longest(self, given: dict[str, torch.Tensor], decoding: Decoding) -> int:
        """New tokens, at most: behind the last place of a model that learns its places it would fail, others babble."""
        if self._places is None:
            return decoding.most_tokens
        length = 1  # where a caption begins, without a prompt or in a decoder of its own
        if "input_ids" in given and not self._model.config.is_encoder_decoder:
            length = given["input_ids"].shape[1] - self._inputs.cut
        room = self._places - length
        if room < decoding.least_tokens:
            raise PromptError(
                f"prompt: {length} tokens, and {self.name} has places for {self._places}, so that no caption of "
                f"least_tokens = {decoding.least_tokens} fits; shorten the prompt, or lower least_tokens"
            )
        return min(decoding.most_tokens, room)


class _Begins:
    """Sees how many tokens stand before the first step of a search."""

    def __init__(self) -> None:
        self.count: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.count = input_ids.shape[1] if self.count is None else self.count
        return scores


def _alike(order: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Consecutive rows of one size."""
    groups: list[list[int]] = []
    for row in order:
        if groups and sizes[groups[-1][0]] == sizes[row]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _mean_scores(tokens_rl: torch.Tensor, scores_rl: torch.Tensor, ends: frozenset[int]) -> list[float]:
    """The mean over the tokens of a row up to its first end."""
    is_end_rl = torch.isin(tokens_rl, torch.tensor(sorted(ends), dtype=tokens_rl.dtype))
    ended_before_rl = is_end_rl.cumsum(1) - is_end_rl.long() > 0
    kept_rl = (~ended_before_rl).double()
    means: list[float] = ((scores_rl.double() * kept_rl).sum(1) / kept_rl.sum(1)).tolist()
    return means


def _ends(model: Any) -> frozenset[int]:
    """The tokens that end a caption."""
    if model.config.model_type == "blip":
        return frozenset({int(model.config.text_config.sep_token_id)})
    said = model.generation_config.eos_token_id
    return frozenset(said if isinstance(said, list) else [] if said is None else [said])


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
