"""The kept pairs of one part as samples: one per image, with its text, its JSON and the place of its bytes.

Tables of one part are joined by key, so that a retried part meets the tables of the part that it retried, and captions
that another node wrote meet those of the pool.
"""

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.attempt import Attempt
from pipeline.content import covered
from pipeline.errors import SluiceError, did_you_mean
from pipeline.records import Record
from pipeline.stage import CAPTIONS, KEYS, OBSERVED
from stages.kit.exchange import PLACE

SAMPLES = pa.schema(
    [
        PLACE,
        ("shard", pa.int64()),
        ("position", pa.int64()),
        ("uid", pa.string()),
        ("caption_id", pa.string()),
        ("txt", pa.string()),
        ("json", pa.string()),
        ("stored_sha256", pa.string()),
        ("boxes", pa.list_(pa.list_(pa.float32()))),
        pa.field("tar", pa.string(), metadata=OBSERVED),
        pa.field("offset", pa.int64(), metadata=OBSERVED),
        pa.field("nbytes", pa.int64(), metadata=OBSERVED),
    ]
)
"""A sample on its way to its shard. What is covered decides the bytes of the shard, and nothing else does.

`boxes` are to be blurred; null where nobody asked for it.
"""

WHERE = ("offset", "nbytes", "stored_sha256")
PLUMBING = frozenset(
    {*WHERE, "key", "status", "caption", "source", "kept", "dropped_by", "caption_cleaned", "caption_raw_sha256"}
)
"""Columns that no JSON repeats unless it is asked to: how the pool works, and what has a place of its own."""


