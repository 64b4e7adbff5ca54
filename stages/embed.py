"""Images and captions as vectors of one space, by any dual encoder of transformers (Radford et al. 2021, section 2.3).

Everything that compares, searches or scores later reads these columns, and looks at no pixel again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.errors import SluiceError
from pipeline.stage import PIXELS, Batch, Device, Effort, PartStage, Prepare, Weights
from stages.kit.encoders import Dtype, encoder, width_of
from stages.kit.vectors import vector_type, vectors

if TYPE_CHECKING:
    from models.towers.dual_encoder import DualEncoder


class ImageEmbeddings(PartStage):
    """Add `image_embedding` to every image: float16, of length 1; null where there is no image.

    Images are resized and normalised as the model's own image processor does it. The next batch is read, decoded and
    resized while the model works on one, wherever the worker has a GPU or more than one CPU.
    """

    promise = "numeric"
    grain = "image"
    reads = frozenset({PIXELS})

    weights: Weights
    """CLIP, MetaCLIP, SigLIP, SigLIP 2, ALIGN, Chinese-CLIP, or what else transformers knows with two towers."""
    width: int | None = Field(default=None, ge=1)
    """Numbers in an embedding. Read from the model's config; to be said where another node trains the model."""
    dtype: Dtype | None = None
    """What the model computes in; None takes float32 on CPUs and float16 on GPUs."""
    batch: Annotated[int, Effort] = Field(default=64, ge=1)
    """Images that the model sees at once; halved where memory runs out."""

    @cached_property
    def _schema(self) -> pa.Schema:
        return pa.schema([("image_embedding", vector_type(width_of(self.weights, self.width)))])

    def _model(self, device: Device) -> DualEncoder:
        return encoder(self.weights, self.dtype, device.kind, self._schema.field(0).type.list_size)

    def gives(self) -> pa.Schema:
        return self._schema

    def prepares(self, device: Device) -> Prepare:
        return self._model(device).preprocessing

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        schema, model = self.gives(), self._model(device)

        def embed(batch: Batch) -> pa.Table:
            images = batch.images(model.preprocessing)
            present = np.array([image is not None for image in images], bool)
            try:
                rows_nd = model.embed_prepared([image for image in images if image is not None], self.batch)
            except FloatingPointError as error:
                raise SluiceError(f"dtype: {error}") from None
            return pa.table([vectors(rows_nd, present)], schema=schema)

        return embed


class TextEmbeddings(PartStage):
    """Add `text_embedding` to every caption: float16, of length 1; null where the caption is null.

    What is longer than the model's context is cut.
    """

    promise = "numeric"
    grain = "caption"
    reads = frozenset({"caption"})

    weights: Weights
    """The model of the image embeddings that these are to be compared with."""
    width: int | None = Field(default=None, ge=1)
    """Numbers in an embedding. Read from the model's config; to be said where another node trains the model."""
    dtype: Dtype | None = None
    """What the model computes in; None takes float32 on CPUs and float16 on GPUs."""
    batch: Annotated[int, Effort] = Field(default=256, ge=1)
    """Captions that the model sees at once; halved where memory runs out."""

    @cached_property
    def _schema(self) -> pa.Schema:
        return pa.schema([("text_embedding", vector_type(width_of(self.weights, self.width)))])

    def gives(self) -> pa.Schema:
        return self._schema

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        schema = self.gives()
        model = encoder(self.weights, self.dtype, device.kind, schema.field(0).type.list_size)

        def embed(batch: Batch) -> pa.Table:
            captions = batch.table["caption"].combine_chunks()
            present = np.asarray(pc.is_valid(captions).to_numpy(zero_copy_only=False), bool)
            try:
                rows_nd = model.embed_texts(captions.drop_null().to_pylist(), self.batch)
            except FloatingPointError as error:
                raise SluiceError(f"dtype: {error}") from None
            return pa.table([vectors(rows_nd, present)], schema=schema)

        return embed
