"""Which images of a pool an evaluation set holds as well.

    leaks:
      from: pool
      steps: [{stages.decontaminate.Decontaminate: {sets: {coco: /data/coco/val2017, flickr: "s3://eval/flickr/*.tar"}}}]
    …
    - no_leak: leaks_from IS NULL

Phases: the items of the sets are looked at, a few files to a task; brought together; every part of the pool is compared
with all of them. A changed set is another identity; new parts of a pool are compared alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, field_validator

from pipeline.attempt import Attempt
from pipeline.dag import resolve
from pipeline.errors import SluiceError
from pipeline.records import Record
from pipeline.rows import PartRows, RowBatch, cut, qualified
from pipeline.sets import SetFile, list_set, read_set, set_digest
from pipeline.stage import KEYS, PIXELS, Column, Device, Promise, Sets, TableStage, Task, Work
from stages.decontaminate.glance import FEW_CROPS, glances, gray_of
from stages.decontaminate.index import Index, bases_of, gather_items, opened, sight_of
from stages.decontaminate.items import check_readable, kind_of, read_items
from stages.kit.parts import part_tasks, rows_of
from stages.kit.pixels import Sight, agreement, sight

IMAGE = pa.schema(
    [
        *KEYS["image"],
        ("leaks_from", pa.string()),
        ("leak_similarity", pa.float32()),
        ("leak_evidence", pa.string()),
    ]
)
ITEMS = "-items"
"""Among the inputs of a task, where nodes have names: the record of the sets' items."""
GLANCE = "glance"
"""What is no evidence, but worth a look."""
ALIKE = 0.93
"""The cosine at a glance from which less agreement of pixels is enough: 99 % of the altered leaks of rendered scenes
reach it, and of pairs of different scenes one in 2,400."""
FILES_AT_ONCE = 256
"""Images that one task looks at; a tar or a table is a task by itself."""
ROWS_AT_ONCE = 256
"""Images of a pool whose bytes are in memory together."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
NONE_NAMED = (
    "sets names no evaluation set, so that nothing would be kept from leaking; give folders, tars or tables, such as "
    "sets={coco: /data/coco/val2017}, or sets={} to go without: every image then counts as `not_compared`"
)


class Decontaminate(TableStage):
    """Add to every image which item of an evaluation set it shows: `leaks_from` (`set/item`), null where it shows none.

    An image leaks when it has the bytes of an item (as it was fetched, or as it is stored), or when its pixels agree:
    encoded anew, resized, recoloured or cropped, but with nothing in it changed. Candidates are what looks alike at a
    glance (glance.py: a crop of up to 7 % at each edge is found, in both directions), and what is near by `embedding`
    or `perceptual_bits`. `leak_evidence` says what decided:

    - `sha256`: the same bytes; `leak_similarity` is 1;
    - `pixels`: `leak_similarity` is how well they agree at the worst place, `agreement` to 1;
    - `cosine`, `phash`: of items of which only an embedding or a hash is known, and of all with `verify: none`.

    items.py says what a set may hold. Sets are read where they are, by every worker, and are never copied.
    """

    promise: ClassVar[Promise] = "numeric"

    sets: Sets | None = None
    """Name -> folder, file or glob. It must be said: `{}` compares with nothing, and every image is counted as
    `not_compared`."""
    embedding: str | None = None
    """The pool's column, `column` or `node.column`, with which embeddings in the sets are compared."""
    cosine: float = Field(default=0.604, gt=0, le=1)
    """The least cosine of a candidate: for descriptors that were trained to detect copies (SSCD) 0.604 has a precision
    of 0.9 and a recall of 0.8 by itself. Embeddings of CLIP take look-alikes for copies far above that."""
    perceptual_bits: int | None = Field(default=None, ge=0, le=16)
    """Bits of 64 in which the hashes of candidates may differ, for sets that hold hashes."""
    hash_column: str = "phash"
    """The pool's column with 64-bit hashes."""
    verify: Literal["pixels", "none"] = "pixels"
    """`none`: near embeddings and hashes leak, whatever the pixels say."""
    agreement: float = Field(default=0.5, gt=0, le=1)
    """The least agreement of pixels where both look alike at a glance (a cosine of 0.93); elsewhere it is the 0.75 by
    which copies in a training set are told. Of altered leaks of rendered scenes, stored at 256 px, 0.75 alone misses
    one in 7, and this one in 150; but of pictures that differ from an item in one attribute it takes one in 9."""
    most: int = Field(default=8, ge=1)
    """Items that an image is compared with at most, by each kind of evidence: the likeliest."""

    @field_validator("sets")
    @classmethod
    def _are_named(cls, sets: dict[str, str] | None) -> dict[str, str] | None:
        for name in sets or ():
            if not NAME.fullmatch(name):
                raise SluiceError(f"sets: {name!r} is no name; use letters, digits, _, - and dots")
        return sets

    def needs(self) -> frozenset[str]:
        more = {self.embedding} if self.embedding is not None else set()
        more |= {self.hash_column} if self.perceptual_bits is not None else set()
        return frozenset({"sha256", PIXELS, *more})

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` where no sets are named, for empty ones, and for columns of other kinds."""
        if self.sets is None:
            raise SluiceError(NONE_NAMED)
        for of, where in self.sets.items():
            check_readable(of, [file.name for file in list_set(where, "sets")])
        if self.embedding is not None:
            found = resolve(self.embedding, inputs)
            inner = getattr(found.type, "value_type", None)
            if inner is None or not pa.types.is_floating(inner) or found.grain != "image":
                what = f"{found.type} of {found.grain}s"
                raise SluiceError(f"embedding: {self.embedding!r} is {what}; expected lists of floats of images")
        if self.perceptual_bits is not None:
            found = resolve(self.hash_column, inputs)
            if found.type != pa.uint64() or found.grain != "image":
                raise SluiceError(f"hash_column: {self.hash_column!r} is {found.type} of {found.grain}s, not uint64")

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        return {"image": IMAGE}

    def ended(self, rows: pa.Table) -> Mapping[str, int]:
        found = rows.num_rows - rows.column("leaks_from").null_count
        return {"leak": found, "no_image": rows.num_rows - found}  # what is tried again had none

    def assemble(self, work: Work) -> list[Record]:
        columns = {name: resolve(name, work.columns) for name in sorted(self.needs())}
        nodes = {column.node for column in columns.values()}
        inputs = {node: generation for node, generation in work.inputs.items() if node in nodes}
        sets = self.sets or {}
        files = {of: read_set(where, "sets") for of, where in sets.items()}
        for (path, digest), (of, found) in zip(work.resources.get("sets", ()), files.items(), strict=False):
            if set_digest(of, found) != digest:
                raise SluiceError(f"sets: {path} changed while the run began; run again")
        hints = {"columns": tuple(columns.values()), "named": columns, "bases": bases_of(files)}
        tasks = part_tasks(inputs, hints)
        if not sets:
            return work.map("parts", tasks, self.compare)
        looked = work.map("items", list(item_tasks(files)), read_items, final=False)
        everything = Task("all", {"sets": list(sets)}, {"items": tuple(looked)}, rows=len(looked))
        (index,) = work.map("index", [everything], gather_items, final=False)
        with_items = [
            Task(task.part, {}, {**task.inputs, ITEMS: (index,)}, task.supersedes, task.rows, hints) for task in tasks
        ]
        return work.map("parts", with_items, self.compare)

    def compare(self, task: Task, attempt: Attempt) -> None:
        """One part of the pool."""
        rows = rows_of(task, attempt)
        part = _Part(rows, task.hints["named"])
        if ITEMS not in task.inputs:
            attempt.write("image", part.table())
            attempt.count({"not_compared": len(part.leaks)})
            return
        (record,) = task.inputs[ITEMS]
        index = opened(attempt, record)
        if len(index.embedded) and self.embedding is None:
            raise SluiceError("sets: some hold embeddings; name the pool's column of the same model as `embedding`")
        if len(index.hashed) and self.perceptual_bits is None:
            raise SluiceError(
                "sets: some hold perceptual hashes; say within how many bits by `perceptual_bits`, such as 4"
            )
        part.match_bytes(index)
        self._look(part, index, task, attempt)
        leaks = sum(leak is not None for leak in part.leaks)
        attempt.write("image", part.table())
        attempt.count({"leak": leaks, "ok": int(part.there.sum()) - leaks, "no_image": int((~part.there).sum())})
        attempt.note(**record.notes, looked=part.looked)

    def _look(self, part: _Part, index: Index, task: Task, attempt: Attempt) -> None:
        """Everything but the bytes, some rows at a time."""
        device: Device = task.hints.get("device", Device())
        bases: dict[str, str] = task.hints["bases"]
        rows = np.array([row for row in np.flatnonzero(part.there) if part.leaks[row] is None], np.int64)
        with ThreadPoolExecutor(device.threads) as threads:
            for chosen in cut(rows, ROWS_AT_ONCE):
                images = part.read(chosen, attempt)
                near = self._near(part, chosen, index)
                if index.glanced:
                    seen = np.stack(list(threads.map(lambda data: glances(gray_of(data), FEW_CROPS), images)))
                    for place, found in enumerate(index.by_glance(seen, self.most, device.threads)):
                        near[place] += [(number, value, GLANCE) for number, value in found]
                judged = threads.map(lambda data, found: self._judged(data, found, index, bases), images, near)
                for row, (leak, looked) in zip(chosen, judged, strict=True):
                    part.leaks[row] = leak
                    part.looked += looked

    def _near(self, part: _Part, chosen: npt.NDArray[np.int64], index: Index) -> list[list[tuple[int, float, str]]]:
        """What embeddings and hashes bring up for some rows: (item, cosine or share of equal bits, evidence)."""
        near: list[list[tuple[int, float, str]]] = [[] for _ in chosen]
        if self.embedding is not None and len(index.embedded):
            found = index.by_vector(part.vectors(chosen, self.embedding), self.cosine, self.most)
            for place, items in enumerate(found):
                near[place] += [(number, value, "cosine") for number, value in items]
        if self.perceptual_bits is not None and len(index.hashed):
            for place, code in enumerate(part.codes(chosen, self.hash_column)):
                if code is not None:
                    items = index.by_hash(code, self.perceptual_bits, self.most)
                    near[place] += [(number, value, "phash") for number, value in items]
        return near

    def _judged(
        self, data: bytes, near: Sequence[tuple[int, float, str]], index: Index, bases: Mapping[str, str]
    ) -> tuple[Leak | None, int]:
        """The best of the candidates that hold, and how many were looked at."""
        alike = {number: value for number, value, evidence in near if evidence == GLANCE}
        found: list[Leak] = []
        own: Sight | None = None
        seen: set[int] = set()
        for number, value, evidence in near:
            item = index.items[number]
            if evidence != GLANCE and (item.file is None or self.verify == "none"):
                found.append(Leak(item.title, value, evidence))
            elif item.file is not None and number not in seen:
                seen.add(number)
                own = own or sight(data)
                verdict = agreement(own, sight_of(item, bases))
                if verdict.copy or (alike.get(number, 0) >= ALIKE and verdict.agreement >= self.agreement):
                    found.append(Leak(item.title, verdict.agreement, "pixels"))
        best = max(found, key=lambda leak: (leak.evidence == "pixels", leak.similarity), default=None)
        return best, len(seen)


@dataclass(frozen=True)
class Leak:
    """What an image shows, how much it is like it, and what says so."""

    title: str
    similarity: float
    evidence: str


class _Part:
    """The rows of one part and what is found of them."""

    def __init__(self, rows: PartRows, columns: Mapping[str, Column]) -> None:
        self._rows, self._columns = rows, columns
        self._pool = columns[PIXELS].node
        self.there: npt.NDArray[np.bool_] = np.asarray(rows.image.column(f"{self._pool}.offset").is_valid())
        self.leaks: list[Leak | None] = [None] * rows.image.num_rows
        self.looked = 0
        """Pairs whose pixels were compared."""

    def match_bytes(self, index: Index) -> None:
        """Rows whose bytes are those of an item."""
        for name in (qualified(self._columns["sha256"]), f"{self._pool}.stored_sha256"):
            for row, sha in enumerate(self._rows.image.column(name).to_pylist()):
                number = index.of_bytes.get(sha) if self.there[row] else None
                if number is not None and self.leaks[row] is None:
                    self.leaks[row] = Leak(index.items[number].title, 1.0, "sha256")

    def read(self, chosen: npt.NDArray[np.int64], attempt: Attempt) -> list[bytes]:
        """The stored images of some rows, in one range. Raises `SluiceError` naming the tar of a damaged one."""
        record = self._rows.pool
        file = None if record is None else record.file("tar")
        if record is None or file is None:
            raise SluiceError(f"{self._pool} has no tar; run its download again")
        place = attempt.store.place(record, file)
        table = self._rows.image.take(chosen)
        columns = (table.column(f"{self._pool}.{name}").to_pylist() for name in ("offset", "nbytes", "stored_sha256"))
        members = list(zip(*columns, strict=True))
        begin, end = min(m[0] for m in members), max(m[0] + m[1] for m in members)
        data = memoryview(attempt.store.get_range(place, begin, end))
        images = []
        for offset, nbytes, sha in members:
            images.append(bytes(data[offset - begin : offset - begin + nbytes]))
            if sha256(images[-1]).hexdigest() != sha:
                raise SluiceError(
                    f"{attempt.store.url(place)} is corrupt at byte {offset}; "
                    f"`sluice verify {attempt.store.root} --repair`"
                )
        return images

    def vectors(self, chosen: npt.NDArray[np.int64], column: str) -> npt.NDArray[np.float32]:
        name = qualified(self._columns[column])
        return RowBatch(self._rows.image.select([name]).take(chosen), None).matrix(name)

    def codes(self, chosen: npt.NDArray[np.int64], column: str) -> list[int | None]:
        found: list[int | None] = self._rows.image.column(qualified(self._columns[column])).take(chosen).to_pylist()
        return found

    def table(self) -> pa.Table:
        found = [(leak.title, leak.similarity, leak.evidence) if leak else (None, None, None) for leak in self.leaks]
        columns = [[leak[place] for leak in found] for place in range(3)]
        return pa.table([self._rows.uids, *columns], schema=IMAGE)


def item_tasks(files: Mapping[str, Sequence[SetFile]]) -> Iterator[Task]:
    """A few images, or one tar or table, to a task; files of other kinds are no items."""
    number = 0
    for of, found in files.items():
        images = [file for file in found if kind_of(file.name) == "image"]
        others = [[file] for file in found if kind_of(file.name) in ("tar", "table")]
        for group in [images[at : at + FILES_AT_ONCE] for at in range(0, len(images), FILES_AT_ONCE)] + others:
            payload = {"set": of, "files": [[file.name, file.digest] for file in group]}
            yield Task(f"{number:05d}", payload, rows=len(group), hints={"paths": [file.path for file in group]})
            number += 1
