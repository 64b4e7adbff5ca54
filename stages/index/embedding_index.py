"""An index of a column of embeddings, written as files that FAISS reads.

    index:
      from: scores
      steps: [{stages.index.EmbeddingIndex: {embedding: image_embedding}}]

`sluice neighbours ROOT --image FILE` asks it. So does any other program: `faiss.read_index("….index.faiss")` gives row
numbers by inner product, and row n of the Parquet file beside it, `….ids.parquet`, has the uid.
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from math import isqrt
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.attempt import Attempt
from pipeline.dag import resolve
from pipeline.errors import SluiceError
from pipeline.records import ABOUT, Generation, Record
from pipeline.stage import Column, Device, Job, Promise, Task, Work
from stages.kit import gpu
from stages.kit.neighbours import Cells, unit
from stages.kit.vectors import matrix, usable, vector_type, vectors

FLAT_ROWS = 200_000
"""Up to so many images every query is compared with all of them: 0.1 s for 512 numbers each."""
SAMPLED_PER_CELL = 64
MOST_SAMPLED = 1_000_000
"""Embeddings from which the cells are made; 2 GiB where they have 512 numbers."""
ROWS_AT_ONCE = 50_000
"""Rows of which one task takes its share of the sample, about."""
REPLACING = "-"
"""Among the inputs of a task, where nodes have names: the records whose uids no longer count in its parts."""

IDS = pa.schema([("uid", pa.string()), ("row", pa.int64()), ("vectors", pa.string())])
"""Row by row as in the index beside it; `vectors` is a hash of all embeddings in that index."""


class EmbeddingIndex(Job):
    """Write FAISS indexes of all images that have an embedding, by cosine; float16, as the column has them.

    Every file holds neighbouring parts of the pool, so that later input adds files. The files of an inverted index
    (`ivf`) share their cells: k-means on a sample, as many as the root of the number of images.
    """

    promise: ClassVar[Promise] = "numeric"
    seeded: ClassVar[bool] = True

    embedding: str = "image_embedding"
    """The column, of any model or descriptor: `column` or `node.column`."""
    kind: Literal["auto", "flat", "ivf"] = "auto"
    """`flat` compares a query with everything, `ivf` with the cells nearest to it. `auto` takes `flat` for up to
    200,000 images. New input moves the cells of `ivf`, and then all its files are written anew."""
    rows_per_file: int = Field(default=1_000_000, ge=1)
    """Images per file, about: a task has their embeddings in memory, 1 GiB for 512 numbers each."""

    def needs(self) -> frozenset[str]:
        return frozenset({self.embedding})

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` for a column of another kind than embeddings."""
        found = resolve(self.embedding, inputs)
        fixed = pa.types.is_fixed_size_list(found.type) and pa.types.is_floating(found.type.value_type)
        if not fixed or found.grain != "image":
            raise SluiceError(
                f"embedding: {self.embedding!r} is {found.type} of {found.grain}s; expected lists of floats of images, "
                "all of one length"
            )

    def assemble(self, work: Work) -> list[Record]:
        column = resolve(self.embedding, work.columns)
        generation = work.inputs[column.node]
        rows = sum(record.rows.get("image", 0) for record in generation.records)
        about: dict[str, Any] = {"embedding": f"{column.node}.{column.name}", "kind": "flat"}
        trained: tuple[Record, ...] = ()
        if self.kind == "ivf" or (self.kind == "auto" and rows > FLAT_ROWS):
            trained = (self._trained(work, column, generation, rows),)
            about |= {"kind": "ivf", "cells": trained[0].notes["cells"]}
        hints = {"column": column, "about": about}
        tasks = [
            Task(f"{number:05d}", {}, {**inputs, "trained": trained}, rows=count, hints=hints)
            for number, (inputs, count) in enumerate(_groups(column.node, generation, self.rows_per_file))
        ]
        return work.map("files", tasks, self.build)

    def _trained(self, work: Work, column: Column, generation: Generation, rows: int) -> Record:
        cells = max(1, isqrt(rows))
        share = min(1.0, min(cells * SAMPLED_PER_CELL, MOST_SAMPLED) / max(1, rows))
        tasks = [
            Task(f"{number:05d}", {"share": share}, inputs, rows=count, hints={"column": column})
            for number, (inputs, count) in enumerate(_groups(column.node, generation, ROWS_AT_ONCE))
        ]
        samples = tuple(work.map("sample", tasks, self.sample, final=False))
        training = Task("all", {"cells": cells, "seed": work.seed}, {"samples": samples}, hints={"column": column})
        (trained,) = work.map("train", [training], self.train, final=False)
        return trained

    def sample(self, task: Task, attempt: Attempt) -> None:
        """The embeddings of the images whose uid, a hash, lies in the first share of all uids."""
        limit = f"{min(2**64 - 1, int(task.payload['share'] * 2**64)):016x}"
        schema = pa.schema([("uid", pa.string()), ("vector", vector_type(task.hints["column"].type.list_size))])
        tables = [schema.empty_table()]
        for uids, vectors_nd in _embeddings(task, attempt):
            chosen = np.asarray(pc.less_equal(pc.utf8_slice_codeunits(uids, 0, 16), limit), bool)
            rows_nd = vectors(vectors_nd[chosen], np.ones(int(chosen.sum()), bool))
            tables.append(pa.table([uids.filter(pa.array(chosen)), rows_nd], schema=schema))
        attempt.write("sample", pa.concat_tables(tables))

    def train(self, task: Task, attempt: Attempt) -> None:
        """An empty index with its cells; notes `cells`."""
        import faiss

        device = task.hints.get("device", Device())
        found = pa.concat_tables([attempt.read(record, "sample") for record in task.inputs["samples"]]).sort_by("uid")
        width = task.hints["column"].type.list_size
        vectors_nd = unit(matrix(found.column("vector"))) if found.num_rows else np.eye(1, width, dtype=np.float32)
        centres_kd = Cells.trained(vectors_nd, task.payload["cells"], task.payload["seed"], device).centres_kd
        coarse = faiss.IndexFlatIP(width)
        coarse.add(centres_kd)
        half, inner = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFScalarQuantizer(coarse, width, len(centres_kd), half, inner, False)
        index.train(vectors_nd)
        _write(index, attempt, "trained")
        attempt.note(cells=len(centres_kd))

    def build(self, task: Task, attempt: Attempt) -> None:
        """One file of the index, and the uids of its rows."""
        import faiss

        device = task.hints.get("device", Device())
        faiss.omp_set_num_threads(device.threads)
        index = gpu.placed(_empty(task, attempt), device)
        keys, hasher = [pa.array([], pa.string())], blake2b(digest_size=16)
        for uids, vectors_nd in _embeddings(task, attempt):
            index.add(unit(vectors_nd.astype(np.float32)))
            hasher.update(vectors_nd.tobytes())
            keys.append(uids)
        _write(gpu.fetched(index, device), attempt, "index")
        uids = pa.concat_arrays(keys)
        same = pa.DictionaryArray.from_arrays(np.zeros(len(uids), np.int8), [hasher.hexdigest()]).cast(pa.string())
        attempt.write("ids", pa.table([uids, np.arange(len(uids)), same], schema=IDS))
        attempt.count({"indexed": len(uids)})
        attempt.note(**{ABOUT: task.hints["about"]})


