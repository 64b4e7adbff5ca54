"""Repeats of a URL brought together: within the files of one increment, and with what earlier increments know.

`known` looks up which URLs earlier parts have, a few parts at a time; `merge` writes one part. A URL that was known
comes again only with captions that are new: with its old row, all captions, and word to which part its old row is in.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.attempt import Attempt
from pipeline.partwork import ERRORS
from pipeline.records import SUPERSEDED
from pipeline.stage import CAPTIONS, OBSERVED, Task
from stages.ingest.columns import CAPTION, carried_in, conform, understood, written
from stages.ingest.identity import NO_CAPTION
from stages.ingest.rows import BAD_ROW, BASE, MERGED, NO_URL, OK, TEXT
from stages.kit.exchange import gather

STEP = "stages.ingest.UrlTables"
SEEN = pa.schema([("increment", pa.int32()), ("part", pa.string())])
"""What `known` says beside an earlier image row: where it is."""
REFUSED = pa.schema([f.with_metadata(OBSERVED) if f.name in ("row", "error") else f for f in ERRORS])
"""The errors table; its wording holds paths, which are no content."""


def known(task: Task, attempt: Attempt) -> None:
    """The rows of a few earlier parts whose URLs come again."""
    wanted = _within(task, gather(attempt, task.inputs["rows"], *_bucket(task), ["uid", "status", "_file", "_row"]))
    uids = pc.unique(wanted.filter(pc.equal(wanted.column("status"), OK)).column("uid"))
    images, captions = [], []
    for record in task.inputs["earlier"]:
        image = attempt.read(record, "image")
        image = image.filter(pc.is_in(image.column("uid"), value_set=uids))
        seen = [
            pa.array([value] * image.num_rows, f.type)
            for f, value in zip(SEEN, (record.notes["increment"], record.part), strict=True)
        ]
        for field, column in zip(SEEN, seen, strict=True):
            image = image.append_column(field, column)
        caption = attempt.read(record, "caption")
        caption = caption.filter(pc.is_in(caption.column("uid"), value_set=uids))
        images.append(image)
        captions.append(
            caption.append_column(SEEN.field("part"), pa.array([record.part] * caption.num_rows, pa.string()))
        )
    attempt.write("image", pa.concat_tables(images, promote_options="default"))
    attempt.write("caption", pa.concat_tables(captions))


def merge(task: Task, attempt: Attempt) -> None:
    """One part: every URL of one bucket once, with all its captions."""
    schema = understood(task.hints["schema"])
    rows = _sorted_rows(task, attempt, schema)
    good = rows.filter(pc.equal(rows.column("status"), OK))
    first = first_of(good.column("uid"))
    origin = pa.array(task.hints["paths"], pa.string()).take(good.column("_file").combine_chunks())
    located = good.append_column("source_file", origin).append_column("source_row", good.column("_row"))
    image = conform(located.drop_columns(["_captions"]).filter(pa.array(first)), schema)
    caption = distinct(flattened(good))
    statuses = Counter(rows.column("status").to_pylist())
    old_image, old_caption = _earlier(task, attempt, schema)
    statuses[MERGED] = good.num_rows - image.num_rows + _count_in(image.column("uid"), old_image.column("uid"))
    image, caption, replaced = _with_earlier(image, caption, old_image, old_caption)
    statuses[OK] = image.num_rows
    caption = complete(image, caption)
    image = captioned(image, caption)
    attempt.write("image", image)
    attempt.write("caption", caption)
    _write_refused(task, attempt, rows)
    attempt.count({status: count for status, count in sorted(statuses.items()) if count})
    attempt.supersede(sorted(set(replaced)))
    if replaced:
        attempt.note(**{SUPERSEDED: {OK: len(replaced)}})
    attempt.note(**{name: task.payload[name] for name in ("increment", "bits", "bucket", "files")})
    if task.payload["bucket"] == 0:  # what the next increment asks; once is enough
        attempt.note(schema=written(carried_in(schema)))


# -- rows --------------------------------------------------------------------------------------------------------------


def _bucket(task: Task) -> tuple[int, int]:
    return task.payload["bits"], task.payload["bucket"]


def _within(task: Task, tables: object) -> pa.Table:
    """The rows up to the cut that `limit` made: (file, rows of it that count)."""
    found: list[pa.Table] = list(tables)  # type: ignore[call-overload]
    table = (
        pa.concat_tables(found)
        if found
        else pa.table({name: pa.array([], BASE.field(name).type) for name in ("uid", "status", "_file", "_row")})
    )
    cut = task.payload["cut"]
    if cut is None:
        return table
    file, row = table.column("_file"), table.column("_row")
    return table.filter(pc.or_(pc.less(file, cut[0]), pc.and_(pc.equal(file, cut[0]), pc.less(row, cut[1]))))


def _sorted_rows(task: Task, attempt: Attempt, schema: pa.Schema) -> pa.Table:
    full = pa.schema([*BASE, *carried_in(schema)])
    tables = (conform(table, full) for table in gather(attempt, task.inputs["rows"], *_bucket(task)))
    rows = conform(_within(task, tables), full)
    return rows.take(pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in ("uid", "_file", "_row")]))


def first_of(uids: pa.ChunkedArray) -> np.ndarray:
    """bool: the first row of every run of equal uids."""
    values = uids.combine_chunks()
    first = np.ones(len(values), dtype=bool)
    if len(values) > 1:
        first[1:] = np.asarray(pc.not_equal(values[1:], values[:-1]))
    return first


def _count_in(uids: pa.ChunkedArray, others: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.is_in(uids, value_set=others.combine_chunks())).as_py() or 0)


# -- captions ----------------------------------------------------------------------------------------------------------


def flattened(good: pa.Table) -> pa.Table:
    """The caption table of sorted rows, repeats included."""
    lists = good.column("_captions").combine_chunks()
    flat = pc.list_flatten(lists)
    columns = {name: pc.struct_field(flat, name) for name in (field.name for field in TEXT)}
    uids = good.column("uid").combine_chunks().take(pc.list_parent_indices(lists))
    source = pa.array(["web"] * len(uids), pa.string())
    return pa.table({"uid": uids, "source": source, **columns}).select(CAPTION.names).cast(CAPTION)


def _pairs(caption: pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(caption.column("uid"), caption.column("caption_id"), "").combine_chunks()


def distinct(caption: pa.Table) -> pa.Table:
    """The first row of every pair."""
    codes = _pairs(caption).dictionary_encode().indices.to_numpy()
    return caption.take(np.sort(np.unique(codes, return_index=True)[1]))


def complete(image: pa.Table, caption: pa.Table) -> pa.Table:
    """Captions in the order of the images, and a null caption for every image that has none."""
    without = image.column("uid").filter(
        pc.invert(pc.is_in(image.column("uid"), value_set=caption.column("uid").combine_chunks()))
    )
    count = len(without)
    empty = {
        "uid": without,
        "caption_id": [NO_CAPTION] * count,
        "caption": pa.nulls(count, pa.string()),
        "source": ["web"] * count,
    }
    empty |= {"caption_cleaned": [False] * count, "caption_raw_sha256": pa.nulls(count, pa.string())}
    every = pa.concat_tables([caption, pa.table(empty, schema=CAPTION)])
    place = pc.index_in(every.column("uid"), value_set=image.column("uid").combine_chunks()).to_numpy()
    return every.take(np.argsort(place, kind="stable"))


def captioned(image: pa.Table, caption: pa.Table) -> pa.Table:
    """Images with the first of their captions, and with how many they have; `caption` is complete."""
    firsts = np.flatnonzero(first_of(caption.column("uid")))
    counts = np.diff(firsts, append=caption.num_rows)
    columns = {"caption": caption.column("caption").take(firsts), CAPTIONS.name: pa.array(counts, CAPTIONS.type)}
    for name, column in columns.items():
        image = image.set_column(image.column_names.index(name), image.schema.field(name), column)
    return image


# -- earlier increments ------------------------------------------------------------------------------------------------


def _earlier(task: Task, attempt: Attempt, schema: pa.Schema) -> tuple[pa.Table, pa.Table]:
    """The rows that count now of the URLs that earlier parts have, with `part`: a later increment overrules."""
    full, texts = pa.schema([*schema, *SEEN]), pa.schema([*CAPTION, SEEN.field("part")])
    records = task.inputs.get("known", ())
    image = _joined([conform(attempt.read(record, "image"), full) for record in records], full)
    caption = _joined([attempt.read(record, "caption").cast(texts) for record in records], texts)
    image = image.take(pc.sort_indices(image, sort_keys=[("uid", "ascending"), ("increment", "descending")]))
    image = image.filter(pa.array(first_of(image.column("uid"))))
    live = pc.binary_join_element_wise(image.column("uid"), image.column("part"), " ").combine_chunks()
    return image, caption.filter(
        pc.is_in(pc.binary_join_element_wise(caption.column("uid"), caption.column("part"), " "), value_set=live)
    )


def _joined(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _with_earlier(
    image: pa.Table, caption: pa.Table, old_image: pa.Table, old_caption: pa.Table
) -> tuple[pa.Table, pa.Table, list[str]]:
    """Known URLs as they are now, those without a new caption left out; and for each row that comes again its part."""
    new = caption.filter(pc.invert(pc.is_in(_pairs(caption), value_set=_pairs(old_caption))))
    again = old_image.filter(pc.is_in(old_image.column("uid"), value_set=new.column("uid").combine_chunks()))
    unknown = pc.invert(pc.is_in(image.column("uid"), value_set=old_image.column("uid").combine_chunks()))
    image = pa.concat_tables([image.filter(unknown), again.select(image.column_names)])
    image = image.take(pc.sort_indices(image, sort_keys=[("uid", "ascending")]))
    told = pc.and_(
        pc.is_in(old_caption.column("uid"), value_set=again.column("uid").combine_chunks()),
        pc.is_valid(old_caption.column("caption")),
    )
    caption = pa.concat_tables([old_caption.filter(told).select(CAPTION.names), new])
    return image, caption, again.column("part").to_pylist()


# -- refused rows ------------------------------------------------------------------------------------------------------


def _write_refused(task: Task, attempt: Attempt, rows: pa.Table) -> None:
    refused = rows.filter(pc.not_equal(rows.column("status"), OK))
    if not refused.num_rows:
        return
    paths = task.hints["paths"]
    columns = refused.select(["uid", "status", "_file", "_row", "_error"]).to_pylist()
    table = [
        {
            "uid": None if row["status"] in (NO_URL, BAD_ROW) else row["uid"],
            "row": row["_row"],
            "step": STEP,
            "error": f"{row['status']}: {paths[row['_file']]} row {row['_row']}: {row['_error']}",
            "traceback": "",
            "attempts": 1,
        }
        for row in columns
    ]
    attempt.write("errors", pa.Table.from_pylist(table, schema=REFUSED))
