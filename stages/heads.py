"""Small networks on top of image embeddings: how pleasing an image is, and how likely it should not be shown.

Their weights come in a safetensors file; how many layers there are, and how wide, is read from its tensors.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load

from pipeline.dag import resolve
from pipeline.errors import SluiceError
from pipeline.stage import Batch, Column, Device, File, PartStage
from stages.kit.vectors import Rows, check_width, nullable


class Layer(NamedTuple):
    """`x @ weight.T + bias`."""

    weight: str
    bias: str | None
    outputs: int
    inputs: int


class Head(PartStage):
    """Adds one number to every image that has an embedding; null where there is none."""

    promise = "numeric"
    grain = "image"
    reads = frozenset({"image_embedding"})

    file: File
    """Linear layers in safetensors, named in order (`layers.0.weight`, `layers.0.bias`, …), as PyTorch saves them."""
    activation: Literal["none", "relu"]
    """Between the layers."""

    def check(self, inputs: Sequence[Column]) -> None:
        with fsspec.open(self.file, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            head = file.read(size) if size < 1 << 24 else b""
        try:
            shapes = {name: tuple(told["shape"]) for name, told in json.loads(head).items() if name != "__metadata__"}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise SluiceError(f"file {self.file} is no safetensors file; save the head with safetensors") from None
        layers = layers_of(shapes, self.file)
        check_width(layers[0].inputs, f"file {self.file}", resolve("image_embedding", inputs))

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        with fsspec.open(self.file, "rb") as file:
            try:
                tensors = load(file.read())
            except SafetensorError as error:
                raise SluiceError(f"file {self.file} is no safetensors file ({error}); save the head again") from None
        layers = layers_of({name: tensor.shape for name, tensor in tensors.items()}, self.file)
        numbers = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}

        def judge(batch: Batch) -> pa.Table:
            rows_nd = batch.matrix("image_embedding")
            for place, layer in enumerate(layers):
                rows_nd = rows_nd @ numbers[layer.weight].T
                if layer.bias is not None:
                    rows_nd = rows_nd + numbers[layer.bias]
                if self.activation == "relu" and place + 1 < len(layers):
                    rows_nd = np.maximum(rows_nd, 0)
            return pa.table([nullable(self.finish(rows_nd[:, 0]))], schema=self.gives())

        return judge

    @abstractmethod
    def finish(self, numbers_n: Rows) -> Rows:
        """What happens to the last layer's number."""


class Aesthetic(Head):
    """Add `aesthetic`: LAION's predictors of a rating from 1 to 10, linear or in layers (Schuhmann et al. 2022).

    Version 2 (`sac+logos+ava1-l14-linearMSE`) has five layers with nothing between them, for OpenAI's CLIP L/14;
    LAION-Aesthetics kept what is above 4.5, 5, 6 or 6.5.
    """

    adds = pa.schema([("aesthetic", pa.float32())])

    activation: Literal["none", "relu"] = "none"

    def finish(self, numbers_n: Rows) -> Rows:
        return numbers_n


class Safety(Head):
    """Add `unsafe`, a probability: LAION's CLIP-based detector of what is not safe for work, or one trained like it."""

    adds = pa.schema([("unsafe", pa.float32())])

    activation: Literal["none", "relu"] = "relu"

    def finish(self, numbers_n: Rows) -> Rows:
        return np.asarray((1 + np.tanh(numbers_n / 2)) / 2, np.float32)  # the logistic function, without overflow


def layers_of(shapes: Mapping[str, tuple[int, ...]], file: str) -> list[Layer]:
    """The layers in the order of their names, down to one number.

    Raises `SluiceError` for a tensor that is no weight and no bias of one, and where two layers do not fit together.
    """
    layers: list[Layer] = []
    left = dict(shapes)
    for name in sorted((name for name, shape in shapes.items() if len(shape) == 2), key=_natural):
        outputs, inputs = left.pop(name)
        bias = f"{name.removesuffix('weight')}bias"
        found = left.pop(bias, None)
        if found not in (None, (outputs,)):
            raise SluiceError(f"file {file}: {bias} has the shape {found}; {name} has {outputs} outputs")
        if layers and layers[-1].outputs != inputs:
            before = layers[-1]
            raise SluiceError(
                f"file {file}: {name} takes {inputs} numbers and {before.weight} gives {before.outputs}; transpose it?"
            )
        layers.append(Layer(name, bias if found else None, outputs, inputs))
    if left:
        name, shape = min(left.items())
        raise SluiceError(f"file {file}: {name} of shape {shape} belongs to no linear layer; fold it into one")
    if not layers or layers[-1].outputs != 1:
        gives = layers[-1].outputs if layers else 0
        raise SluiceError(f"file {file}: the last layer gives {gives} numbers; a head gives one")
    return layers


def _natural(name: str) -> list[tuple[int, str]]:
    """`layers.10` after `layers.2`."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", name)]
