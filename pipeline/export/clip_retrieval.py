"""clip-retrieval's layout (github.com/rom1504/clip-retrieval): embeddings and metadata, aligned by row.

img_emb/img_emb_0.npy          (rows, width) float16 or float32
text_emb/text_emb_0.npy
metadata/metadata_0.parquet    `image_path` (the sample's key in the shards: the uid), `caption`, `url`, and more

Its index and its server read the files in the order of their names; so numbers have as many digits as the last one.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SluiceError
from pipeline.export.datacomp import in_pieces, until_full
from pipeline.export.options import Options
from pipeline.export.selection import Kept, Selection
from pipeline.export.target import Target
from pipeline.stage import Column

EMBEDDINGS = {"img_emb": "image_embedding", "text_emb": "text_embedding"}
BESIDE = ("url", "original_width", "original_height", "width", "height", "sha256")
"""Metadata that is given where the run has it."""


def write(selection: Selection, target: Target, options: Options) -> list[str]:
    """Embeddings of every kept pair that has them; remarks on those that have none."""
    remedy = "add stages.embed's stages to the DAG, or name a column of vectors with --column"
    columns = _columns(options)
    vectors = {
        folder: selection.demand(columns.get(folder, column), f"{remedy} {folder}=[NODE.]COLUMN")
        for folder, column in EMBEDDINGS.items()
    }
    for folder, column in vectors.items():
        if not (pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type)):
            raise SluiceError(f"{column.node}.{column.name} is {column.type}; {folder} needs lists of floats")
    beside = {name: found for name in BESIDE if (found := selection.column(name)) is not None}
    asked = {name: selection.demand(c, remedy) for name, c in columns.items() if name not in EMBEDDINGS}
    captions = {"caption": selection.demand("caption", remedy)}
    whole = " AND ".join(f"{folder} IS NOT NULL" for folder in vectors)
    with selection.kept({**captions, **beside, **asked, **vectors}, target.spool_folder) as kept:
        total = kept.count(whole)
        if not total:
            raise SluiceError(f"no pair that {selection.node} keeps has both embeddings; embed images and captions")
        left_out = kept.count() - total
        _write(kept, vectors, whole, total, target, options.rows_per_file)
    return [f"{left_out:,} kept pairs lack an embedding and were left out"] if left_out else []


def _columns(options: Options) -> dict[str, str]:
    """What was asked for; `image_embedding=` and `text_embedding=` mean the folders of these."""
    folders = {column: folder for folder, column in EMBEDDINGS.items()}
    for column, folder in folders.items():
        if {column, folder} <= options.columns.keys():
            raise SluiceError(f"--column {column}=… and {folder}=… are one; leave one of them out")
    return {folders.get(name, name): asked for name, asked in options.columns.items()}


def _write(kept: Kept, vectors: dict[str, Column], whole: str, total: int, target: Target, rows_per_file: int) -> None:
    labels = ["uid", *kept.columns]
    rows = in_pieces(kept.batches(labels, whole), rows_per_file)
    files = -(-total // rows_per_file)
    digits = len(str(files - 1))
    for number in range(files):
        size = min(rows_per_file, total - number * rows_per_file)
        with ExitStack() as open_files:
            sinks = {
                folder: open_files.enter_context(target.create(f"{folder}/{folder}_{number:0{digits}d}.npy"))
                for folder in vectors
            }
            metadata = open_files.enter_context(target.create(f"metadata/metadata_{number:0{digits}d}.parquet"))
            _write_file(until_full(rows, rows_per_file), size, vectors, sinks, metadata)


def _write_file(tables: Any, size: int, vectors: dict[str, Column], sinks: dict[str, BinaryIO], metadata: Any) -> None:
    writer: pq.ParquetWriter | None = None
    for table in tables:
        for folder, column in vectors.items():
            matrix_nd = _matrix(table.column(folder), column)
            if writer is None:
                header = {"descr": matrix_nd.dtype.str, "fortran_order": False, "shape": (size, matrix_nd.shape[1])}
                np.lib.format.write_array_header_1_0(sinks[folder], header)
            sinks[folder].write(matrix_nd.tobytes())
        facts = table.drop_columns(list(vectors))
        facts = facts.rename_columns(["image_path" if name == "uid" else name for name in facts.column_names])
        writer = writer or pq.ParquetWriter(metadata, facts.schema, compression="zstd")
        writer.write_table(facts)
    assert writer is not None
    writer.close()


def _matrix(values: pa.ChunkedArray, column: Column) -> np.ndarray:
    """(rows, width) in the column's own precision: DuckDB hands float16 on as float32, which loses nothing."""
    flat = values.combine_chunks().flatten()
    kind = np.float16 if pa.types.is_float16(column.type.value_type) else np.float32
    return np.asarray(flat).astype(kind).reshape(len(values), -1)
