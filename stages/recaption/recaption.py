"""Captions of a pool's images by a model that transformers loads, such as one that another node trained.

written:
  from: pool
  steps: [{stages.recaption.Recaption: {weights: {node: captioner}, candidates: 2}}]
captions:
  from: [pool, written]
  steps: [stages.recaption.Captions]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.errors import SluiceError
from pipeline.stage import PIXELS, Batch, Device, Effort, NodeRef, PartStage, Prepare, Promise, Weights
from stages.kit.encoders import DTYPES, Dtype, model_folder
from stages.recaption.written import WRITTEN, check_source, table

if TYPE_CHECKING:
    from models.captioners.captioner import Captioner
    from models.captioners.decoding import Decoding


class Recaption(PartStage):
    """Add to every image `written`: `candidates` captions, and who wrote them; null where there is no image.

    Nucleus sampling or beam search (BLIP, Li et al. 2022, section 3.3). What is drawn for an image follows from `seed`
    and its uid, not from its neighbours. Nothing is judged here: score the captions, and let rules decide.
    """

    promise: ClassVar[Promise] = "numeric"
    grain = "image"
    reads = frozenset({PIXELS})
    adds = WRITTEN

    weights: Weights
    """BLIP, BLIP-2, GIT, Florence-2, LLaVA, or what else transformers loads that goes from an image to text."""
    source: str | None = None
    """What the captions say of where they come from; by default the node, or the model's own name."""
    method: str = Field(default="nucleus", pattern="^(nucleus|beam)$")
    candidates: int = Field(default=1, ge=1, le=64)
    """Captions of an image."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Of nucleus sampling: the least probability that the tokens to draw from have together."""
    temperature: float = Field(default=1.0, gt=0)
    beams: int = Field(default=3, ge=1)
    """Of beam search; at least as many as `candidates`."""
    most_tokens: int = Field(default=30, ge=1)
    least_tokens: int = Field(default=1, ge=1)
    prompt: str | None = None
    """What the captions begin with, and do not repeat, such as `a picture of`; or what a model that chats is asked."""
    seed: int = 0
    """Other seeds, other draws."""
    dtype: Dtype | None = None
    """What the model computes in; None takes float32 on CPUs and float16 on GPUs."""
    batch: Annotated[int, Effort] = Field(default=32, ge=1)
    """Images that the model sees at once; halved where memory runs out."""

    @model_validator(mode="after")
    def _can_be_decoded(self) -> Recaption:
        check_source(self.named())
        try:
            _ = self.decoding
        except ValueError as error:
            raise SluiceError(str(error)) from None
        return self

    @cached_property
    def decoding(self) -> Decoding:
        from models.captioners.decoding import Decoding

        names = ("method", "candidates", "top_p", "temperature", "beams", "most_tokens", "least_tokens", "seed")
        return Decoding(**{name: getattr(self, name) for name in names})

    def named(self) -> str:
        """What stands as `source` of the captions."""
        if self.source is not None:
            return self.source
        if isinstance(self.weights, NodeRef):
            return self.weights.node
        return self.weights.partition("@")[0].rstrip("/").rpartition("/")[2]

    def prepares(self, device: Device) -> Prepare | None:
        return self._captioner(device)[0].preprocessing

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        from models.captioners.captioner import PromptError

        captioner, checkpoint = self._captioner(device)

        def write(batch: Batch) -> pa.Table:
            images = batch.images(captioner.preprocessing)
            rows = [row for row, image in enumerate(images) if image is not None]
            there = [image for image in images if image is not None]
            uids = batch.table["uid"].take(pa.array(rows, pa.int64())).to_pylist()
            prompts = None if self.prompt is None else [self.prompt] * len(rows)
            try:
                written = captioner.write(there, uids, self.decoding, prompts, self.batch, prepared=True)
            except FloatingPointError as error:  # of all images, or nobody knows of which
                raise SluiceError(f"dtype: {error}") from None
            except PromptError as error:
                raise SluiceError(str(error)) from None
            found = dict(zip(rows, written, strict=True))
            return table([found.get(row) for row in range(len(images))], self.named(), captioner.name, checkpoint)

        return write

    def _captioner(self, device: Device) -> tuple[Captioner, str]:
        return _loaded(self.weights, self.dtype or DTYPES[device.kind], device.kind)


@lru_cache(maxsize=1)
def _loaded(weights: str | NodeRef, dtype: Dtype, device: str) -> tuple[Captioner, str]:
    """The captioner, and the hash of its files. Raises `SluiceError` for what is none."""
    from models.captioners.captioner import Captioner
    from models.captioners.checkpoint import content_hash

    with model_folder(weights) as folder:
        try:
            return Captioner.load(folder, device, dtype), content_hash(folder)
        except (OSError, ValueError) as error:
            raise SluiceError(f"weights: {error}") from None
