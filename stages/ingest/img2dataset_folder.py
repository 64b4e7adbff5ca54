"""A folder that img2dataset wrote as a pool: its tars are adopted where they lie, not copied.

    pool:
      steps: [{stages.ingest.Img2DatasetFolder: {files: "s3://raw/laion400m/*"}}]

Every shard (`00000.tar` with `00000.parquet`) becomes a part. A URL that stands in several rows counts once: in its
first row that was a success, else in its first row, with the captions of all of them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.identity import expand, fingerprint
from pipeline.records import Record
from pipeline.stage import OBSERVED, Column, Files, Promise, TableStage, Task, Work
from stages.ingest import formats, tars
from stages.ingest.columns import CAPTION, carried, conform, demand, image_schema, understood, union, written
from stages.ingest.merge import captioned, complete, distinct, first_of, flattened
from stages.ingest.rows import MERGED, TEXT, TOO_LONG, Reading
from stages.kit.exchange import STEP, Scatter, gather

SUCCESS = "success"
REFUSED = "tar_member_refused"
FORMAT = "format_refused"

POOL = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("status", pa.string()),
        pa.field("error_message", pa.string(), metadata=OBSERVED),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("original_width", pa.int32()),
        pa.field("original_height", pa.int32()),
        pa.field("exif", pa.string(), metadata=OBSERVED),
        pa.field("sha256", pa.string()),
        pa.field("stored_sha256", pa.string()),
        pa.field("offset", pa.int64(), metadata=OBSERVED),
        pa.field("nbytes", pa.int64(), metadata=OBSERVED),
    ]
)
"""What a download says of an image; `sha256` is of the bytes as fetched, the last three of those in the tar."""

REPEAT = pa.schema(
    [
        ("_place", pa.uint64()),
        ("uid", pa.string()),
        ("shard", pa.int32()),
        ("_row", pa.int64()),
        ("success", pa.bool_()),
        ("_captions", pa.list_(TEXT)),
    ]
)
"""A row on its way to the search for repeats; afterwards, one that lost (no captions) or that gives its captions."""

Pair = tuple[tuple[str, str], tuple[str, str]]
"""(path, digest) of a shard's tar and of its Parquet file."""


