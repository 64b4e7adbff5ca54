"""Embeddings as a column, float16 lists of one width, and numbers that are made of them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SluiceError
from pipeline.stage import Column

Rows = npt.NDArray[np.float32]
"""(rows, width)"""


def vector_type(width: int) -> pa.DataType:
    return pa.list_(pa.float16(), width)


def vectors(rows_nd: Rows, present: npt.NDArray[np.bool_]) -> pa.Array:
    """A list for every element of `present`, null where it is false; the rows are those of the true ones, in order."""
    width = rows_nd.shape[1]
    flat = np.zeros((len(present), width), np.float16)
    flat[present] = rows_nd
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), width, mask=pa.array(~present))


def usable(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float16]]:
    """Which rows have an embedding that points somewhere (finite, not all zeros), and these embeddings in order."""
    there = np.asarray(pc.is_valid(column))
    present = column.filter(pa.array(there))
    rows_nd = matrix(present).astype(np.float16) if len(present) else np.zeros((0, 1), np.float16)
    good = np.isfinite(rows_nd).all(axis=1) & rows_nd.any(axis=1)
    there[there] = good
    return there, rows_nd[good]


def matrix(column: pa.ChunkedArray) -> Rows:
    """The rows of a list column without nulls."""
    values = column.combine_chunks()
    flat = np.asarray(values.flatten(), np.float32)
    width = values.type.list_size if pa.types.is_fixed_size_list(values.type) else len(flat) // max(1, len(values))
    return flat.reshape(len(values), width)


def nullable(numbers: npt.NDArray[Any]) -> pa.Array:
    """float32, with null for NaN."""
    return pa.array(numbers.astype(np.float32), mask=np.isnan(numbers))


def check_width(width: int | None, what: str, column: Column) -> None:
    """Raise `SluiceError` where a file is not made for the embeddings of a column; None is not known yet."""
    if width is not None and pa.types.is_fixed_size_list(column.type) and column.type.list_size != width:
        raise SluiceError(
            f"{what} is for embeddings of width {width}, those of {column.name} have {column.type.list_size}; "
            "use the model that it was made with"
        )
