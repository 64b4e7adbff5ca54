"""Images and captions as vectors of one space, by any dual encoder of transformers (Radford et al. 2021, section 2.3).

Everything that compares, searches or scores later reads these columns, and looks at no pixel again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import pyarrow as pa
from pydantic import Field

from pipeline.stage import PIXELS, Batch, Device, Effort, Prepare
from stages.kit.embeddings import Embeddings


class ImageEmbeddings(Embeddings):
    """Add `image_embedding` to every image: float16, of length 1; null where there is no image.

    Images are resized and normalised as the model's own image processor does it. The next batch is read, decoded and
    resized while the model works on one, wherever the worker has a GPU or more than one CPU.
    """

    grain = "image"
    reads = frozenset({PIXELS})
    column = "image_embedding"

    def prepares(self, device: Device) -> Prepare:
        return self.model(device).preprocessing

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        model = self.model(device)

        def embed(batch: Batch) -> pa.Table:
            images = batch.images(model.preprocessing)
            there = [image for image in images if image is not None]
            return self.table(lambda: model.embed_prepared(there, self.batch), [image is not None for image in images])

        return embed


class TextEmbeddings(Embeddings):
    """Add `text_embedding` to every caption: float16, of length 1; null where the caption is null.

    What is longer than the model's context is cut.
    """

    grain = "caption"
    reads = frozenset({"caption"})
    column = "text_embedding"

    batch: Annotated[int, Effort] = Field(default=256, ge=1)
    """Captions that the model sees at once; halved where memory runs out."""

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        model = self.model(device)

        def embed(batch: Batch) -> pa.Table:
            captions = batch.table["caption"].to_pylist()
            there = [caption for caption in captions if caption is not None]
            return self.table(lambda: model.embed_texts(there, self.batch), [text is not None for text in captions])

        return embed
