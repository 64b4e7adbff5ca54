"""How well captions fit their images, and images a task: numbers from embeddings alone.

Nothing is dropped here: `stages.select.Select` decides, so a new threshold costs no pass over the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import BinaryIO, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipeline.dag import resolve
from pipeline.errors import SluiceError
from pipeline.stage import Batch, Column, Device, File, PartStage
from stages.kit.vectors import Rows, check_width, nullable

BLOCK = 4096
"""Rows of a target that are compared at once: 4 MB of cosines with the 256 images of a batch."""


class ClipScore(PartStage):
    """Add `clip_score` in [-1, 1] to every caption: the cosine of its embedding and its image's.

    Null where the image was not downloaded. CLIPScore (Hessel et al. 2021) without its factor of 2.5.
    """

    promise = "pure"
    grain = "caption"

    image: str = "image_embedding"
    """The column of the images, such as `masked_image_embedding`."""
    text: str = "text_embedding"
    """The column of the captions."""
    name: str = Field(default="clip_score", pattern=r"^[a-z][a-z0-9_]*$")
    """The column that is added; several scores in one DAG need several."""

    def needs(self) -> frozenset[str]:
        return frozenset({self.image, self.text})

    def gives(self) -> pa.Schema:
        return pa.schema([(self.name, pa.float32())])

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def score(batch: Batch) -> pa.Table:
            images_nd = batch.matrix(self.image)  # NaN where there is none
            texts_nd = batch.matrix(self.text)
            lengths = (np.einsum("nd,nd->n", rows_nd, rows_nd) for rows_nd in (images_nd, texts_nd))
            cosines = np.einsum("nd,nd->n", images_nd, texts_nd) / np.sqrt(np.prod(list(lengths), axis=0))
            return pa.table([nullable(cosines.clip(-1, 1))], schema=self.gives())  # float16 made them a little uneven

        return score


class NormSim(PartStage):
    """Add `norm_sim` to every image: how near it is to the images of a task; null where there is none.

    NormSim of Wang et al. 2024 (CLIPLoss and Norm-Based Data Selection): the p-norm of its cosines with all of them.
    """

    promise = "numeric"
    grain = "image"
    reads = frozenset({"image_embedding"})
    adds = pa.schema([("norm_sim", pa.float32())])

    target: File
    """Image embeddings of the task, by the same model: `.npy` (images, width), or Parquet with `image_embedding`."""
    norm: Literal["inf", "2"] = "inf"
    """`inf`: the nearest image of the task alone, 0 to 1. `2`: all of them, 0 to the root of their number."""

    def check(self, inputs: Sequence[Column]) -> None:
        with fsspec.open(self.target, "rb") as file:
            width = _width(file, self.target)
        check_width(width, f"target {self.target}", resolve("image_embedding", inputs))

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        target_md = _read(self.target)
        gram_dd = target_md.T @ target_md if self.norm == "2" else None

        def measure(batch: Batch) -> pa.Table:
            images_nd = batch.matrix("image_embedding")
            if gram_dd is not None:  # the squares of all cosines with the rows of T add up to x'T'Tx
                squares = np.einsum("nd,nd->n", images_nd @ gram_dd, images_nd)
                return pa.table([nullable(np.sqrt(np.maximum(squares, 0)))], schema=self.adds)
            blocks = (target_md[start : start + BLOCK] for start in range(0, len(target_md), BLOCK))
            nearest = [np.abs(images_nd @ block.T).max(axis=1) for block in blocks]
            return pa.table([nullable(np.max(nearest, axis=0))], schema=self.adds)

        return measure


def _width(file: BinaryIO, name: str) -> int | None:
    """The width of a file of embeddings, from its head alone; None where that does not say it."""
    try:
        if name.endswith(".npy"):
            read = np.lib.format.read_array_header_1_0
            if np.lib.format.read_magic(file) > (1, 0):
                read = np.lib.format.read_array_header_2_0
            return int(read(file)[0][-1])
        kind = pq.read_schema(file).field("image_embedding").type
        return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else None
    except (ValueError, KeyError, IndexError, pa.ArrowException) as error:
        raise _no_embeddings(name, error) from None


def _read(target: str) -> Rows:
    """float32 (images, width), without the rows that are null."""
    with fsspec.open(target, "rb") as file:
        try:
            if target.endswith(".npy"):
                rows = np.load(file, allow_pickle=False)
            else:
                column = pq.read_table(file, columns=["image_embedding"]).column(0).drop_null().combine_chunks()
                rows = np.asarray(column.flatten()).reshape(len(column), -1)
        except (ValueError, KeyError, pa.ArrowException) as error:
            raise _no_embeddings(target, error) from None
    if rows.ndim != 2 or not rows.size:
        raise SluiceError(f"target {target} has the shape {rows.shape}; expected (images, width), one image or more")
    found: Rows = rows.astype(np.float32)
    return found


def _no_embeddings(target: str, error: Exception) -> SluiceError:
    reason = str(error).splitlines()[0]
    return SluiceError(f"target {target} holds no embeddings ({reason}); give .npy, or Parquet with image_embedding")
