"""Tables of URLs and captions to the rows that a pool is downloaded from.

    urls:
      steps: [{stages.ingest.UrlTables: {files: "s3://raw/cc-2026-10/*.parquet", url: url, caption: alt}}]

Files that are added later become an increment of their own: what was ingested before keeps its parts, and so its
downloads and scores.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pyarrow as pa
from pydantic import Field, field_validator

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.identity import expand
from pipeline.records import Record
from pipeline.stage import Column, Files, Promise, TableStage, Task, Work
from stages.ingest import formats
from stages.ingest.columns import CAPTION, carried, demand, image_schema, understood, union, written
from stages.ingest.increments import FileList, Increment, split
from stages.ingest.merge import known, merge
from stages.ingest.rows import Reading
from stages.kit.exchange import Scatter, spread_to

KNOWN_PARTS = 32
"""Earlier parts that one task looks through."""

Cut = tuple[int, int] | None
"""Where `limit` cuts: (number of a file, how many rows of it count)."""


class UrlTables(TableStage):
    """Read Parquet, CSV, TSV and JSON Lines; bring the repeats of a URL together; spread the URLs over parts.

    Columns without a use of their own are carried along: from Parquet with their types, else as text. One that is named
    like a column of sluice becomes `source_<name>`. Every input row ends as `ok`, `merged` (its URL was there already;
    its captions are kept), `no_url`, `bad_url`, `bad_row` or `caption_too_long`; the last four are in the errors.
    """

    revision: ClassVar[int] = 2
    promise: ClassVar[Promise] = "pure"

    files: Files
    """Paths or globs on any fsspec store; .parquet, .csv, .tsv, .jsonl or .ndjson, each also with .gz."""
    url: str = "url"
    """The column with the URL."""
    caption: str | tuple[str, ...] | None = "caption"
    """The column or columns with captions, each a text or a list of texts; null for images without."""
    source_uid: str | None = None
    """The column with the input's own id, carried as `source_uid`."""
    columns: tuple[str, ...] | None = None
    """The column names of CSV and TSV files that have no header."""
    limit: int | None = Field(default=None, ge=1)
    """Take only so many input rows, in the order of the files."""
    rows_per_part: int = Field(default=10_000, ge=1)
    """A part gets at most about so many input rows."""
    max_caption_chars: int = Field(default=10_000, ge=1)
    """A row with a longer caption is refused."""

    @field_validator("columns")
    @classmethod
    def _distinct(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and (len(set(names)) < len(names) or "" in names):
            raise ValueError("expected names that differ, none of them empty")
        return names

    @property
    def captions(self) -> tuple[str, ...]:
        """The caption columns, in order."""
        return (self.caption,) if isinstance(self.caption, str) else self.caption or ()

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` for a missing file or column, and for columns that do not go together."""
        self.outputs(inputs)

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        paths = expand(self.files)
        with ThreadPoolExecutor(max_workers=8) as pool:
            schemas = pool.map(lambda path: [column for _, column in self._carried(path)], paths)
            columns = union(list(zip(paths, schemas, strict=True)))
        return {"image": image_schema(columns), "caption": CAPTION}

    def assemble(self, work: Work) -> list[Record]:
        standing, fresh = split(work.previous, work.resources["files"])
        done: list[Increment] = []
        for increment in standing:
            found = increment.records
            if not increment.complete:
                found = tuple(self._increment(work, increment.number, increment.files, done))
            done.append(Increment(increment.number, increment.files, found))
        left = None if self.limit is None else self.limit - sum(increment.rows for increment in done)
        if (fresh and left != 0) or not done:
            done.append(Increment(len(done), fresh, tuple(self._increment(work, len(done), fresh, done))))
        return [record for increment in done for record in increment.records]

    # -- phases --------------------------------------------------------------------------------------------------------

    def _increment(self, work: Work, number: int, files: FileList, earlier: Sequence[Increment]) -> list[Record]:
        left = None if self.limit is None else self.limit - sum(increment.rows for increment in earlier)
        reads, cut, rows = self._read_until(work, number, files, left)
        paths = [path for path, _ in files[: len(reads)]]
        schemas = [(f"increment {before.number}", before.columns) for before in earlier]
        schemas += [(path, understood(read.notes["schema"])) for path, read in zip(paths, reads, strict=True)]
        columns = union(schemas)
        bits = (max(0, rows - 1) // self.rows_per_part).bit_length()
        holders = spread_to(work, f"spread{number}-", reads, bits)
        common = {
            "increment": number,
            "bits": bits,
            "cut": cut,
            "files": [digest for _, digest in files[: len(reads)]],
            "columns": [[column.name, str(column.type)] for column in columns],
        }
        buckets = range(1 << bits)
        payloads = {bucket: {**common, "bucket": bucket} for bucket in buckets}
        found = self._known(work, number, payloads, holders, earlier)
        hints = {"paths": paths, "schema": written(image_schema(columns))}
        tasks = [
            Task(
                f"{number:03d}-{bucket:05d}",
                payloads[bucket],
                {"rows": holders(bucket), "known": tuple(found[bucket])},
                rows=rows >> bits,
                hints=hints,
            )
            for bucket in buckets
        ]
        return work.map(f"merge{number}", tasks, merge)

    def _read_until(self, work: Work, number: int, files: FileList, left: int | None) -> tuple[list[Record], Cut, int]:
        """The records of the files that hold `left` rows, where the last one is cut, and how many rows they are."""
        reads: list[Record] = []
        rows, wave = 0, len(files) if left is None else 1
        while len(reads) < len(files) and (left is None or rows < left):
            chosen = list(enumerate(files))[len(reads) : len(reads) + wave]
            tasks = [
                Task(f"{number:03d}-{index:05d}", {"digest": digest, "index": index}, hints={"path": path})
                for index, (path, digest) in chosen
            ]
            for read in work.map(f"read{number}", tasks, self.read, final=False):
                if left is not None and rows >= left:
                    break
                reads.append(read)
                rows += read.notes["rows"]
            wave *= 2
        if left is None or rows <= left:
            return reads, None, rows
        return reads, (len(reads) - 1, reads[-1].notes["rows"] - (rows - left)), left

    def _known(
        self,
        work: Work,
        number: int,
        payloads: Mapping[int, Mapping[str, object]],
        holders: Callable[[int], tuple[Record, ...]],
        earlier: Sequence[Increment],
    ) -> dict[int, list[Record]]:
        """What earlier increments know of every bucket's URLs."""
        found: dict[int, list[Record]] = {bucket: [] for bucket in payloads}
        if not earlier:
            return found
        owners, tasks = [], []
        for bucket, payload in payloads.items():
            bits = int(str(payload["bits"]))
            parts = [record for increment in earlier for record in increment.overlapping(bits, bucket)]
            for start in range(0, len(parts), KNOWN_PARTS):
                chunk = tuple(parts[start : start + KNOWN_PARTS])
                part = f"{number:03d}-{bucket:05d}-{start // KNOWN_PARTS:05d}"
                tasks.append(Task(part, payload, {"rows": holders(bucket), "earlier": chunk}))
                owners.append(bucket)
        for owner, record in zip(owners, work.map(f"known{number}", tasks, known, final=False), strict=True):
            found[owner].append(record)
        return found

    def read(self, task: Task, attempt: Attempt) -> None:
        """One file to rows, cut by uid."""
        path, digest = task.hints["path"], task.payload["digest"]
        columns = self._carried(path)
        reading = Reading(path, digest, task.payload["index"], self.url, self.captions, columns, self.max_caption_chars)
        scatter = Scatter(attempt)
        count = 0
        for rows in self._batches(reading):
            scatter.add(rows)
            count += rows.num_rows
        scatter.close()
        attempt.note(rows=count, schema=written(pa.schema([column for _, column in columns])))

    def _batches(self, reading: Reading) -> Iterator[pa.Table]:
        for batch in formats.read(reading.path, reading.digest, self.columns, self.captions, self.limit):
            yield reading.rows(batch)

    def _carried(self, path: str) -> list[tuple[str, pa.Field]]:
        """(name in the file, column of the image table). Raises `SluiceError` for a column that a file lacks."""
        schema = formats.schema_of(path, self.columns)
        hint = ""
        if formats.format_of(path)[0] in ("CSV", "TSV") and self.columns is None:
            hint = "; where the file has no header, name its columns: `columns: [caption, url]`"
        demand("url", self.url, schema, path, hint)
        for name in self.captions:
            demand("caption", name, schema, path, hint)
        if self.source_uid is not None:
            demand("source_uid", self.source_uid, schema, path, hint)
        for name in filter(None, (self.url, self.source_uid, *self.captions)):
            kind = schema.field(name).type
            inner = kind.value_type if name in self.captions and hasattr(kind, "value_type") else kind
            if pa.types.is_nested(inner):
                raise SluiceError(f"{path}: column {name!r} is {kind}; expected text")
        return carried(schema, (self.url, *self.captions), self.source_uid, path)
