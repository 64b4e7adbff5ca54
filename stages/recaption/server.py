"""Captions of a pool's images by a server that speaks OpenAI's protocol, for models that run elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field, model_validator

from pipeline.errors import SluiceError
from pipeline.stage import PIXELS, Batch, Column, Device, Effort, PartStage, Prepare, Promise
from stages.recaption.written import WRITTEN, check_source, table

if TYPE_CHECKING:
    from models.captioners.server import Server

PROMPT = "Describe the image in one short sentence."


@dataclass(frozen=True)
class Within:
    """Images whose longer side is at most `side` px."""

    side: int

    def __call__(self, image_hwc: np.ndarray) -> np.ndarray:
        if max(image_hwc.shape[:2]) <= self.side:
            return image_hwc
        image = Image.fromarray(image_hwc)
        image.thumbnail((self.side, self.side), Image.Resampling.BICUBIC)
        return np.asarray(image)


class RecaptionByServer(PartStage):
    """Add to every image `written`, as `Recaption` does, by asking a server; null where there is no image.

    An image that the server refuses ends in quarantine with what it said (`sluice errors`). The images are sent to the
    server, as JPEGs.
    """

    promise: ClassVar[Promise] = "observed"
    grain = "image"
    reads = frozenset({PIXELS})
    adds = WRITTEN

    server: Annotated[str, Effort]
    """Its address up to `/v1`, such as `http://127.0.0.1:8000/v1`. The model is what counts, wherever it runs."""
    model: str
    """As the server calls it."""
    source: str | None = None
    """What the captions say of where they come from; by default the model."""
    prompt: str = PROMPT
    candidates: int = Field(default=1, ge=1, le=64)
    """Captions of an image."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    temperature: float = Field(default=1.0, gt=0)
    most_tokens: int = Field(default=77, ge=1)
    seed: int = 0
    """Other seeds, other draws, where the server heeds them."""
    side: int = Field(default=512, ge=16)
    """px: the longer side of an image as it is sent; smaller ones are sent as they are."""
    key_variable: Annotated[str, Effort] = "OPENAI_API_KEY"
    """The environment variable that holds the server's key, on the machines that ask."""
    timeout_s: Annotated[float, Effort] = Field(default=60.0, gt=0)
    """Seconds for one try."""
    tries: Annotated[int, Effort] = Field(default=4, ge=1)
    concurrency: Annotated[int, Effort] = Field(default=8, ge=1)
    """Questions of one worker that are under way at once."""

    @model_validator(mode="after")
    def _is_not_called_web(self) -> RecaptionByServer:
        check_source(self.source or self.model)
        return self

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` for an address that cannot be asked, or that this machine's key must not be sent to."""
        self._server()

    def _server(self) -> Server:
        from models.captioners.server import Server

        try:
            return Server(self.server, self.model, self.key_variable, self.timeout_s, self.tries, self.concurrency)
        except ValueError as error:
            raise SluiceError(str(error)) from None

    def prepares(self, device: Device) -> Prepare:
        return Within(self.side)

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        from models.captioners.decoding import Decoding

        asked = self._server()  # the key may be on this machine, and not where the DAG was checked
        decoding = Decoding(
            candidates=self.candidates,
            top_p=self.top_p,
            temperature=self.temperature,
            most_tokens=self.most_tokens,
            seed=self.seed,
        )

        def write(batch: Batch) -> pa.Table:
            images = batch.images(Within(self.side))
            rows = [row for row, image in enumerate(images) if image is not None]
            there = [image for image in images if image is not None]
            uids = batch.table["uid"].take(pa.array(rows, pa.int64())).to_pylist()
            found = dict(zip(rows, asked.write(there, uids, decoding, self.prompt), strict=True))
            source = self.source or self.model
            return table([found.get(row) for row in range(len(images))], source, self.model, None)

        return write
