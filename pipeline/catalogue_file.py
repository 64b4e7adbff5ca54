"""A run as one DuckDB file that stands alone, to be asked by people who have no rights to the store.

    write_catalogue("runs/demo", "demo.duckdb")

Columns of vectors (embeddings) are left out. `pipeline/console.py` asks such a file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa

from pipeline.catalog import Catalog
from pipeline.errors import SluiceError
from pipeline.judge import BATCH_ROWS, MEMORY, name, text

VIEWS = "SELECT table_name AS view FROM information_schema.tables WHERE table_schema IN (?, 'main') ORDER BY ALL"
FACTS = "about"
"""The table that says which run the file is of."""


def write_catalogue(
    root: str, out: str, run: str | None = None, progress: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, int]:
    """Write every view of a run as a table; rows by table. Streams, whatever the number of rows.

    `progress` gets the view, its number and how many there are. Raises `SluiceError` where `out` exists, and for a run
    that is not there.
    """
    target = Path(out)
    if target.exists():
        raise SluiceError(f"--out {out} exists; name a file that does not")
    if not target.absolute().parent.is_dir():
        raise SluiceError(f"--out {out}: there is no such folder; name a file in a folder that exists")
    beside = target.absolute().parent
    with Catalog(root, run) as catalog, tempfile.TemporaryDirectory(prefix=".catalog-", dir=beside) as folder:
        made = Path(folder) / "catalog.duckdb"
        with duckdb.connect(str(made)) as connection:
            connection.execute(f"SET memory_limit = '{MEMORY}'")
            connection.execute(f"SET temp_directory = {text(folder)}")
            connection.execute("SET python_enable_replacements = false")
            connection.execute("SET enable_progress_bar = false")
            views = [row["view"] for row in catalog.sql(VIEWS, [catalog.run.dag]).to_pylist()]
            rows = {}
            for place, view in enumerate(views, 1):
                rows[view] = _copied(catalog, view, connection)
                progress(view, place, len(views))
            connection.execute(f"CREATE TABLE {FACTS} AS SELECT ? AS run, ? AS dag", [catalog.run.id, catalog.run.dag])
        try:
            os.link(made, target)  # whole, or not at all
        except FileExistsError:
            raise SluiceError(f"--out {out} exists; name a file that does not") from None
    return rows


def _copied(catalog: Catalog, view: str, connection: duckdb.DuckDBPyConnection) -> int:
    """Stream a view into a table of the same name, without its vectors."""
    relation = catalog.relation(f"SELECT * FROM {name(view)} LIMIT 0")  # noqa: S608 - quoted
    assert relation is not None
    schema = relation.to_arrow_table().schema
    kept = [field.name for field in schema if not _is_vector(field.type)]
    relation = catalog.relation(f"SELECT {', '.join(map(name, kept))} FROM {name(view)}")  # noqa: S608 - quoted
    assert relation is not None
    reader = relation.to_arrow_reader(BATCH_ROWS)
    connection.register("arriving", pa.RecordBatchReader.from_batches(reader.schema, iter(reader)))
    try:
        connection.execute(f"CREATE TABLE {name(view)} AS SELECT * FROM arriving")  # noqa: S608 - quoted
    finally:
        connection.unregister("arriving")
    counted = connection.execute(f"SELECT count(*) FROM {name(view)}").fetchall()  # noqa: S608 - quoted
    return int(counted[0][0])


def _is_vector(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(listed and pa.types.is_floating(kind.value_type))
