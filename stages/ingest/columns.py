"""Which column of an input file becomes which column of the image table, and how the files of one node agree.

Every column that is not the URL, a caption or the input's own id is carried. One whose name means something to sluice
(or differs from such a name only in case, which SQL ignores) is carried as `source_<name>`.
"""

import base64
import re
from collections.abc import Iterable, Sequence

import pyarrow as pa

from pipeline.errors import SluiceError, did_you_mean
from pipeline.stage import CAPTIONS, OBSERVED
from stages.ingest.formats import MORE

RESERVED = frozenset(
    {
        *("uid", "caption_id", "url", "caption", "captions", "source", "caption_cleaned", "caption_raw_sha256"),
        *("source_uid", "source_file", "source_row", "pixels", "kept", "dropped_by"),
        *("key", "status", "error_message", "width", "height", "original_width", "original_height", "exif"),
        *("sha256", "stored_sha256", "offset", "nbytes", "format", "frames"),
        *("final_url", "content_type", "fetched_at", "seconds"),
        *("_place", "_file", "_row", "_error", "_captions"),
    }
)
"""Names of the columns that sluice writes itself, in any table that is joined with these."""

PANDAS_INDEX = re.compile(r"__index_level_\d+__")
"""What pandas calls the row numbers that it saves beside a table: no column of the data."""

ORIGIN = (
    pa.field("source_file", pa.string(), metadata=OBSERVED),
    pa.field("source_row", pa.int64(), metadata=OBSERVED),
)
"""Where a URL was met first: the file, and the number of the row there (from 0). Files move, so it is observed."""

CAPTION = pa.schema(
    [
        ("uid", pa.string()),
        ("caption_id", pa.string()),
        ("caption", pa.string()),
        ("source", pa.string()),
        ("caption_cleaned", pa.bool_()),
        ("caption_raw_sha256", pa.string()),
    ]
)
"""The caption table: `source` is `web`; `caption_cleaned` says that characters were removed or replaced, and
`caption_raw_sha256` is of the bytes as they came where they were no UTF-8."""


def carried(schema: pa.Schema, taken: Iterable[str], source_uid: str | None, path: str) -> list[tuple[str, pa.Field]]:
    """(name in the file, column of the image table) of what is carried along, the input's own id first.

    `taken` columns have a use of their own. Raises `SluiceError` where two columns would get one name.
    """
    found: dict[str, tuple[str, pa.Field]] = {}
    if source_uid is not None:
        found["source_uid"] = (source_uid, pa.field("source_uid", pa.string()))
    used = {*taken, source_uid}
    for name in schema.names:
        if name in used or PANDAS_INDEX.fullmatch(name):
            continue
        shown = f"source_{name}" if name.lower() in RESERVED else name
        other = found.get(shown.lower())
        if other is not None:
            raise SluiceError(
                f"{path}: columns {other[0]!r} and {name!r} would both be {shown!r}, for SQL ignores case; rename one"
            )
        found[shown.lower()] = (name, pa.field(shown, schema.field(name).type))
    return list(found.values())


def demand(parameter: str, name: str, schema: pa.Schema, path: str, hint: str = "") -> None:
    """Raise `SluiceError` where a file lacks a column that a parameter names."""
    if name not in schema.names:
        known = [column for column in schema.names if column != MORE]
        near = [column for column in known if column.lower() == name.lower()]
        raise SluiceError(f"{parameter}: {path} has no column {name!r}{did_you_mean((near or [name])[0], known)}{hint}")


def union(schemas: Sequence[tuple[str, Iterable[pa.Field]]]) -> pa.Schema:
    """The columns of all files, in order of first appearance; a column of nulls takes the type it has elsewhere.

    Raises `SluiceError` naming the file and the column of a conflict.
    """
    fields: dict[str, pa.Field] = {}
    owners: dict[str, str] = {}
    spellings: dict[str, str] = {}
    for path, columns in schemas:
        for column in columns:
            spelled = spellings.setdefault(column.name.lower(), column.name)
            if spelled != column.name:
                raise SluiceError(
                    f"{path}: column {column.name!r} is {spelled!r} in {owners[spelled]}; SQL ignores case, rename one"
                )
            before = fields.get(column.name)
            if before is None or pa.types.is_null(before.type):
                fields[column.name], owners[column.name] = column, path
            elif not pa.types.is_null(column.type) and column.type != before.type:
                raise SluiceError(
                    f"{path}: column {column.name!r} is {column.type}, but {before.type} in {owners[column.name]}; "
                    "convert one of the files"
                )
    return pa.schema(list(fields.values()))


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns of `schema`, nulls where it has none."""
    columns = [
        _typed(table.column(column.name), column.type)
        if column.name in table.column_names
        else pa.chunked_array([pa.nulls(table.num_rows, column.type)])
        for column in schema
    ]
    return pa.table(columns, schema=schema)


def _typed(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return column if column.type == kind else column.cast(kind)


def image_schema(carried_columns: Iterable[pa.Field]) -> pa.Schema:
    """The image table of `UrlTables`."""
    known = (pa.field("uid", pa.string()), pa.field("url", pa.string()))
    return pa.schema([*known, *carried_columns, pa.field("caption", pa.string()), CAPTIONS, *ORIGIN])


def carried_in(image: pa.Schema) -> pa.Schema:
    """The columns of an image table that come from the input as they are."""
    own = {"uid", "url", "caption", CAPTIONS.name, *(column.name for column in ORIGIN)}
    return pa.schema([column for column in image if column.name not in own])


def written(schema: pa.Schema) -> str:
    """A schema as text, for a record's notes and a task's hints."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def understood(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
