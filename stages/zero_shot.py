"""What an image shows, out of a list, by the nearest prompts (Radford et al. 2021, sections 3.1.2 and 3.1.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import yaml
from pydantic import Field, model_validator

from pipeline.dag import resolve
from pipeline.errors import SluiceError
from pipeline.stage import Batch, Column, Device, File, PartStage, Weights
from stages.kit.encoders import Dtype, encoder, width_of
from stages.kit.vectors import Rows, check_width, nullable


class ZeroShot(PartStage):
    """Add, to every image, the class whose prompts are nearest and the probability of each; null where there is none.

    A class is the mean of the unit embeddings of all its prompts in all templates, of length 1 again. Probabilities
    are a softmax over the classes at the model's own scale, or a sigmoid each for a model that was trained with one.
    """

    promise = "numeric"
    grain = "image"
    reads = frozenset({"image_embedding"})

    weights: Weights
    """The model of the image embeddings."""
    classes: dict[str, tuple[str, ...]] | None = None
    """Class -> its prompts: `{watermark: ["an image with a watermark"], clean: ["an image without a watermark"]}`."""
    prompts: File | None = None
    """The same in a YAML file."""
    templates: tuple[str, ...] = Field(default=("{}",), min_length=1)
    """What every prompt is set into, such as `a photo of a {}.`"""
    column: str = Field(default="zero_shot", pattern=r"^[A-Za-z_]\w*$")
    """The best class goes into this column, the probability of each into `<column>_<class>`."""
    probability: Literal["softmax", "sigmoid"] | None = None
    """None takes what the model was trained with."""
    width: int | None = Field(default=None, ge=1)
    """Numbers in an embedding. Read from the model's config; to be said where another node trains the model."""
    dtype: Dtype | None = None
    """What the text tower computes in; None takes float32 on CPUs and float16 on GPUs."""

    @model_validator(mode="after")
    def _one_list(self) -> ZeroShot:
        if (self.classes is None) == (self.prompts is None):
            raise ValueError("give either classes or prompts, a file of them")
        if self.classes is not None:
            _checked(self.classes, "classes")
        for template in self.templates:
            if "{}" not in template:
                raise ValueError(f"templates: {template!r} has no {{}} for the prompt")
        return self

    @cached_property
    def _prompts(self) -> dict[str, tuple[str, ...]]:
        """Class -> prompts, from whichever of the two was given."""
        if self.classes is not None or self.prompts is None:
            return self.classes or {}
        with fsspec.open(self.prompts, "rt", encoding="utf-8") as file:
            try:
                read = yaml.safe_load(file)
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise SluiceError(f"prompts {self.prompts} is no YAML ({str(error).splitlines()[0]})") from None
        try:
            return _checked(read, f"prompts {self.prompts}")
        except ValueError as error:
            raise SluiceError(str(error)) from None

    def gives(self) -> pa.Schema:
        each = [(f"{self.column}_{name}", pa.float32()) for name in self._prompts]
        return pa.schema([(self.column, pa.string()), *each])

    def check(self, inputs: Sequence[Column]) -> None:
        check_width(width_of(self.weights, self.width), "weights", resolve("image_embedding", inputs))

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        model = encoder(self.weights, self.dtype, device.kind, width_of(self.weights, self.width))
        classes_cd = np.stack([self._class(model, prompts) for prompts in self._prompts.values()])
        names = pa.array(self._prompts, pa.string())
        bias = model.logit_bias
        sigmoid = bias is not None if self.probability is None else self.probability == "sigmoid"

        def judge(batch: Batch) -> pa.Table:
            images_nd = batch.matrix("image_embedding").reshape(-1, classes_cd.shape[1])
            logits_nc = model.logit_scale * (images_nd @ classes_cd.T) + (bias or 0)
            shares_nc = 0.5 * (1 + np.tanh(logits_nc / 2)) if sigmoid else _softmax(logits_nc)
            best = names.take(pa.array(logits_nc.argmax(axis=1), mask=np.isnan(logits_nc).any(axis=1)))
            return pa.table([best, *map(nullable, shares_nc.T)], schema=self.gives())

        return judge

    def _class(self, model: Any, prompts: Sequence[str]) -> Rows:
        texts = [template.replace("{}", prompt) for prompt in prompts for template in self.templates]
        mean_d = model.embed_texts(texts, batch=64).mean(axis=0)
        unit_d: Rows = mean_d / np.linalg.norm(mean_d)
        return unit_d


def _checked(classes: Any, where: str) -> dict[str, tuple[str, ...]]:
    """Raises `ValueError` for anything but two or more classes with prompts, named so that SQL can name them."""
    if not isinstance(classes, Mapping) or len(classes) < 2:
        raise ValueError(f"{where}: expected two or more classes, each with its prompts, such as `cat: [a cat]`")
    for name, prompts in classes.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{where}: class {name!r} becomes a column; use letters, digits and _")
        if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"{where}: class {name!r} has the prompts {prompts!r}; expected a list of texts")
    return {name: tuple(prompts) for name, prompts in classes.items()}


def _softmax(logits_nc: Rows) -> Rows:
    powers_nc = np.exp(logits_nc - logits_nc.max(axis=1, keepdims=True))
    shares_nc: Rows = powers_nc / powers_nc.sum(axis=1, keepdims=True)
    return shares_nc
