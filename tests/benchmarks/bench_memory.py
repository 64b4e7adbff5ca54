"""Peak memory of the driver and of the workers at 2,000 and at 200,000 rows: parts bound it, not the input.

What a worker holds at once fills up first: an exchange writes after 524,288 rows or 256 MiB, and a window over all
rows may take DuckDB's share before it spills. So workers have a ceiling, which a million rows of ingest must not pass.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.figures import Figure
from tests.benchmarks.peaks import peaks

FEW, MANY, INGESTED = 2_000, 200_000, 1_000_000
CEILING_MIB = 768
TEXT = """
dag: memory
nodes:
  urls: {steps: [{stages.ingest.UrlTables: {files: FILES, rows_per_part: 2000}}]}
  pool: {from: urls, steps: [{tests.benchmarks.pictures.Pictures: {side: 32}}]}
  measures: {from: pool, steps: [stages.image_quality.ImageQuality, stages.text_quality.TextQuality]}
  kept:
    from: [pool, measures]
    steps:
      - stages.select.Select:
          rules:
            - downloaded: status = 'success'
            - not_blank: contrast >= 0.02
            - worded: words >= 3
            - first_of_its_kind: uid = first_value(uid) OVER (PARTITION BY caption ORDER BY uid)
"""


def measure() -> list[Figure]:
    few, many, ingested = peaks_of_a_run(FEW), peaks_of_a_run(MANY), peaks_of_a_run(INGESTED, "--until", "urls")
    whole = "ingest, a pool of tiny JPEGs, measures, a selection with a window"
    return [
        Figure(f"driver, {FEW:,} rows", few["driver"], "MiB", note=whole),
        Figure(f"driver, {MANY:,} rows", many["driver"], "MiB"),
        Figure("the driver's growth with 100 times the rows", many["driver"] / few["driver"], "×", at_most=1.1),
        Figure(f"worker, {FEW:,} rows", few["worker"], "MiB", note="the largest of them"),
        Figure(f"worker, {MANY:,} rows", many["worker"], "MiB", at_most=CEILING_MIB),
        Figure("a worker's growth with 100 times the rows", many["worker"] / few["worker"], "×", at_most=1.5),
        Figure(f"worker, ingest of {INGESTED:,} rows in one file", ingested["worker"], "MiB", at_most=CEILING_MIB),
    ]


def peaks_of_a_run(rows: int, *more: str) -> dict[str, float]:
    """MiB of resident memory by role, of the largest process."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        folder = Path(name)
        write_urls(folder / "urls.parquet", rows)
        dag = folder / "memory.yaml"
        dag.write_text(TEXT.replace("FILES", str(folder / "urls.parquet")))
        command = [sys.executable, "-m", "pipeline.cli", "run", str(dag), str(folder / "root"), *more]
        return peaks(command, role, folder / "said")


def role(pid: int, command: str) -> str | None:
    if command.startswith("ray::Worker"):
        return "worker"
    return "driver" if "pipeline.cli run" in command else None


def write_urls(path: Path, rows: int) -> None:
    """Row groups of 10,000, as common crawls have them or smaller; a caption in a hundred is a repeat."""
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 10_000):
            numbers = range(start, min(start + 10_000, rows))
            urls = [f"https://host{n % 997}.example/pictures/{n:09d}.jpg" for n in numbers]
            captions = [f"a picture of thing number {n - n % 100 if n % 100 == 1 else n} on a table" for n in numbers]
            writer.write_table(pa.table([urls, captions], schema=schema))
