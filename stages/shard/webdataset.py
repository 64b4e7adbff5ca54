"""A selection as WebDataset shards, byte for byte reproducible.

    shards:
      from: [pool, kept]
      steps: [{stages.shard.WebDataset: {samples_per_shard: 10000, shuffle: true}}]

The shards lie in `<root>/shards/data/<key>/00000000.tar` and so on, with `sizes.json` beside them, as open_clip wants
them; `<key>` says what is in them, so two selections never meet.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.records import Generation, Record, digest
from pipeline.stage import PIXELS, Column, Job, Promise, Task, Work
from stages.kit.endings import ending_of
from stages.kit.exchange import Scatter, gather, spread_to
from stages.kit.tar import TarWriter
from stages.shard.blur import blurred
from stages.shard.permutation import permuted
from stages.shard.samples import SAMPLES, Part, samples

GROUPS = 1024
"""At most so many tasks gather samples, so that a shard never reads from more records than this."""
AT_ONCE = 256
"""Images in memory while a shard is written."""
READERS = 8
"""Concurrent range reads; a store far away is slow to answer, not slow to send."""
REPLACING = "-"
"""Among the inputs of a task, where nodes have names."""

INDEX = pa.schema(
    [
        ("uid", pa.string()),
        ("key", pa.string()),
        ("caption_id", pa.string()),
        ("shard", pa.string()),
        ("image", pa.string()),
        ("image_offset", pa.int64()),
        ("image_nbytes", pa.int64()),
        ("txt_offset", pa.int64()),
        ("txt_nbytes", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_nbytes", pa.int64()),
    ]
)
"""Where every sample is: its key and the names and bytes of its members; `caption_id` is of the txt."""


class WebDataset(Job):
    """One sample per image with a kept pair: `{uid}.jpg`, `{uid}.txt` (its best kept caption), `{uid}.json`.

    The JSON holds uid, url, caption, captions (all kept ones with source and scores) and what the tables in `from` say
    of the image; every sample's has the same keys. Only covered columns enter it: what changes from run to run would
    change the bytes.
    """

    promise: ClassVar[Promise] = "pure"
    seeded: ClassVar[bool] = True
    revision: ClassVar[int] = 3

    samples_per_shard: int = Field(default=10_000, ge=1)
    """Every shard but the last holds so many."""
    shuffle: bool = False
    """Shuffle all samples exactly, by the DAG's seed; otherwise they stay in the pool's order."""
    best_by: str | None = None
    """The caption column whose highest value makes a caption the `txt`; by default the first kept one is."""
    json_columns: tuple[str, ...] | None = None
    """Columns in the JSON, each `column` or `node.column`; by default texts, numbers and times, and of
    lists of boxes `label` and `box`; no embeddings, and no plumbing."""
    text: str = "caption"
    """The caption column whose words are written, such as `masked_caption`; where that is null, the caption is left."""
    blur: str | None = None
    """An image column of boxes to be blurred, such as `face_boxes`: relative x0, y0, x1, y1 each. Other images keep
    their bytes. The JSON has the boxes and `blurred_sha256`, of the image as it is here: null where no box is."""

    def needs(self) -> frozenset[str]:
        named = {*(self.json_columns or ()), self.best_by, self.blur, self.text} - {None, "caption"}
        return frozenset({"kept", PIXELS, *(name for name in named if name)})

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` for columns that cannot rank captions, or would make the bytes differ from run to run."""
        for column in inputs:
            names = {column.name, f"{column.node}.{column.name}"}
            if self.best_by in names and (column.grain != "caption" or not _is_number(column.type)):
                raise SluiceError(f"best_by: {self.best_by!r} is no number of a caption; name one such as clip_score")
            if self.text in names and column.name != "caption" and not _is_text(column):
                raise SluiceError(f"text: {self.text!r} is no text of a caption; name one such as masked_caption")
            if self.blur in names and not _are_boxes(column):
                raise SluiceError(f"blur: {self.blur!r} is no list of boxes of an image; name one such as face_boxes")
            named = names & {*(self.json_columns or ())}
            if named and not column.covered:
                raise SluiceError(
                    f"json_columns: {min(named)!r} may differ from run to run, and so would the shards; leave it out"
                )
            if named and pa.types.is_binary(column.type):
                raise SluiceError(f"json_columns: {min(named)!r} is binary, which JSON cannot hold; leave it out")

    def assemble(self, work: Work) -> list[Record]:
        pool = _pool(work.inputs)
        groups = _groups(work.inputs, pool)
        counted = work.map("count", groups, self.count, final=False)
        counts = [record.notes["samples"] for record in counted]
        total = sum(counts)
        if not total:
            name = "".join(f"{record.node}: " for record in counted[:1])
            selection = next(c.node for c in work.columns if (c.name, c.grain) == ("kept", "caption"))
            raise SluiceError(
                f"{name}{selection} keeps no pair, so there is nothing to write; loosen its rules: "
                f"`sluice what-if ROOT --node {selection} --rule NAME=CONDITION` shows what others would keep"
            )
        shards = -(-total // self.samples_per_shard)
        bits = (shards - 1).bit_length()
        starts = np.cumsum([0, *counts[:-1]]).tolist()
        common = {"total": total, "bits": bits, "seed": work.seed if self.shuffle else None}
        tasks = [
            Task(
                group.part, {**common, "start": start, "files": _bytes_of(group.inputs[pool])}, group.inputs, rows=count
            )
            for group, start, count in zip(groups, starts, counts, strict=True)
        ]
        found = work.map("gather", tasks, self.gather, final=False)
        # The samples decide the bytes of the shards, so the samples name them.
        key = digest([[record.content_hash for record in found], self.samples_per_shard])[:12]
        holders = spread_to(work, "spread", found, bits, last=shards - 1)
        sizes = [min(self.samples_per_shard, total - shard * self.samples_per_shard) for shard in range(shards)]
        writes = [
            Task(f"{shard:08d}", {"key": key, "bits": bits, "samples": size}, {"rows": holders(shard)}, rows=size)
            for shard, size in enumerate(sizes)
        ]
        written = work.map("write", writes, self.write)
        last = Task("sizes", {"key": key, "samples": total, "per_shard": self.samples_per_shard}, rows=0)
        return written + work.map("sizes", [last], self.sizes)

    # -- phases --------------------------------------------------------------------------------------------------------

    def count(self, task: Task, attempt: Attempt) -> None:
        """How many samples a group of parts gives."""
        attempt.note(samples=sum(part.image.num_rows for part in _parts(task, attempt)))

    def gather(self, task: Task, attempt: Attempt) -> None:
        """The samples of a group of parts, each cut to the shard that it belongs to."""
        bits, seed, rank = task.payload["bits"], task.payload["seed"], task.payload["start"]
        scatter = Scatter(attempt)
        for part in _parts(task, attempt):
            tar = part.pool.file("tar")
            if tar is None:
                raise SluiceError(f"{part.pool.node} part {part.pool.part} has no tar; run its download again")
            place = attempt.store.place(part.pool, tar)
            rows = list(samples(part, place, self.best_by, self.json_columns, self.text, self.blur))
            ranks = np.arange(rank, rank + len(rows))
            positions = ranks if seed is None else permuted(ranks, task.payload["total"], seed)
            shards = positions // self.samples_per_shard
            places = shards.astype(np.uint64) << np.uint64(64 - bits) if bits else np.zeros(len(rows), np.uint64)
            numbers = {"_place": places, "shard": shards, "position": positions}
            scatter.add(
                pa.table(
                    {
                        field.name: pa.array(
                            numbers[field.name] if field.name in numbers else [row[field.name] for row in rows],
                            field.type,
                        )
                        for field in SAMPLES
                    },
                    schema=SAMPLES,
                )
            )
            rank += len(rows)
        scatter.close()
        attempt.note(bits=0)

    def write(self, task: Task, attempt: Attempt) -> None:
        """One shard and its index."""
        number, key = int(task.part), task.payload["key"]
        name = f"{number:08d}.tar"
        path = f"data/{key}/{name}"
        tables = list(gather(attempt, task.inputs["rows"], task.payload["bits"], number))
        rows = pa.concat_tables(tables)
        rows = rows.filter(pc.equal(rows.column("shard"), number))
        rows = rows.take(pc.sort_indices(rows, sort_keys=[("position", "ascending")]))
        if rows.num_rows != task.payload["samples"]:
            raise SluiceError(f"{name} has {rows.num_rows} samples instead of {task.payload['samples']}; run again")
        index: dict[str, list[Any]] = {field: [] for field in INDEX.names}
        with attempt.create_final("shard", path) as stream:
            archive = TarWriter(stream)
            for start in range(0, rows.num_rows, AT_ONCE):
                for row, image in _with_images(attempt, rows.slice(start, AT_ONCE)):
                    for column, value in _add(archive, *_blurred(row, image), name).items():
                        index[column].append(value)
            archive.finish()
        attempt.write("samples", pa.table(index, schema=INDEX), sought="uid")
        attempt.count({"written": rows.num_rows})
        attempt.note(samples=rows.num_rows, path=path)

    def sizes(self, task: Task, attempt: Attempt) -> None:
        """`sizes.json`: how many samples each shard holds; its presence says that all shards are there."""
        total, per_shard, key = (task.payload[name] for name in ("samples", "per_shard", "key"))
        shards = -(-total // per_shard)
        sizes = {f"{shard:08d}.tar": min(per_shard, total - shard * per_shard) for shard in range(shards)}
        with attempt.create_final("sizes", f"data/{key}/sizes.json") as stream:
            stream.write(json.dumps(sizes, indent=1).encode())
        braces = f"{{{0:08d}..{shards - 1:08d}}}" if shards > 1 else f"{0:08d}"
        attempt.note(samples=total, shards=shards, path=f"data/{key}/{braces}.tar")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _is_text(column: Column) -> bool:
    return column.grain == "caption" and bool(pa.types.is_string(column.type))


def _are_boxes(column: Column) -> bool:
    if column.grain != "image" or not pa.types.is_list(column.type):
        return False
    kind = column.type.value_type
    return bool(pa.types.is_fixed_size_list(kind)) and kind.list_size == 4


# -- inputs ------------------------------------------------------------------------------------------------------------


def _pool(inputs: Mapping[str, Generation]) -> str:
    for node, generation in inputs.items():
        if any(record.file("tar") for record in generation.records):
            return node
    raise SluiceError(f"none of {', '.join(inputs)} is a pool; add the download node to `from`")


def _groups(inputs: Mapping[str, Generation], pool: str) -> list[Task]:
    """The pool's parts, several to a task where they are many, each with its records in every node.

    `REPLACING` are the pool's records whose uids no longer count in one of these parts.
    """
    parts = {node: {record.part: record for record in generation.records} for node, generation in inputs.items()}
    replacing: dict[str, list[Record]] = {}
    for record in inputs[pool].records:
        for part in record.supersedes:
            replacing.setdefault(part, []).append(record)
    size = -(-len(parts[pool]) // GROUPS)
    records = list(inputs[pool].records)
    tasks = []
    for start in range(0, len(records), size):
        group = records[start : start + size]
        found = {node: tuple(_match(node, known, record) for record in group) for node, known in parts.items()}
        later = {other.part: other for record in group for other in replacing.get(record.part, ())}
        rows = sum(record.rows.get("image", 0) for record in group)
        tasks.append(Task(group[0].part, {}, {**found, REPLACING: tuple(later.values())}, rows=rows))
    return tasks


def _match(node: str, records: Mapping[str, Record], part: Record) -> Record:
    found = records.get(part.part) or records.get(part.base)
    if found is None:
        raise SluiceError(f"{node} has no part {part.part}, which the pool has; run the whole DAG again")
    return found


def _bytes_of(records: Sequence[Record]) -> list[str]:
    """What must stay as it is for the offsets in the samples to hold: the pool's tables and tars."""
    return [record.bytes_hash() for record in records]


def _parts(task: Task, attempt: Attempt) -> Iterator[Part]:
    nodes = [node for node in task.inputs if node != REPLACING]
    pool = next(node for node in nodes if any(record.file("tar") for record in task.inputs[node]))
    for place, record in enumerate(task.inputs[pool]):
        replacing = [other for other in task.inputs[REPLACING] if record.part in other.supersedes]
        yield Part(attempt, {node: task.inputs[node][place] for node in nodes}, pool, replacing)


# -- bytes -------------------------------------------------------------------------------------------------------------


def _with_images(attempt: Attempt, rows: pa.Table) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Rows with the bytes of their images, checked. Raises `SluiceError` naming the tar of damaged ones."""
    listed = rows.to_pylist()

    def fetch(row: dict[str, Any]) -> bytes:
        return attempt.store.get_range(row["tar"], row["offset"], row["offset"] + row["nbytes"])

    with ThreadPoolExecutor(max_workers=READERS) as pool:
        for row, image in zip(listed, pool.map(fetch, listed), strict=True):
            if sha256(image).hexdigest() != row["stored_sha256"]:
                raise SluiceError(
                    f"{attempt.store.url(row['tar'])} is corrupt at byte {row['offset']} (uid {row['uid']}); "
                    f"`sluice verify {attempt.store.root} --repair`"
                )
            yield row, image


def _blurred(row: dict[str, Any], image: bytes) -> tuple[dict[str, Any], bytes]:
    """The sample with its boxes blurred; one without boxes as it is."""
    if not row["boxes"]:
        return row, image
    changed = blurred(image, row["boxes"])
    document = {**json.loads(row["json"]), "blurred_sha256": sha256(changed).hexdigest()}
    return {**row, "json": json.dumps(document, ensure_ascii=False)}, changed


def _add(archive: TarWriter, row: Mapping[str, Any], image: bytes, shard: str) -> dict[str, Any]:
    """Append one sample; its row of the index. An image without a caption gets no txt."""
    uid, text = row["uid"], row["txt"]
    ending = ending_of(image[:16])
    if ending is None:
        raise SluiceError(
            f"uid {uid} is no JPEG, PNG, WebP or GIF, so no reader would find it; leave it out of the rules"
        )
    members = [(f"{uid}.{ending}", image), (f"{uid}.json", row["json"].encode())]
    if text is not None:
        members.insert(1, (f"{uid}.txt", str(text).encode()))
    places = dict(zip((name.rpartition(".")[2] for name, _ in members), archive.add(members), strict=True))
    text_at = (places["txt"], len(members[1][1])) if text is not None else (None, None)
    json_at = (places["json"], len(members[-1][1]))
    values = (uid, uid, row["caption_id"], shard, members[0][0], places[ending], len(image), *text_at, *json_at)
    return dict(zip(INDEX.names, values, strict=True))
