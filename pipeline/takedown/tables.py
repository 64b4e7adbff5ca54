"""A table without what it said of some images."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.stage import CAPTIONS, KEYS
from pipeline.takedown.tombstones import TAKEN_DOWN

STAYS = frozenset({*KEYS["caption"].names, "source_file", "source_row"})
"""What says nothing of the image or its words."""
URL = "url"
"""It is cut to its host, by which a domain is known again, and hosts are counted."""
PATH = r"^([A-Za-z][A-Za-z0-9+.-]*://)(?:[^/?#@]*@)?([^/?#]*).*$"
PLACE = "offset"
"""A column of this name, or one that ends in `_offset`, holds places (bytes) in a tar."""


def erased(table: pa.Table, uids: pa.Array, replaced: pa.Array | None = None) -> pa.Table:
    """The same rows; those with `uids` say `taken_down` where they have a status, and nothing else.

    A row that one of a later part `replaced` keeps its status, by which it is counted no more. A pair that was kept is
    dropped by `taken_down`. Returns `table` itself where there is nothing to erase.
    """
    gone = np.asarray(pc.is_in(table.column("uid"), value_set=uids))
    if not gone.any():
        return table
    old = np.zeros(len(gone), bool) if replaced is None else np.asarray(pc.is_in(table.column("uid"), replaced))
    decides = {"kept", "dropped_by"} <= set(table.column_names)
    for place, field in enumerate(table.schema):
        column = table.column(place)
        if field.name in STAYS or field.equals(CAPTIONS, check_metadata=True):
            continue
        if field.name == "status" and pa.types.is_string(field.type):
            column = pc.if_else(pa.array(gone & ~old), TAKEN_DOWN, column)
        elif field.name == URL and pa.types.is_string(field.type):
            column = pc.if_else(pa.array(gone), _host_of(column), column)
        elif decides and field.name == "kept":
            column = pc.if_else(pa.array(gone), False, column)
        elif decides and field.name == "dropped_by":
            column = pc.coalesce(column, pc.if_else(pa.array(gone), TAKEN_DOWN, pa.scalar(None, pa.string())))
        else:  # `take` nulls every type, nested ones too
            column = column.take(pa.array(np.arange(len(gone)), mask=gone))
            field = field.with_nullable(True)
        table = table.set_column(place, field, column)
    return table


def _host_of(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """`https://example.org/` of a URL of that host; null of what is no URL."""
    hosts = pc.replace_substring_regex(urls, PATH, r"\1\2/")
    return pc.if_else(pc.match_substring_regex(urls, PATH), hosts, pa.scalar(None, pa.string()))


def without(table: pa.Table, uids: pa.Array) -> pa.Table:
    """The rows of other images."""
    return table.filter(pc.invert(pc.is_in(table.column("uid"), value_set=uids)))


def moved(table: pa.Table, cuts: list[tuple[int, int]]) -> pa.Table:
    """The same rows after `cuts` (first byte, end) were taken out of the tar that they point into."""
    starts = np.array([start for start, _ in cuts], dtype=np.int64)
    before = np.concatenate([[0], np.cumsum([end - start for start, end in cuts])]).astype(np.int64)
    for place, field in enumerate(table.schema):
        if (field.name == PLACE or field.name.endswith(f"_{PLACE}")) and pa.types.is_int64(field.type):
            column = table.column(place).combine_chunks()
            values = np.asarray(pc.fill_null(column, 0))
            values = values - before[np.searchsorted(starts, values)]
            table = table.set_column(place, field, pa.array(values, pa.int64(), mask=np.asarray(column.is_null())))
    return table
