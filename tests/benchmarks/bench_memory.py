"""Peak memory of the driver and of the workers at 2,000 and at 200,000 rows: parts bound it, not the input."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.figures import Figure
from tests.cluster import MARK, marked, marks_killed, processes_with

FEW, MANY = 2_000, 200_000
AT_MOST = 1.25
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
    peaks = {}
    for rows in (FEW, MANY):
        with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
            peaks[rows] = peaks_of_a_run(Path(folder), rows)
    figures = []
    for role in ("driver", "worker"):
        few, many = peaks[FEW][role], peaks[MANY][role]
        figures.append(Figure(f"peak of the {role} at {FEW:,} rows", few, "MiB"))
        figures.append(Figure(f"peak of the {role} at {MANY:,} rows", many, "MiB"))
        figures.append(Figure(f"growth of the {role} with 100 times the rows", many / few, "×", at_most=AT_MOST))
    return figures


def peaks_of_a_run(folder: Path, rows: int) -> dict[str, float]:
    """MiB of resident memory, per role the largest process; ingest, a pool of tiny JPEGs, measures, a selection."""
    table = folder / "urls.parquet"
    write_urls(table, rows)
    dag = folder / "memory.yaml"
    dag.write_text(TEXT.replace("FILES", str(table)))
    environment = marked(os.environ)
    peaks = {"driver": 0.0, "worker": 0.0}
    with marks_killed(environment[MARK]), (folder / "said").open("w") as said:
        command = [sys.executable, "-m", "pipeline.cli", "run", str(dag), str(folder / "root")]
        driver = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        while driver.poll() is None:
            for pid, name in processes_with(environment[MARK]).items():
                role = "driver" if pid == driver.pid else "worker" if name.startswith("ray::Worker") else ""
                if role:
                    peaks[role] = max(peaks[role], peak_of(pid))
            time.sleep(0.2)
    assert driver.returncode == 0, (folder / "said").read_text()
    return peaks


def peak_of(pid: int) -> float:
    """MiB; the kernel keeps the highest there ever was. 0 where the process just ended."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def write_urls(path: Path, rows: int) -> None:
    """Row groups of 10,000, as common crawls have them or smaller; a caption in a hundred is a repeat."""
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 10_000):
            numbers = range(start, min(start + 10_000, rows))
            urls = [f"https://host{n % 997}.example/pictures/{n:09d}.jpg" for n in numbers]
            captions = [f"a picture of thing number {n - n % 100 if n % 100 == 1 else n} on a table" for n in numbers]
            writer.write_table(pa.table([urls, captions], schema=schema))