class Part:
    """The images of one pool part that are live and have a kept pair, with the tables of every node in `from`."""

    def __init__(self, attempt: Attempt, records: Mapping[str, Record], pool: str, replacing: Sequence[Record]) -> None:
        self.pool = records[pool]
        self._files: dict[tuple[str, str], pq.ParquetFile] = {}
        for node, record in records.items():
            for grain in ("image", "caption"):
                file = record.file(grain)
                if file is not None:
                    data = attempt.store.read_file(record, file)
                    self._files[node, grain] = pq.ParquetFile(io.BytesIO(data))
        image = self._files[pool, "image"].read(["uid", "status", *WHERE])
        if replacing:
            gone = pa.concat_tables([attempt.read(record, "image", ["uid"]) for record in replacing]).column("uid")
            image = image.filter(pc.invert(pc.is_in(image.column("uid"), value_set=gone.combine_chunks())))
        pairs = self._kept()
        self.image = image.filter(pc.is_in(image.column("uid"), value_set=pairs.column("uid").combine_chunks()))
        self.pairs = pairs.filter(pc.is_in(pairs.column("uid"), value_set=self.image.column("uid").combine_chunks()))
        missing = self.image.filter(pc.is_null(self.image.column("offset")))
        if missing.num_rows:
            raise SluiceError(
                f"{missing.num_rows} images of part {self.pool.part} are kept but were not downloaded "
                f"(uid {missing.column('uid')[0]}: {missing.column('status')[0]}); "
                "begin the rules with `downloaded: status = 'success'`"
            )

    def _kept(self) -> pa.Table:
        """uid and caption_id of the kept pairs, in their order."""
        for _, file in self._of("caption"):
            if "kept" in file.schema_arrow.names:
                table = file.read(["uid", "caption_id", "kept"])
                return table.filter(table.column("kept")).select(["uid", "caption_id"])
        raise SluiceError("no node in `from` has the column 'kept'; add a selection, such as stages.select.Select")

    def _of(self, grain: str) -> list[tuple[str, pq.ParquetFile]]:
        return [(node, file) for (node, kind), file in self._files.items() if kind == grain]

    def columns(self, grain: str, chosen: Sequence[str] | None) -> dict[str, list[Any]]:
        """Name in the JSON -> values, row by row of the images or pairs: those that were chosen, else plain ones, and
        of lists of boxes `label` and `box`.

        Of two nodes' columns of one name, the later one is called `node.name`.
        """
        found: dict[str, list[Any]] = {}
        for node, file in self._of(grain):
            schema = file.schema_arrow
            places = self._places(file, grain)
            for name in covered(schema):
                kind = schema.field(name).type
                boxes = chosen is None and _are_boxes(kind)
                wanted = name not in PLUMBING and (_is_plain(kind) or boxes)
                if chosen is not None:
                    wanted = name in chosen or f"{node}.{name}" in chosen
                if wanted and name not in (*KEYS["caption"].names, CAPTIONS.name):  # of that name the list is
                    shown = name if name not in found else f"{node}.{name}"
                    values = _values(file.read([name]).column(0).take(places).combine_chunks())
                    found[shown] = [_labelled(row) for row in values] if boxes else values
        return found

    def texts(self, name: str) -> tuple[list[str | None], list[str | None]]:
        """Text and source of every pair, each from the first node that knows it; `name` is the column of the texts."""
        texts = sources = pa.nulls(self.pairs.num_rows, pa.string())
        known = np.zeros(self.pairs.num_rows, dtype=bool)
        for node, file in self._of("caption"):
            names, short = file.schema_arrow.names, name.removeprefix(f"{node}.")
            places = self._places(file, "caption")
            if short in names:
                texts = pc.coalesce(texts, file.read([short]).column(0).take(places).combine_chunks())
                known |= np.asarray(places.is_valid())
            if "source" in names:
                sources = pc.coalesce(sources, file.read(["source"]).column(0).take(places).combine_chunks())
        if not known.all():
            pair = self.pairs.slice(int(np.flatnonzero(~known)[0]), 1).to_pylist()[0]
            raise SluiceError(
                f"no node in `from` has the text of the kept pair {pair} as {name!r}; add the node that wrote it"
            )
        return texts.to_pylist(), sources.to_pylist()

    def boxes(self, name: str) -> list[list[list[float]]]:
        """The boxes of every image. Raises `SluiceError` where one is null: nobody looked for any."""
        for node, file in self._of("image"):
            short = name.removeprefix(f"{node}.")
            if short in file.schema_arrow.names:
                found: list[Any] = file.read([short]).column(0).take(self._places(file, "image")).to_pylist()
                if None in found:
                    uid = self.image.column("uid")[found.index(None)]
                    raise SluiceError(f"blur: nobody looked for {name} in uid {uid}; add the rule `{name} IS NOT NULL`")
                return found
        raise SluiceError(f"blur: no image has the column {name!r}; add the node that wrote it to `from`")

    def ranking(self, name: str) -> np.ndarray:
        """float64 (pairs,): the values of the caption column by which the best caption is found; -inf for none."""
        known: list[str] = []
        for node, file in self._of("caption"):
            names = file.schema_arrow.names
            known += names
            short = name.removeprefix(f"{node}.")
            if short in names:
                values = file.read([short]).column(0).take(self._places(file, "caption")).cast(pa.float64())
                filled = np.asarray(pc.fill_null(values, -math.inf), dtype=np.float64)
                return np.where(np.isnan(filled), -math.inf, filled)
        raise SluiceError(f"best_by: no caption has the column {name!r}{did_you_mean(name, known)}")

    def _places(self, file: pq.ParquetFile, grain: str) -> pa.Array:
        """The row in a table of every image or pair; null where it has none."""
        wanted = self.image if grain == "image" else self.pairs
        return pc.index_in(_key(wanted, grain), value_set=_key(file.read(KEYS[grain].names), grain))


def _key(table: pa.Table, grain: str) -> pa.Array:
    return pc.binary_join_element_wise(*(table.column(name).combine_chunks() for name in KEYS[grain].names), " ")


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_primitive(kind) or pa.types.is_string(kind))