class Img2DatasetFolder(TableStage):
    """Adopt img2dataset's shards. img2dataset's columns are kept; extra ones are carried as `UrlTables` carries them.

    img2dataset's own statuses stay as they are. Four are added: `merged` (another row has its URL),
    `tar_member_refused` (a link or a device in the tar), `format_refused` (bytes that are no JPEG, PNG, WebP or GIF)
    and `caption_too_long`.
    """

    revision: ClassVar[int] = 2
    promise: ClassVar[Promise] = "pure"
    pixels: ClassVar[bool] = True

    files: Files
    """Globs or paths of the tars and Parquet files, such as `laion400m/*`; other files there are not looked at."""
    max_caption_chars: int = Field(default=10_000, ge=1)
    """A row with a longer caption is refused."""

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` for shards that are not whole, and for columns that do not go together."""
        self.outputs(inputs)

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        paths = [parquet for _, (_, (parquet, _)) in shards((path, "") for path in expand(self.files))]
        with ThreadPoolExecutor(max_workers=8) as pool:
            schemas = pool.map(lambda path: [column for _, column in self._carried(path)[0]], paths)
            columns = union(list(zip(paths, schemas, strict=True)))
        return {"image": pool_schema(columns), "caption": CAPTION}

    def assemble(self, work: Work) -> list[Record]:
        pairs = shards(work.resources["files"])
        tasks = [
            Task(
                f"{shard:05d}",
                {"tar": tar[1], "parquet": parquet[1], "shard": place, "shards": len(pairs)},
                hints={"tar": tar[0], "parquet": parquet[0]},
            )
            for place, (shard, (tar, parquet)) in enumerate(pairs)
        ]
        scans = work.map("scan", tasks, self.scan, final=False)
        columns = union(
            [(t.hints["parquet"], understood(s.notes["schema"])) for t, s in zip(tasks, scans, strict=True)]
        )
        (repeats,) = work.map(
            "repeats", [Task("repeats", {"shards": len(pairs)}, {"scans": tuple(scans)})], search, final=False
        )
        # An adopted file is named by its path, so a folder that moved is adopted anew, with the same content.
        adoptions = [
            Task(
                f"000-{shard:05d}",
                {"tar": tar[0], "shard": place, "shards": len(pairs)},
                {"scan": (scan,), "repeats": (repeats,)},
                rows=scan.rows["image"],
                hints={"parquet": parquet[0], "schema": written(pool_schema(columns))},
            )
            for place, ((shard, (tar, parquet)), scan) in enumerate(zip(pairs, scans, strict=True))
        ]
        return work.map("adopt", adoptions, adopt)

    def scan(self, task: Task, attempt: Attempt) -> None:
        """One shard: its rows with what its tar has for them, and its URLs for the search for repeats."""
        path, digest = task.hints["parquet"], task.payload["parquet"]
        tar = tars.scan(task.hints["tar"])
        expected = task.payload["tar"]
        if (fingerprint(task.hints["tar"]) if expected.startswith("tag:") else tar.sha256) != expected:
            raise SluiceError(f"{task.hints['tar']} changed while it was read; run again when nobody writes to it")
        columns, captions = self._carried(path)
        reading = Reading(path, digest, task.payload["shard"], "url", captions, columns, self.max_caption_chars)
        batches = list(formats.read(path, digest, None, (), None))
        found = [_judged(reading.rows(batch), batch.table, tar, path, task.hints["tar"]) for batch in batches]
        rows = pa.concat_tables(found) if found else pa.schema([*reading.schema, *POOL]).empty_table()
        _every_image_has_a_row(rows.column("key").to_pylist(), tar, path, task.hints["tar"])
        scatter = Scatter(attempt)
        scatter.add(
            pa.table(
                {
                    **{name: rows.column(name) for name in ("_place", "uid", "_row", "_captions")},
                    "shard": rows.column("_file"),
                    "success": pc.equal(rows.column("status"), SUCCESS),
                }
            ).select(REPEAT.names)
        )
        scatter.close()
        attempt.write("image", rows.drop_columns(["_place", "_error"]))
        attempt.note(
            bytes=tar.bytes, sha256=tar.sha256, bits=0, schema=written(pa.schema([column for _, column in columns]))
        )

    def _carried(self, path: str) -> tuple[list[tuple[str, pa.Field]], tuple[str, ...]]:
        """What is carried along, and the caption columns (one or none)."""
        schema = formats.schema_of(path, None)
        for name in ("url", "key", "status"):
            demand("files", name, schema, path, "; expected what img2dataset writes")
        captions = ("caption",) if "caption" in schema.names else ()
        return carried(schema, {"url", "caption", *POOL.names}, None, path), captions


def shards(files: Any) -> list[tuple[int, Pair]]:
    """The shards in order, each with its number.

    Raises `SluiceError` for a tar without its Parquet file, or the other way round.
    """
    found = _by_name([(path, digest) for path, digest in files if path.endswith((".tar", ".parquet"))])
    for pair in found.values():
        for ending, other in (("tar", "parquet"), ("parquet", "tar")):
            if ending not in pair:
                raise SluiceError(
                    f"{pair[other][0]} has no .{ending} beside it; name both in `files`, or finish img2dataset"
                )
    if not found:
        raise SluiceError("files: no tar and Parquet files among them; expected img2dataset's, such as `laion400m/*`")
    stems = sorted(found)
    names = [PurePosixPath(stem).name for stem in stems]
    own = all(name.isdecimal() for name in names) and len({int(name) for name in names}) == len(names)
    numbers = [int(name) for name in names] if own else range(len(names))
    return sorted(
        (number, (found[stem]["tar"], found[stem]["parquet"])) for number, stem in zip(numbers, stems, strict=True)
    )


def _by_name(files: Sequence[tuple[str, str]]) -> dict[str, dict[str, tuple[str, str]]]:
    """Stem -> ending -> (path, digest).

    The name alone says what belongs together, for a copy in the root has a folder of its own; where names repeat, the
    path does.
    """
    names = [PurePosixPath(path).name for path, _ in files]
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for name, (path, digest) in zip(names, files, strict=True):
        stem, _, ending = (name if len(set(names)) == len(names) else path).rpartition(".")
        found.setdefault(stem, {})[ending] = (path, digest)
    return found


def pool_schema(columns: Sequence[pa.Field]) -> pa.Schema:
    """The image table of the pool."""
    return pa.schema([*image_schema(columns), *POOL])


# -- scan --------------------------------------------------------------------------------------------------------------


def _judged(rows: pa.Table, raw: pa.Table, tar: tars.Tar, path: str, tar_path: str) -> pa.Table:
    """The rows of a batch with img2dataset's columns, `status` as it is now and where the image lies."""
    long = np.asarray(pc.equal(rows.column("status"), TOO_LONG))
    given = {name: raw.column(name).to_pylist() for name in ("key", "status")}
    message = raw.column("error_message").to_pylist() if "error_message" in raw.column_names else [None] * raw.num_rows
    places: dict[str, list[Any]] = {"stored_sha256": [], "offset": [], "nbytes": []}
    statuses: list[str] = []
    for row, (key, status) in enumerate(zip(given["key"], given["status"], strict=True)):
        image = tar.images.get(key)
        if status == SUCCESS and image is None:
            raise SluiceError(
                f"{tar_path} has no image for key {key!r}, which {path} calls a success; one of them is cut off or old"
            )
        if image is not None and status == SUCCESS:
            status, message[row] = _verdict(image, bool(long[row]), message[row])
        statuses.append(status)
        kept = image if status == SUCCESS else None
        places["stored_sha256"].append(kept and kept.sha256)
        places["offset"].append(kept and kept.offset)
        places["nbytes"].append(kept and kept.nbytes)
    columns: dict[str, Any] = {**places, "status": statuses, "error_message": message}
    rows = rows.drop_columns(["status"])
    for field in POOL:
        column = columns.get(field.name)
        if column is None:
            column = raw.column(field.name) if field.name in raw.column_names else pa.nulls(rows.num_rows)
            column = column.cast(field.type)
        rows = rows.append_column(field, pa.array(column, field.type) if isinstance(column, list) else column)
    return rows


def _verdict(image: tars.Image, long: bool, message: str | None) -> tuple[str, str | None]:
    """Status and message of a row that img2dataset calls a success."""
    if image.refused is not None:
        return REFUSED, image.refused
    if not image.known_format:
        return FORMAT, "the bytes are no JPEG, PNG, WebP or GIF"
    return (TOO_LONG, "the caption is too long") if long else (SUCCESS, message)


def _every_image_has_a_row(keys: Sequence[str], tar: tars.Tar, path: str, tar_path: str) -> None:
    counted = Counter(keys)
    for key, count in counted.items():
        if count > 1:
            raise SluiceError(f"{path} has key {key!r} {count} times; expected one row per key")
    for key, image in tar.images.items():
        if key not in counted:
            why = f" ({REFUSED}: {image.refused})" if image.refused else ""
            raise SluiceError(
                f"{tar_path} has a member of key {key[:80]!r}, of which {path} says nothing{why}; "
                "take the shard out of `files`"
            )


# -- repeats -----------------------------------------------------------------------------------------------------------


def _shard_bits(shards: int) -> int:
    return max(STEP, (shards - 1).bit_length())


def search(task: Task, attempt: Attempt) -> None:
    """The rows whose URL stands in several, for the shards that they concern. Holds one 256th of the URLs at a time."""
    shift = 64 - _shard_bits(task.payload["shards"])
    scatter = Scatter(attempt)
    for bucket in range(1 << STEP):
        for repeated in _repeated(list(gather(attempt, task.inputs["scans"], STEP, bucket))):
            best = repeated.take(
                pc.sort_indices(
                    repeated,
                    sort_keys=[
                        ("uid", "ascending"),
                        ("success", "descending"),
                        ("shard", "ascending"),
                        ("_row", "ascending"),
                    ],
                )
            )
            best = best.filter(pa.array(first_of(best.column("uid"))))
            winner = pc.index_in(repeated.column("uid"), value_set=best.column("uid").combine_chunks())
            to = best.column("shard").take(winner)
            lost = pc.invert(
                pc.and_(
                    pc.equal(to, repeated.column("shard")),
                    pc.equal(best.column("_row").take(winner), repeated.column("_row")),
                )
            )
            losers = repeated.filter(lost)
            emptied = pa.array([None] * losers.num_rows, pa.list_(TEXT))
            losers = losers.set_column(losers.column_names.index("_captions"), REPEAT.field("_captions"), emptied)
            scatter.add(_placed(losers, losers.column("shard"), shift))
            scatter.add(_placed(repeated, to, shift))
    scatter.close()
    attempt.note(bits=0)


def _repeated(tables: Sequence[pa.Table]) -> Iterator[pa.Table]:
    if tables:
        rows = pa.concat_tables(tables)
        counts = pc.value_counts(rows.column("uid").combine_chunks())
        several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        rows = rows.filter(pc.is_in(rows.column("uid"), value_set=several))
        if rows.num_rows:
            yield rows


def _placed(rows: pa.Table, to: pa.ChunkedArray, shift: int) -> pa.Table:
    """Rows on their way to the shard `to`."""
    place = pa.array(to.to_numpy().astype(np.uint64) << np.uint64(shift))
    return rows.set_column(rows.column_names.index("_place"), REPEAT.field("_place"), place).select(REPEAT.names)


# -- adopt -------------------------------------------------------------------------------------------------------------


def adopt(task: Task, attempt: Attempt) -> None:
    """One part: a shard's rows without those that lost, and its tar where it lies."""
    (scan,), (repeats,) = task.inputs["scan"], task.inputs["repeats"]
    schema = understood(task.hints["schema"])
    rows = attempt.read(scan, "image")
    lost, gathered = _concerning(task, attempt, repeats)
    losing = pc.is_in(rows.column("_row"), value_set=lost)
    rows = rows.filter(pc.invert(losing))
    own = rows.filter(pc.invert(pc.is_in(rows.column("uid"), value_set=gathered.column("uid").combine_chunks())))
    gathered = gathered.filter(pc.is_in(gathered.column("uid"), value_set=rows.column("uid").combine_chunks()))
    image = rows.append_column("source_file", pa.array([task.hints["parquet"]] * rows.num_rows, pa.string()))
    image = conform(image.append_column("source_row", rows.column("_row")), schema)
    caption = complete(image, distinct(pa.concat_tables([flattened(own), flattened(gathered)])))
    image = captioned(image, caption)
    attempt.adopt("tar", adopted_path(task.payload["tar"], attempt), scan.notes["bytes"], scan.notes["sha256"])
    attempt.write("image", image)
    attempt.write("caption", caption)
    merged = {MERGED: len(lost)} if len(lost) else {}
    attempt.count({**Counter(image.column("status").to_pylist()), **merged})


def _concerning(task: Task, attempt: Attempt, repeats: Record) -> tuple[pa.Array, pa.Table]:
    """The numbers of this shard's rows that lost, and the rows (in order) whose captions its winners get."""
    shard, bits = task.payload["shard"], _shard_bits(task.payload["shards"])
    tables = list(gather(attempt, [repeats], bits, shard))
    rows = pa.concat_tables(tables) if tables else REPEAT.empty_table()
    rows = rows.filter(pc.equal(rows.column("_place"), pa.scalar(shard << (64 - bits), pa.uint64())))
    losing = pc.is_null(rows.column("_captions"))
    gathered = rows.filter(pc.invert(losing))
    order = pc.sort_indices(gathered, sort_keys=[("uid", "ascending"), ("shard", "ascending"), ("_row", "ascending")])
    return rows.filter(losing).column("_row").combine_chunks(), gathered.take(order)


def adopted_path(path: str, attempt: Attempt) -> str:
    """How a record of this store names a file elsewhere: a plain path means the store's own kind of place."""
    return path if "://" in path or attempt.store.local else f"file://{path}"
