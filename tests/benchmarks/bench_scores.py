"""Can captions of another image be told by a score? The small local web, 20,000 pages, and a scorer of other seeds.

    python -m tests.benchmarks.bench_scores 2000     # pages: printed, not kept

The pages are downloaded, embedded and scored as a DAG does it; the answer key is read afterwards. The scorer is trained
once by the trainer of this repo (`stand_in`, some twenty minutes of two cores) and kept in the folder for temporary
files.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from infra.miniweb.kinds import FACTS, Family, Kind
from pipeline import Catalog
from tests.benchmarks.figures import Figure
from tests.benchmarks.stand_in.training import trained

PAGES, SEED = 20_000, 17
PORT = 18_082
TEXT = """
dag: scores
nodes:
  urls: {steps: [{stages.ingest.UrlTables: {files: FILES, caption: alt, rows_per_part: 2500}}]}
  pool:
    from: urls
    steps:
      - stages.download.Download: {side: 256, timeout_s: 5, allow_private_hosts: ["127.0.0.1:PORT", "localhost:PORT"]}
  scores:
    from: pool
    steps:
      - stages.embed.ImageEmbeddings: {weights: WEIGHTS}
      - stages.embed.TextEmbeddings: {weights: WEIGHTS}
      - stages.score.ClipScore
"""
LOST = 0.05
"""Of the clean pairs, that a threshold may cost."""
CAPTIONS = tuple(kind for kind, facts in FACTS.items() if facts.family is Family.CAPTION and kind is not Kind.MISMATCH)
Scores = npt.NDArray[np.float64]


def measure(pages: int = PAGES) -> list[Figure]:
    """Every kind of bad caption against the clean pairs, mismatches also by what is wrong with them."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        scores = by_kind(scored(Path(name), trained(), pages))
    clean = scores["clean"]
    mismatches = [np.concatenate([found for kind, found in scores.items() if kind.startswith("mismatch")])]
    figures = [compared("mismatches of every kind", mismatches[0], clean, 0.95)]
    for kind, found in sorted(scores.items()):
        if kind != "clean":
            figures.append(compared(kind, found, clean))
    return figures


def scored(folder: Path, weights: Path, pages: int) -> pa.Table:
    """kind, changed, clip_score of every pair with an image that is sound, or whose caption alone is not."""
    dag, key, root = folder / "scores.yaml", folder / "key.parquet", folder / "root"
    files = str(folder / "web/urls.parquet")
    dag.write_text(TEXT.replace("FILES", files).replace("PORT", str(PORT)).replace("WEIGHTS", str(weights)))
    web = ["infra.miniweb", str(folder / "web"), "--pages", str(pages), "--seed", str(SEED), "--port", str(PORT)]
    sluice = [sys.executable, "-m", "pipeline.cli", "run", str(dag), str(root)]
    with open(folder / "said", "w") as said:
        subprocess.run([sys.executable, "-m", *web, "--key", str(key), "--", *sluice], check=True, stderr=said)
    with Catalog(str(root)) as catalog:
        pairs = catalog.sql("SELECT url, caption, clip_score FROM samples WHERE clip_score IS NOT NULL")
    connection = duckdb.connect()
    connection.register("key", pq.read_table(key, columns=["url", "caption", "kind", "changed"]))
    connection.register("pairs", pairs)
    return connection.sql("SELECT kind, changed, clip_score FROM key JOIN pairs USING (url, caption)").to_arrow_table()


def by_kind(pairs: pa.Table) -> Mapping[str, Scores]:
    """Scores of clean pairs and of those with a bad caption, mismatches by what is wrong with them."""
    found: dict[str, list[float]] = {}
    for pair in pairs.to_pylist():
        kind, changed = Kind(pair["kind"]), pair["changed"]
        if kind in (Kind.CLEAN, Kind.MISMATCH, *CAPTIONS):
            name = f"mismatch: {changed}" if kind is Kind.MISMATCH else kind.value
            found.setdefault(name, []).append(pair["clip_score"])
    return {name: np.array(scores) for name, scores in found.items()}


def compared(kind: str, bad: Scores, clean: Scores, at_least: float | None = None) -> Figure:
    """AUROC, and what a threshold on the score finds that costs `LOST` of the clean pairs."""
    caught = (bad < np.quantile(clean, LOST)).mean()
    note = f"{len(bad):,} against {len(clean):,} clean pairs; {caught:.0%} are below all but {LOST:.0%} of these"
    return Figure(f"{kind}: AUROC", auroc(clean, bad), "", at_least=at_least, note=note)


def auroc(above: Scores, below: Scores) -> float:
    """The chance that one of `above` is higher than one of `below`; ties count half."""
    ordered = np.sort(below)
    lower, upper = (np.searchsorted(ordered, above, side) for side in ("left", "right"))
    return float((lower + upper).mean() / 2 / len(below))


if __name__ == "__main__":
    for figure in measure(int(sys.argv[1])):
        print(f"{figure.name:<40}{figure.shown:>8}  {figure.goal:<8}{figure.note}")
