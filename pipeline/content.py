"""A hash of what a table says, independent of chunking, of padding and of the bytes under nulls."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def covered(schema: pa.Schema) -> list[str]:
    """The columns that a content hash covers: all but those whose field says `covered: no`."""
    return [field.name for field in schema if (field.metadata or {}).get(b"covered") != b"no"]


def content_hash(table: pa.Table, columns: Sequence[str] | None = None) -> str:
    """32 hex characters over `columns` (default: the covered ones) by name, in row order.

    Raises `TypeError` for a type that has no defined form here (unions, dictionaries, extension types).
    """
    hasher = blake2b(digest_size=16)
    for name in sorted(columns if columns is not None else covered(table.schema)):
        column = table.column(name)
        hasher.update(f"{name}\0{_type_name(column.type)}\0{len(column)}\0".encode())
        _feed(hasher, column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    return hasher.hexdigest()


def _type_name(kind: pa.DataType) -> str:
    """The type without what Parquet may change: the name of a list's items, the width of its offsets."""
    if pa.types.is_fixed_size_list(kind):
        return f"list<{_type_name(kind.value_type)}, {kind.list_size}>"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{_type_name(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{field.name}: {_type_name(field.type)}' for field in kind)}>"
    return str(kind).removeprefix("large_")


def _feed(hasher: blake2b, array: pa.Array) -> None:
    if isinstance(array, pa.ChunkedArray):  # combine_chunks keeps chunks where one would overflow 32-bit offsets
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    kind = array.type
    hasher.update(np.packbits(np.asarray(array.is_valid())).tobytes())
    if pa.types.is_null(kind):
        return
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        _feed_bytes(hasher, pc.fill_null(array, b"" if pa.types.is_binary(kind) else ""))
    elif pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        _feed(hasher, array.cast(pa.string() if pa.types.is_large_string(kind) else pa.binary()))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        hasher.update(np.asarray(pc.fill_null(pc.list_value_length(array), 0)).astype(np.int64).tobytes())
        _feed(hasher, pc.list_flatten(array))
    elif pa.types.is_struct(kind):
        for index, field in enumerate(kind):
            hasher.update(field.name.encode() + b"\0")
            _feed(hasher, pc.struct_field(array, indices=[index]))
    elif pa.types.is_boolean(kind):
        hasher.update(np.packbits(np.asarray(pc.fill_null(array, False))).tobytes())
    elif pa.types.is_primitive(kind):
        width = kind.bit_width // 8
        values = np.frombuffer(_compact(array).buffers()[1] or b"", dtype=f"V{width}", count=len(array)).copy()
        values[~np.asarray(array.is_valid())] = np.zeros(1, dtype=f"V{width}")[0]
        hasher.update(values.tobytes())
    else:
        raise TypeError(f"content_hash has no form for a column of type {kind}; cast it to a plain type first")


def _feed_bytes(hasher: blake2b, array: pa.Array) -> None:
    hasher.update(np.asarray(pc.binary_length(array)).astype(np.int64).tobytes())
    compact = _compact(array)
    _, offsets, data = compact.buffers()
    if data is not None and len(compact):
        bounds = np.frombuffer(offsets, dtype=np.int32, count=len(compact) + 1)
        hasher.update(memoryview(data)[bounds[0] : bounds[-1]])


def _compact(array: pa.Array) -> pa.Array:
    """The same values with offset 0, so that its buffers begin with its first value."""
    return pa.concat_arrays([array]) if array.offset == 0 else array.take(pa.array(np.arange(len(array))))
