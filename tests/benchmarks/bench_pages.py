"""A hundred thousand pages of the small local web on this machine: memory stays flat, nothing hangs, every row ends.

`python -m tests.benchmarks.bench_pages 2000 100000` says how many pages are few and how many are many.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.store import Store
from tests.benchmarks.figures import Figure
from tests.benchmarks.peaks import peaks

FEW, MANY = 5_000, 100_000
PORT = 18_081
CEILING_MIB = 1024
TEXT = """
dag: pages
nodes:
  urls: {steps: [{stages.ingest.UrlTables: {files: FILES, caption: alt, rows_per_part: 2500}}]}
  pool:
    from: urls
    steps:
      - stages.download.Download:
          side: 256
          timeout_s: 5
          allow_private_hosts: ["127.0.0.1:PORT", "localhost:PORT"]
"""


@dataclass(frozen=True)
class Seen:
    """What a run over the web left, and what it took."""

    peaks: dict[str, float]
    seconds: float
    rows: int
    """Of the ingested table: what was refused there has no row to download."""
    statuses: dict[str, int]


def measure() -> list[Figure]:
    few, many = run(FEW), run(MANY)
    ends = sum(many.statuses.values())
    figures = [
        Figure(f"rows of {MANY:,} pages that ended with a status", ends / many.rows, "of 1", at_least=1),
        Figure("rows that ended as success", many.statuses["success"] / many.rows, "of 1"),
        Figure("pages a second, the web beside it", MANY / many.seconds, "/s", note=f"{many.seconds:,.0f} s in all"),
    ]
    for role in ("driver", "worker", "decoder"):
        note = "the largest of them" if role != "driver" else ""
        figures += [
            Figure(f"{role}, {FEW:,} pages", few.peaks[role], "MiB", note=note),
            Figure(f"{role}, {MANY:,} pages", many.peaks[role], "MiB", at_most=CEILING_MIB),
            Figure(f"growth of a {role}", many.peaks[role] / few.peaks[role], "×", at_most=1.5),
        ]
    return figures


def run(pages: int) -> Seen:
    """Ingest and download that many pages, the web in a process beside it."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        folder = Path(name)
        dag = folder / "pages.yaml"
        dag.write_text(TEXT.replace("FILES", str(folder / "web/urls.parquet")).replace("PORT", str(PORT)))
        web = [sys.executable, "-m", "infra.miniweb", str(folder / "web"), "--pages", str(pages), "--port", str(PORT)]
        sluice = [sys.executable, "-m", "pipeline.cli", "run", str(dag), str(folder / "root")]
        started = time.monotonic()
        found = peaks([*web, "--", *sluice], role, folder / "said")
        seconds = time.monotonic() - started
        store = Store(str(folder / "root"))
        urls, pool = store.newest("urls"), store.newest("pool")
        assert urls is not None
        assert pool is not None
        rows = sum(record.rows["image"] for record in urls.records)
        return Seen(found, seconds, rows, dict(pool.statuses))


def role(pid: int, command: str) -> str | None:
    """The command of the benchmark is the web; what it starts is the driver."""
    if command.startswith("ray::Worker"):
        return "worker"
    if "download/decode.py" in command:
        return "decoder"
    return "driver" if "pipeline.cli run" in command and "infra.miniweb" not in command else None


def main(arguments: Sequence[str]) -> None:
    for pages in map(int, arguments):
        seen = run(pages)
        print(pages, "pages,", seen.rows, "rows,", f"{seen.seconds:.0f} s,", seen.statuses)
        print(
            {role: f"{mib:.0f} MiB" for role, mib in seen.peaks.items()}, f"load {os.getloadavg()[0]:.1f}", flush=True
        )


if __name__ == "__main__":
    main(sys.argv[1:])
