"""The items of all sets in memory, once per worker, and which of them an image may be."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.records import Record
from pipeline.rows import RowBatch
from pipeline.stage import Task
from stages.decontaminate.glance import CROPS, NEAR, WIDTH
from stages.decontaminate.items import ITEMS, plain
from stages.kit.neighbours import unit
from stages.kit.pixels import Sight, sight

KEPT = 2
"""Indexes that a worker keeps: those of two DAGs, or of one before and after a change."""
FLAT_ROWS = 200_000
"""Glances that are compared one by one; of more, those of the nearest cells (FAISS's IVF), in half precision."""
MOST_CELLS, PROBES, PER_CELL = 2048, 24, 64
"""Cells, those of them that are searched, and glances of each that k-means sees."""
ADDED_AT_ONCE = 1 << 18
CELLS = "cells"
"""The kind of the file with those of many glances: they are made once, and read by every worker."""
NEIGHBOURS = 512
"""Glances that a search gives at most: an item that is near is so with up to 30 of its own."""
BLOCK = 1 << 24
"""Cosines that are taken at once: 64 MB."""
SIGHTS = 256
"""Items whose pixels a worker keeps: a leak seldom comes alone."""

Numbers = npt.NDArray[np.int64]
Found = list[tuple[int, float]]
"""(number of an item, cosine or share of equal bits), the best first."""


@dataclass(frozen=True)
class Known:
    """An item: its set and name, and where its picture is, if it has one."""

    of: str
    name: str
    file: str | None
    offset: int | None
    nbytes: int | None
    sha256: str | None

    @property
    def title(self) -> str:
        return f"{self.of}/{self.name}"


class Index:
    """What images are looked for in; the number of an item is its place in `items`."""

    def __init__(self, attempt: Attempt, record: Record) -> None:
        import faiss

        table = attempt.read(record, "items")
        columns = (table.column(name).to_pylist() for name in ("set", "item", "file", "offset", "nbytes", "sha256"))
        self.items = [Known(*row) for row in zip(*columns, strict=True)]
        self.of_bytes: dict[str, int] = {}
        for number, item in enumerate(self.items):
            if item.sha256 is not None:
                self.of_bytes.setdefault(item.sha256, number)
        hashes = table.column("phash")
        self.hashed: Numbers = np.flatnonzero(np.asarray(hashes.is_valid()))
        self._hashes = hashes.drop_null().to_numpy().astype(np.uint64)
        glances = attempt.read(record, "glances")
        self._of_glance: Numbers = glances.column("row").to_numpy().astype(np.int64)
        matrix, cells = matrix_of(glances), record.file(CELLS)
        self._wholes = flat(matrix[:: len(CROPS)])
        if cells is None:
            self._glances = flat(matrix)
        else:
            data = np.frombuffer(attempt.store.read_file(record, cells), np.uint8)
            self._glances = faiss.deserialize_index(data)
        vectors = attempt.read(record, "vectors")
        self.embedded: Numbers = vectors.column("row").to_numpy().astype(np.int64)
        vectors_nd: npt.NDArray[np.float32] = RowBatch(vectors, None).matrix("vector")
        self._vectors = unit(vectors_nd) if len(vectors_nd) else vectors_nd

    @property
    def glanced(self) -> bool:
        """Whether any item has pixels."""
        return bool(len(self._of_glance))

    def by_glance(self, glances_nbd: npt.NDArray[np.float32], few: int, threads: int) -> list[Found]:
        """For every image the items that look alike: as a part of the item, or the other way round.

        The first glance of an image is at the whole of it, which is compared with all glances at the items; the others
        are compared with the wholes of the items.
        """
        import faiss

        faiss.omp_set_num_threads(threads)
        images, _, width = glances_nbd.shape
        found: list[tuple[Numbers, Numbers, npt.NDArray[np.float32]]] = []
        asked = (
            (self._glances, self._of_glance, glances_nbd[:, :1], NEIGHBOURS),
            (self._wholes, self._of_glance[:: len(CROPS)], glances_nbd[:, 1:], 2 * few),
        )
        for index, items, queries_nbd, most in asked:
            queries_nd = np.ascontiguousarray(queries_nbd).reshape(-1, width)
            cosines, rows = index.search(queries_nd, min(most, len(items)))
            near = (cosines >= NEAR) & (rows >= 0)
            found.append((np.nonzero(near)[0] // queries_nbd.shape[1], items[rows[near]], cosines[near]))
        which, numbers, values = (np.concatenate(columns) for columns in zip(*found, strict=True))
        return [_best(numbers[which == image], values[which == image], few) for image in range(images)]

    def by_hash(self, code: int, within: int, few: int) -> Found:
        """The items whose hashes differ in `within` bits at most."""
        bits = np.bitwise_count(self._hashes ^ np.uint64(code))
        near = np.flatnonzero(bits <= within)
        return _best(self.hashed[near], 1 - bits[near] / 64, few)

    def by_vector(self, vectors_nd: npt.NDArray[np.float32], cosine: float, few: int) -> list[Found]:
        """For every row the items whose embeddings are near; none for a row without."""
        if not len(self.embedded) or not len(vectors_nd):
            return [[] for _ in vectors_nd]
        if vectors_nd.shape[1] != self._vectors.shape[1]:
            raise SluiceError(
                f"sets: their embeddings have {self._vectors.shape[1]} numbers, the column has {vectors_nd.shape[1]}; "
                "embed both with one model"
            )
        found = []
        at_once = max(1, BLOCK // len(self._vectors))
        for start in range(0, len(vectors_nd), at_once):
            cosines = np.nan_to_num(unit(vectors_nd[start : start + at_once]) @ self._vectors.T, nan=-1)
            for row in cosines:
                near = np.flatnonzero(row >= cosine)
                found.append(_best(self.embedded[near], row[near], few))
        return found


def _best(numbers: Numbers, values: npt.NDArray[Any], few: int) -> Found:
    """Each item once, with its best value: the best first, and of equals the first item."""
    order = np.lexsort((numbers, -values))
    found: dict[int, float] = {}
    for place in order:
        found.setdefault(int(numbers[place]), float(values[place]))
        if len(found) == few:
            break
    return list(found.items())


def matrix_of(glances: pa.Table) -> npt.NDArray[np.float16]:
    """float16 (rows, 64)."""
    return np.asarray(glances.column("glance").combine_chunks().flatten()).reshape(-1, WIDTH)


def flat(matrix: npt.NDArray[np.float16]) -> Any:
    """A FAISS index that compares with every glance."""
    import faiss

    index: Any = faiss.IndexFlatIP(WIDTH)
    index.add(matrix.astype(np.float32))
    return index


def in_cells(matrix: npt.NDArray[np.float16]) -> Any:
    """A FAISS index that compares with those of the nearest cells, in half precision: 130 bytes each."""
    import faiss

    rows = len(matrix)
    cells = min(MOST_CELLS, round(4 * rows**0.5))
    index: Any = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(WIDTH), WIDTH, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    chosen = np.random.default_rng(0).choice(rows, min(rows, PER_CELL * cells), replace=False)
    index.train(matrix[np.sort(chosen)].astype(np.float32))
    for start in range(0, rows, ADDED_AT_ONCE):
        index.add(matrix[start : start + ADDED_AT_ONCE].astype(np.float32))
    index.nprobe = PROBES
    return index


# -- a phase: all items brought together -------------------------------------------------------------------------------


def gather_items(task: Task, attempt: Attempt) -> None:
    """A phase's `do`: all items together, each once; what several files tell of one is brought together."""
    import faiss

    numbers: dict[tuple[str, str], int] = {}
    items: list[dict[str, Any]] = []
    parts: dict[str, list[pa.Table]] = {"glances": [], "vectors": []}
    for record in task.inputs["items"]:
        places = []
        for row in attempt.read(record, "items").to_pylist():
            key = row["set"], row["item"]
            number = numbers.setdefault(key, len(items))
            if number == len(items):
                items.append(row)
            else:
                items[number].update({name: value for name, value in row.items() if value is not None})
            places.append(number)
        for kind, found in parts.items():
            table = attempt.read(record, kind)
            moved = pa.array(np.array(places, np.int32)[table.column("row").to_numpy()], pa.int32())
            if table.num_rows:
                found.append(table.set_column(0, "row", moved))
    attempt.write("items", pa.Table.from_pylist(items, schema=ITEMS))
    for kind, found in parts.items():
        types = {str(table.schema.field(1).type) for table in found}
        if len(types) > 1:
            raise SluiceError(f"sets: embeddings of several widths: {', '.join(sorted(types))}; expected one model's")
        table = pa.concat_tables(found) if found else attempt.read(task.inputs["items"][0], kind)
        attempt.write(kind, table)
        if kind == "glances" and table.num_rows > FLAT_ROWS:
            with attempt.create(CELLS) as file:
                file.write(faiss.serialize_index(in_cells(matrix_of(table))).tobytes())
    counts: dict[str, int] = dict.fromkeys(task.payload["sets"], 0)
    for of, _ in numbers:
        counts[of] += 1
    for of, count in counts.items():
        if not count:
            raise SluiceError(f"sets: {of} has no item: its tables and tars are empty")
    attempt.note(items=counts)


_opened: OrderedDict[str, Index] = OrderedDict()


def opened(attempt: Attempt, record: Record) -> Index:
    """The index of a record, loaded once per worker."""
    key = f"{attempt.store.root}/{record.work_key}"
    index = _opened.pop(key, None) or Index(attempt, record)
    _opened[key] = index
    while len(_opened) > KEPT:
        _opened.popitem(last=False)
    return index


def sight_of(item: Known, bases: Mapping[str, str]) -> Sight:
    """The pixels of an item. Raises `SluiceError` where its file is not what it was."""
    assert item.file is not None
    return _sight(f"{bases[item.of]}{item.file}", item.offset, item.nbytes, item.sha256)


@lru_cache(SIGHTS)
def _sight(path: str, offset: int | None, nbytes: int | None, sha: str | None) -> Sight:
    with fsspec.open(path, "rb") as file:
        if offset is not None:
            file.seek(offset)
        data = file.read() if offset is None else file.read(nbytes)
    if sha256(data).hexdigest() != sha:
        raise SluiceError(f"sets: {path} changed since its items were read; run again")
    return sight(plain(data))


def bases_of(files: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """What the names of the files in each set are to be put behind."""
    return {of: found[0].path.removesuffix(found[0].name) for of, found in files.items()}
