"""Uids as numbers: 128 bits in two halves, which sort as the 32 hex digits do and take a quarter of the room."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SluiceError

DIGITS = 32
Halves = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]

_VALUES = np.full(256, 255, np.uint8)
_VALUES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def halves(uids: pa.ChunkedArray | pa.Array) -> Halves:
    """The leading and the trailing 64 bits. Raises `SluiceError` for what is no uid."""
    joined = uids.combine_chunks() if isinstance(uids, pa.ChunkedArray) else uids
    good = pc.equal(pc.binary_length(joined), DIGITS).fill_null(False)
    if good.true_count == len(joined):
        _, offsets, data = joined.cast(pa.string()).buffers()
        start = int(np.frombuffer(offsets, np.int32)[joined.offset]) if len(joined) else 0
        digits = _VALUES[np.frombuffer(data or b"", np.uint8)[start : start + DIGITS * len(joined)]].reshape(-1, DIGITS)
        right = (digits < 16).all(axis=1)
        if right.all():
            numbers = ((digits[:, 0::2] << 4) | digits[:, 1::2]).view(">u8").astype(np.uint64)
            return numbers[:, 0].copy(), numbers[:, 1].copy()
        good = pa.array(right)
    odd = joined.filter(pc.invert(good))[0]
    raise SluiceError(f"uid {odd} is no {DIGITS} hex digits; were its tables ingested by sluice?")


def texts(leading: npt.NDArray[np.uint64], trailing: npt.NDArray[np.uint64]) -> pa.Array:
    """The hex digits again."""
    octets = np.stack([leading, trailing], axis=1).astype(">u8").view(np.uint8).reshape(-1, 16)
    digits = np.stack([octets >> 4, octets & 15], axis=2).reshape(-1, DIGITS)
    letters = np.frombuffer(b"0123456789abcdef", np.uint8)[digits]
    offsets = np.arange(len(leading) + 1, dtype=np.int32) * DIGITS
    return pa.Array.from_buffers(pa.string(), len(leading), [None, pa.py_buffer(offsets), pa.py_buffer(letters)])
