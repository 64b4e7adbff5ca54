"""Parquet files as tables of plain types.

Types stay as they are, but for those that are only other ways to store a value (dictionaries, views, large offsets,
extension types, fixed-size binaries), maps, which become lists of structs, and decimals, which become text.
"""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SluiceError


def plain(kind: pa.DataType) -> pa.DataType | None:
    """The type that a Parquet column is carried as, None where there is no way."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return plain(kind.storage_type)
    if types.is_dictionary(kind):
        return plain(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_decimal(kind):
        return pa.string()
    if (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    ):
        return pa.binary()
    if types.is_map(kind):
        key, value = plain(kind.key_type), plain(kind.item_type)
        return pa.list_(pa.struct([("key", key), ("value", value)])) if key and value else None
    if types.is_list(kind) or types.is_large_list(kind) or types.is_list_view(kind) or types.is_large_list_view(kind):
        value = plain(kind.value_type)
        return pa.list_(value) if value else None
    if types.is_fixed_size_list(kind):
        value = plain(kind.value_type)
        return pa.list_(value, kind.list_size) if value else None
    if types.is_struct(kind):
        inner = [(member.name, plain(member.type)) for member in kind]
        return pa.struct(inner) if all(value for _, value in inner) else None
    return kind if types.is_primitive(kind) or types.is_null(kind) else None


def plain_schema(schema: pa.Schema, path: str) -> pa.Schema:
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise SluiceError(f"{path} has two columns {repeated[0]!r}; rename one of them")
    fields = [(column.name, plain(column.type)) for column in schema]
    for name, kind in fields:
        if kind is None:
            raise SluiceError(
                f"{path}: column {name!r} is {schema.field(name).type}, which cannot be carried; leave it out"
            )
    return pa.schema(fields)


def tables(source: BinaryIO, path: str, limit: int | None, rows: int, size: int) -> Iterator[pa.Table]:
    """The rows of a file, at most `limit`, in tables of at most `rows` rows and about `size` bytes."""
    file = pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)
    schema = plain_schema(file.schema_arrow, path)
    left = limit
    for batch in file.iter_batches(batch_size=min(_batch_rows(file, rows, size), limit or rows), use_threads=False):
        table = pa.Table.from_batches([batch]).slice(0, left)
        columns = [_as_plain(table.column(place), kind.type) for place, kind in enumerate(schema)]
        yield pa.table(columns, schema=schema)
        if left is not None:
            left -= table.num_rows
            if not left:
                return


def _batch_rows(file: pq.ParquetFile, rows: int, size: int) -> int:
    """So many rows that a batch stays below `size` bytes, going by the widest row group."""
    groups = (file.metadata.row_group(place) for place in range(file.num_row_groups))
    widest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0.0)
    return max(1, min(rows, int(size / max(1.0, widest))))


def _as_plain(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column if column.type == kind else column.cast(kind)