def _groups(node: str, generation: Generation, rows: int) -> Iterator[tuple[Mapping[str, tuple[Record, ...]], int]]:
    """The inputs of tasks, each of neighbouring parts that have about so many rows together, and how many they have.

    Parts that come later change no group but the last.
    """
    group: list[Record] = []
    count = 0
    for record in [*generation.records, None]:
        size = record.rows.get("image", 0) if record is not None else 0
        if group and (record is None or count + size > rows):
            replacing = {r.part: r for part in group for r in generation.superseding(part.part)}
            yield {node: tuple(group), REPLACING: tuple(replacing.values())}, count
            group, count = [], 0
        if record is not None:
            group.append(record)
            count += size


def _embeddings(task: Task, attempt: Attempt) -> Iterator[tuple[pa.Array, npt.NDArray[np.float16]]]:
    """The images of each part that count and have an embedding: uids and embeddings."""
    column: Column = task.hints["column"]
    for record in task.inputs[column.node]:
        table = attempt.store.read_table(record, "image", ["uid", column.name], {column.name: column.type})
        later = [other for other in task.inputs[REPLACING] if record.part in other.supersedes]
        for other in later:
            gone = attempt.read(other, "image", ["uid"]).column("uid").combine_chunks()
            table = table.filter(pc.invert(pc.is_in(table.column("uid"), value_set=gone)))
        there, vectors_nd = usable(table.column(column.name))
        if len(vectors_nd):
            yield table.column("uid").filter(pa.array(there)).combine_chunks(), vectors_nd


def _empty(task: Task, attempt: Attempt) -> Any:
    import faiss

    for record in task.inputs["trained"]:
        file = record.file("trained")
        assert file is not None
        return faiss.deserialize_index(np.frombuffer(attempt.store.read_file(record, file), np.uint8))
    width = task.hints["column"].type.list_size
    return faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def _write(index: Any, attempt: Attempt, kind: str) -> None:
    import faiss

    library: Any = faiss  # its types lack what its module takes from its compiled part
    with attempt.create(kind, f"{kind}.faiss") as sink:
        faiss.write_index(index, library.PyCallbackIOWriter(sink.write))
