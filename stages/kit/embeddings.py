"""What all stages have in common that turn images or captions into vectors by a dual encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.errors import SluiceError
from pipeline.stage import Device, Effort, PartStage, Promise, Weights
from stages.kit.encoders import Dtype, encoder, width_of
from stages.kit.vectors import Rows, vector_type, vectors

if TYPE_CHECKING:
    from models.towers.dual_encoder import DualEncoder


class Embeddings(PartStage):
    """Adds `column`: float16 vectors of length 1, null where there is nothing to embed."""

    promise: ClassVar[Promise] = "numeric"
    column: ClassVar[str]

    weights: Weights
    """CLIP, MetaCLIP, SigLIP, SigLIP 2, ALIGN, Chinese-CLIP, or what else transformers knows with two towers; one model
    for all embeddings that are to be compared."""
    width: int | None = Field(default=None, ge=1)
    """Numbers in an embedding. Read from the model's config; to be said where another node trains the model."""
    dtype: Dtype | None = None
    """What the model computes in; None takes float32 on CPUs and float16 on GPUs."""
    batch: Annotated[int, Effort] = Field(default=64, ge=1)
    """Images or captions that the model sees at once; halved where memory runs out."""

    @cached_property
    def _schema(self) -> pa.Schema:
        return pa.schema([(self.column, vector_type(width_of(self.weights, self.width)))])

    def gives(self) -> pa.Schema:
        return self._schema

    def model(self, device: Device) -> DualEncoder:
        """Loaded once per worker. Raises `SluiceError` for what is no dual encoder, or one of another width."""
        return encoder(self.weights, self.dtype, device.kind, self._schema.field(0).type.list_size)

    def table(self, embed: Callable[[], Rows], present: Sequence[bool]) -> pa.Table:
        """The rows of `embed` where something is present, null elsewhere.

        Raises `SluiceError` where the model's numbers overflow.
        """
        try:
            rows_nd = embed()
        except FloatingPointError as error:
            raise SluiceError(f"dtype: {error}") from None
        return pa.table([vectors(rows_nd, np.array(present, bool))], schema=self._schema)
