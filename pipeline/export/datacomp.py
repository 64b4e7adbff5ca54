"""DataComp's layout (Gadre et al. 2023, github.com/mlfoundations/datacomp).

metadata/00000000.parquet …   `uid`, `url`, `text`, `original_width/height`, `sha256`, `clip_*_similarity_score`
subset.npy                    the uids, sorted, as pairs of unsigned 64-bit integers: what `resharder.py -s` takes
sizes.json                    samples per shard: what `resharder.py --shard-table` and open_clip read

A row per image: DataComp's uid names an image with one text. It is the text of the shards, where there are shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SluiceError
from pipeline.export.options import Options
from pipeline.export.selection import Kept, Selection
from pipeline.export.target import Target
from pipeline.stage import Column

UID = np.dtype("u8,u8")
"""The two halves of a uid, big end first."""
REQUIRED = {"url": "url", "text": "caption"}
WANTED = ("original_width", "original_height", "sha256")
SCORE = ("clip_", "_similarity_score")


def write(selection: Selection, target: Target, options: Options) -> list[str]:
    """Metadata, subset and sizes; remarks on columns that DataComp has and the run has not."""
    columns, missing = _columns(selection, options)
    with selection.kept(columns, target.spool_folder, one_per_image=True) as kept:
        total = kept.count()
        if not total:
            raise SluiceError(f"{selection.node} keeps nothing, so there is nothing to export; loosen its rules")
        write_tables(kept, total, target, "metadata/{:08d}.parquet", options.rows_per_file)
        with target.create("subset.npy") as sink:
            header = {"descr": UID.descr, "fortran_order": False, "shape": (total,)}
            np.lib.format.write_array_header_1_0(sink, header)
            for table in kept.batches(["uid"]):
                sink.write(halves(table.column("uid")).tobytes())
    remarks = [f"DataComp has {name!r}, this run has not; --column {name}=NODE.COLUMN names one" for name in missing]
    sizes = {file.path.rpartition("/")[2]: record.rows["samples"] for record, file in selection.shards()}
    if sizes:
        target.write("sizes.json", json.dumps(sizes, indent=1).encode())
    else:
        remarks.append("the run made no shards of this selection, so there is no sizes.json")
    return remarks


def _columns(selection: Selection, options: Options) -> tuple[dict[str, Column], list[str]]:
    """Name in the export -> column, and the names of DataComp's that nothing was found for."""
    remedy = "the pool and the captions must be what the selection was made from"
    columns = {label: selection.demand(options.columns.get(label, name), remedy) for label, name in REQUIRED.items()}
    missing = []
    for label in WANTED:
        found = selection.column(label)
        if found is None:
            missing.append(label)
        else:
            columns[label] = found
    columns |= {column.name: column for column in selection.like(*SCORE)}
    for label, asked in options.columns.items():
        columns[label] = selection.demand(asked, "name another with --column")
    if not any(label.startswith(SCORE[0]) and label.endswith(SCORE[1]) for label in columns):
        missing.append("clip_l14_similarity_score")
    return columns, missing


def write_tables(kept: Kept, total: int, target: Target, path: str, rows_per_file: int) -> None:
    """All columns of the rows, as Parquet files of so many rows each but the last."""
    rows = in_pieces(kept.batches(["uid", *kept.columns]), rows_per_file)
    for number in range(-(-total // rows_per_file)):
        with target.create(path.format(number)) as sink:
            writer: pq.ParquetWriter | None = None
            for table in until_full(rows, rows_per_file):
                writer = writer or pq.ParquetWriter(sink, table.schema, compression="zstd")
                writer.write_table(table)
            assert writer is not None
            writer.close()


def in_pieces(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables that never go over a multiple of `size`."""
    at = 0
    for table in tables:
        while table.num_rows:
            piece = table.slice(0, size - at % size)
            yield piece
            at += piece.num_rows
            table = table.slice(piece.num_rows)


def until_full(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    count = 0
    while count < size and (table := next(tables, None)) is not None:
        yield table
        count += table.num_rows


def halves(uids: pa.ChunkedArray) -> np.ndarray:
    """`UID` (rows,) of uids in hex."""
    data = bytes.fromhex("".join(uids.to_pylist()))
    return np.frombuffer(data, dtype=">u8").astype("<u8").view(UID)
