"""One batch of an input file to rows that say who they are, how they end, and with which captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SluiceError
from stages.ingest.formats import Rows
from stages.ingest.identity import identify_all, places
from stages.ingest.texts import clean, decoded, why_bad
from stages.kit.exchange import PLACE

OK, MERGED = "ok", "merged"
NO_URL, BAD_URL, BAD_ROW, TOO_LONG = "no_url", "bad_url", "bad_row", "caption_too_long"
"""How an input row ends: as an image, as a repeat of one, or refused for one of four reasons."""

SHOWN = 200
"""Characters of a refused value that its error repeats."""

TEXT = pa.struct(
    [
        ("caption_id", pa.string()),
        ("caption", pa.string()),
        ("caption_cleaned", pa.bool_()),
        ("caption_raw_sha256", pa.string()),
    ]
)
BASE = pa.schema(
    [
        PLACE,
        ("uid", pa.string()),
        ("url", pa.string()),
        ("status", pa.string()),
        ("_file", pa.int32()),
        ("_row", pa.int64()),
        ("_error", pa.string()),
        ("_captions", pa.list_(TEXT)),
    ]
)
"""What every row on its way to `merge` has; the carried columns follow. A refused row's uid only decides its bucket."""


@dataclass(frozen=True)
class Reading:
    """Which columns of one file mean what."""

    path: str
    digest: str
    index: int
    url: str
    captions: tuple[str, ...]
    carried: Sequence[tuple[str, pa.Field]]
    max_caption_chars: int

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([*BASE, *(column for _, column in self.carried)])

    def rows(self, batch: Rows) -> pa.Table:
        """Every row of the batch, those that could not be read included, with the columns of `schema`."""
        good = self._good(batch)
        return pa.concat_tables([good, self._bad(batch.bad)]) if batch.bad else good

    def _good(self, batch: Rows) -> pa.Table:
        urls, raw = decoded(self._text(batch.table, self.url))
        urls = pc.utf8_trim_whitespace(urls)
        empty = pc.fill_null(pc.equal(urls, ""), True)
        bad = why_bad(urls, pc.is_valid(raw))
        captions, long, shown = self._captions(batch.table)
        no_url, bad_url = np.asarray(empty), np.asarray(pc.is_valid(bad)) & ~np.asarray(empty)
        status = np.select([no_url, bad_url, long], [NO_URL, BAD_URL, TOO_LONG], OK)
        errors: list[str | None] = [None] * len(urls)
        for place in np.flatnonzero(no_url | bad_url | long):
            if no_url[place]:
                errors[place] = "the row has no URL"
            elif bad_url[place]:
                errors[place] = f"{urls[place].as_py()[:SHOWN]!r} {bad[place]}"
            else:
                errors[place] = f"{shown[int(place)]!r}… has more than {self.max_caption_chars} characters"
        uids = identify_all(
            url or self._stand_in(number)
            for url, number in zip(urls.cast(pa.binary()).to_pylist(), batch.numbers, strict=True)
        )
        base = [
            places(uids),
            uids,
            urls,
            pa.array(status.tolist(), pa.string()),
            *self._origin(batch.numbers),
            errors,
            captions,
        ]
        return self._table(base, [self._carried(batch.table, name, column) for name, column in self.carried])

    def _bad(self, bad: Sequence[tuple[int, str, str]]) -> pa.Table:
        numbers = np.asarray([number for number, _, _ in bad], dtype=np.int64)
        uids = identify_all(self._stand_in(number) for number in numbers)
        errors = [f"{text[:SHOWN]!r} {why}" for _, text, why in bad]
        nulls = pa.nulls(len(bad), pa.string())
        captions = pa.array([[]] * len(bad), pa.list_(TEXT))
        base = [places(uids), uids, nulls, pa.array([BAD_ROW] * len(bad)), *self._origin(numbers), errors, captions]
        return self._table(base, [pa.nulls(len(bad), column.type) for _, column in self.carried])

    def _table(self, base: Sequence[object], carried: Sequence[object]) -> pa.Table:
        names = self.schema.names
        return pa.table(dict(zip(names, [*base, *carried], strict=True)), schema=self.schema)

    def _origin(self, numbers: np.ndarray) -> tuple[pa.Array, pa.Array]:
        return pa.array(np.full(len(numbers), self.index, dtype=np.int32)), pa.array(numbers)

    def _stand_in(self, number: int) -> bytes:
        """What a row without a URL is hashed by."""
        return f"{self.digest}/{number}".encode()

    def _text(self, table: pa.Table, name: str) -> pa.Array:
        column = _whole(table.column(name))
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            return column
        if pa.types.is_nested(column.type):
            raise SluiceError(f"{self.path}: column {name!r} is {column.type}; expected text")
        return column.cast(pa.string())

    def _carried(self, table: pa.Table, name: str, column: pa.Field) -> pa.Array:
        if pa.types.is_string(column.type):
            return decoded(self._text(table, name))[0]
        values = _whole(table.column(name))
        try:
            values.validate(full=True)
        except pa.ArrowInvalid as error:
            raise SluiceError(f"{self.path}: column {name!r} is damaged: {error}; replace the file") from None
        return values

    def _captions(self, table: pa.Table) -> tuple[pa.Array, np.ndarray, dict[int, str]]:
        """list<TEXT> per row; which rows have a caption that is too long; how those captions begin."""
        parents, flat = self._flat_captions(table)
        done = clean(flat)
        lengths = pc.fill_null(pc.utf8_length(done.text), 0).to_numpy(zero_copy_only=False)
        shown = {
            int(parents[place]): done.text[int(place)].as_py()[:SHOWN]
            for place in np.flatnonzero(lengths > self.max_caption_chars)
        }
        long = np.zeros(table.num_rows, dtype=bool)
        long[list(shown)] = True
        chosen = np.flatnonzero((lengths > 0) & ~long[parents])
        parents, text = parents[chosen], done.text.take(chosen)
        ids = identify_all(text.cast(pa.binary()).to_pylist())
        texts = pa.StructArray.from_arrays(
            [ids, text, done.cleaned.take(chosen), done.raw_sha256.take(chosen)], fields=list(TEXT)
        )
        ends = np.cumsum(np.bincount(parents, minlength=table.num_rows))
        offsets = pa.array(np.concatenate(([0], ends)), pa.int32())
        return pa.ListArray.from_arrays(offsets, texts, type=pa.list_(TEXT)), long, shown

    def _flat_captions(self, table: pa.Table) -> tuple[np.ndarray, pa.Array]:
        """The row and the text of every caption, in order of the rows, within a row in that of the columns."""
        parents: list[np.ndarray] = []
        found: list[pa.Array] = []
        for name in self.captions:
            column = _whole(table.column(name))
            if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
                parents.append(np.asarray(pc.list_parent_indices(column), dtype=np.int64))
                column = pa.table({name: pc.list_flatten(column)})
            else:
                parents.append(np.arange(len(column)))
                column = table
            found.append(self._text(column, name))
        if not found:
            return np.zeros(0, dtype=np.int64), pa.array([], pa.string())
        kinds = {array.type for array in found}
        flat = _whole(pa.chunked_array([array.cast(pa.binary()) if len(kinds) > 1 else array for array in found]))
        every = np.concatenate(parents)
        order = np.argsort(every, kind="stable")
        return every[order], flat if len(found) == 1 else flat.take(order)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