def _are_boxes(kind: pa.DataType) -> bool:
    """Whether it is a list of structs with a `label` and a `box` of numbers, whatever else these have."""
    if not _is_list(kind) or not pa.types.is_struct(kind.value_type):
        return False
    inner = {field.name: field.type for field in kind.value_type}
    box = inner.get("box", pa.null())
    return inner.get("label") == pa.string() and _is_list(box) and pa.types.is_floating(box.value_type)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _labelled(boxes: list[dict[str, Any] | None] | None) -> list[dict[str, Any] | None] | None:
    return boxes and [one and {"label": one["label"], "box": one["box"]} for one in boxes]


def _values(column: pa.Array) -> list[Any]:
    """Values as JSON has them: the shortest float that is the same, null for NaN and infinity, text for times.

    Unsigned 64 bits, which are hashes, are 16 hex digits: the integers of most readers end at 2^63.
    """
    kind = column.type
    if _is_list(kind):
        inner = iter(_values(column.flatten()))
        return [
            None if size is None else list(islice(inner, size)) for size in pc.list_value_length(column).to_pylist()
        ]
    if pa.types.is_struct(kind):
        members = zip(*(_values(member) for member in column.flatten()), strict=True) if kind.num_fields else ()
        there = column.is_valid().to_pylist()
        rows = [dict(zip((field.name for field in kind), row, strict=True)) for row in members] or [{}] * len(column)
        return [row if valid else None for row, valid in zip(rows, there, strict=True)]
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        return [None if text is None else _finite(float(text)) for text in column.cast(pa.string()).to_pylist()]
    if pa.types.is_uint64(kind):
        return [None if value is None else f"{value:016x}" for value in column.to_pylist()]
    if pa.types.is_temporal(kind):
        column = column.cast(pa.string())
    return [_finite(value) for value in column.to_pylist()]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def samples(
    part: Part,
    tar: str,
    best_by: str | None = None,
    json_columns: Sequence[str] | None = None,
    text: str = "caption",
    blur: str | None = None,
) -> Iterator[dict[str, Any]]:
    """One row per image, in the pool's order, with all of `SAMPLES` but its place."""
    texts, sources = part.texts(text)
    scores = part.ranking(best_by) if best_by else np.zeros(part.pairs.num_rows)
    of_image, of_pair = part.columns("image", json_columns), part.columns("caption", json_columns)
    boxes = part.boxes(blur) if blur else None
    if json_columns is None:
        of_pair.pop(text.rpartition(".")[2], None)  # it is the caption already
    pairs_of: dict[str, list[int]] = {}
    for row, uid in enumerate(part.pairs.column("uid").to_pylist()):
        if texts[row] is not None:
            pairs_of.setdefault(uid, []).append(row)
    ids = part.pairs.column("caption_id").to_pylist()
    for row, image in enumerate(part.image.select(["uid", *WHERE]).to_pylist()):
        rows = pairs_of.get(image["uid"], [])
        best = max(rows, key=lambda pair: (scores[pair], -pair)) if rows else None
        told = texts[best] if best is not None else None
        captions = [
            {"caption_id": ids[pair], "text": texts[pair], "source": sources[pair]}
            | {name: values[pair] for name, values in of_pair.items()}
            for pair in rows
        ]
        facts = {name: values[row] for name, values in of_image.items()}
        if blur is not None and boxes is not None:
            facts[blur.rpartition(".")[2]] = [[round(share, 5) for share in box] for box in boxes[row]]
            facts["blurred_sha256"] = None  # until the image is blurred: every sample has the same keys
        document = {"uid": image["uid"], "caption": told, "captions": captions, **facts}
        yield {
            **image,
            "caption_id": ids[best] if best is not None else None,
            "txt": told,
            "json": json.dumps(document, ensure_ascii=False),
            "boxes": boxes[row] if boxes is not None else None,
            "tar": tar,
        }
