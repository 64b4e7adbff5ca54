"""Images of an evaluation set among 20,000 pages of the small local web: how many are found, and what is taken for one.

`python -m tests.benchmarks.bench_leaks 2000` says how many pages; nothing was tuned on the seed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.miniweb.kinds import Kind
from pipeline import Catalog
from tests.benchmarks.bench_copies import PAGES, POOL, PORT, SEED
from tests.benchmarks.figures import Figure

LEAKS = """
  leaks:
    from: pool
    steps: [{stages.decontaminate.Decontaminate: {sets: {held_out: EVALUATION}}}]
"""
KINDS = (Kind.EXACT_LEAK, Kind.ALTERED_LEAK)


def measure(pages: int = PAGES) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        folder = Path(name)
        seconds = run(folder, pages)
        with Catalog(str(folder / "root")) as catalog:
            rows = catalog.sql("SELECT DISTINCT url, leaks_from FROM samples WHERE status = 'success'")
        return figures_of(pq.read_table(folder / "key/key.parquet"), rows, seconds)


def run(folder: Path, pages: int) -> float:
    """Serve, download and look for leaks; the seconds of the last, with the start of a process."""
    text = POOL.replace("FILES", str(folder / "web/urls.parquet")).replace("PORT", str(PORT))
    (folder / "dag.yaml").write_text(text + LEAKS.replace("EVALUATION", str(folder / "evaluation/images")))
    sluice = [sys.executable, "-m", "pipeline.cli", "run", str(folder / "dag.yaml"), str(folder / "root")]
    web = [sys.executable, "-m", "infra.miniweb", str(folder / "web"), "--pages", str(pages), "--seed", str(SEED)]
    web += ["--port", str(PORT), "--evaluation", str(folder / "evaluation"), "--", *sluice, "--until", "pool"]
    with (folder / "said").open("wb") as said:
        done = subprocess.run(web, stdout=said, stderr=said)
        started = time.monotonic()
        if done.returncode == 0:
            done = subprocess.run(sluice, stdout=said, stderr=said)
    if done.returncode:
        sys.exit((folder / "said").read_text()[-3000:])
    return time.monotonic() - started


def figures_of(key: pa.Table, rows: pa.Table, seconds: float) -> list[Figure]:
    """A figure per kind: found is what names the very image that leaked."""
    named = dict(zip(rows["url"].to_pylist(), rows["leaks_from"].to_pylist(), strict=True))
    pages = [page for page in key.to_pylist() if page["url"] in named and page["kind"] != Kind.REPEATED_URL]
    leaked = [page for page in pages if page["leaked"] is not None]
    found = {page["url"] for page in leaked if named[page["url"]] == f"held_out/{page['leaked']:04d}.jpg"}
    others = [page for page in pages if page["leaked"] is None]
    wrong = sum(named[page["url"]] is not None for page in others)
    share, note = len(found) / max(1, len(leaked)), f"of {len(leaked)}, by the name of the image"
    figures = [Figure("leaks found, all kinds", share, "of 1", at_least=0.99, note=note)]
    for kind in KINDS:
        of_kind = [page["url"] for page in leaked if page["kind"] == kind]
        share = len(found & set(of_kind)) / max(1, len(of_kind))
        figures.append(Figure(f"{kind}: found", share, "of 1", note=f"of {len(of_kind)}"))
    figures.append(Figure("other images taken for leaks", wrong, "", note=f"of {len(others):,}"))
    figures.append(Figure("embedding, search, comparison", seconds, "s", note=f"{len(named):,} images"))
    return figures


if __name__ == "__main__":
    for figure in measure(int(sys.argv[1])):
        print(f"{figure.name:<40}{figure.shown:>8}  {figure.goal:<8}{figure.note}")
