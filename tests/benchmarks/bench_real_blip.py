"""The bootstrapping of captions on real figures and photographs, with the DAG that is shipped: as it comes out.

    python -m tests.benchmarks.bench_real_blip

Of the images with human captions a tenth, chosen by their names, is held out for retrieval; of the others a fifth is
the trusted set, and the rest the pool, in which three of ten captions are another image's. 900 images teach no model to
see or to write; what is shown is that every step of the loop works on real input, and what comes out.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.miniweb import Folder
from pipeline import Catalog, Dag, run
from tests.benchmarks.bench_real_clip import SHARED, split, write_set
from tests.benchmarks.figures import Figure

TRUSTED = 5
"""One image in so many."""
WRONG = 0.3
"""Of the pool's captions."""
KEPT = """SELECT source, count(*) FILTER (b.kept) AS kept, count(*) AS told
FROM "both" AS b JOIN captions USING (uid, caption_id) GROUP BY ALL ORDER BY ALL DESC"""
METRICS = ("image_retrieval_recall@5", "itm_accuracy", "cider")
SAMPLES = {"blip": 9600, "both_blip": 9600, "captioner": 6400, "filter": 6400}


def measure() -> list[Figure]:
    """What the filter tells apart, and every arm's recall, with its chance in the notes."""
    if not SHARED.is_dir():
        return [Figure("bootstrapped captions of real images", None, "%", note=f"not run: no {SHARED}")]
    with tempfile.TemporaryDirectory(prefix="sluice-real-") as name, Folder(SHARED) as web:
        folder = Path(name)
        held, others = split()
        write_set(folder / "sets" / "retrieval", held)
        pool = [entry for number, entry in enumerate(others) if number % TRUSTED]
        wrong = write_urls(folder / "pool.parquet", web, pool, WRONG)
        write_urls(folder / "trusted.parquet", web, others[::TRUSTED], 0)
        port = re.findall(r":(\d+)", web.url("x"))[0]
        hosts = f'allow_private_hosts=["127.0.0.1:{port}"]'
        settings = [
            f"urls.files={folder}/pool.parquet",
            f"trusted_urls.files={folder}/trusted.parquet",
            *(f"{node}.{hosts}" for node in ("pool", "trusted_pool")),
            *(f"{node}.sets={{held_out: {folder}/sets/retrieval/test}}" for node in ("leaks", "trusted_leaks")),
            *(f"{node}.sets={{held_out: {folder}/sets}}" for node in ("comparison", "writers")),
            *(f"{node}.samples={samples}" for node, samples in SAMPLES.items()),
        ]
        started = time.perf_counter()
        run(Dag.load("blip_bootstrap", settings), f"{folder}/root")
        took_s = time.perf_counter() - started
        with Catalog(f"{folder}/root") as catalog:
            scored = catalog.sql("SELECT url, caption, source, itm_score, clip_score FROM samples").to_pylist()
            kept = catalog.sql(KEPT).to_pylist()
            figures = [figure for table in ("comparison", "writers") for figure in shown(catalog, table)]
    told = ", ".join(f"{row['kept']} of {row['told']} by {row['source']}" for row in kept)
    web_told = [row for row in scored if row["source"] == "web" and row["itm_score"] is not None]
    apart = [
        Figure(f"{score}: a wrong caption below a right one", 100 * area(web_told, score, wrong), "%")
        for score in ("itm_score", "clip_score")
    ]
    written = [row["caption"] for row in scored if row["source"] == "captioner"]
    note = f"kept for both: {told}; written: {len(set(written))} different of {len(written)}, such as {written[0]!r}"
    return [Figure("the whole loop", took_s, "s", note=note), *apart, *figures]


def write_urls(path: Path, web: Folder, entries: Sequence[dict[str, Any]], share: float) -> set[tuple[str, str]]:
    """A table of pairs; of that share the caption is another image's: these."""
    dice = Random(0)
    rows, wrong = [], set()
    for number, entry in enumerate(entries):
        url = web.url(entry["path"])
        for caption in entry["captions"]:
            if dice.random() < share:
                other = (number + dice.randrange(1, len(entries))) % len(entries)
                caption = dice.choice(entries[other]["captions"])
                wrong.add((url, caption))
            rows.append({"url": url, "alt": caption})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return wrong


def area(rows: Sequence[dict[str, Any]], score: str, wrong: set[tuple[str, str]]) -> float:
    """The chance that a wrong caption scores below a right one."""
    ranked = [(row["url"], row["caption"]) in wrong for row in sorted(rows, key=lambda row: row[score])]
    right_below, below = 0, 0
    for is_wrong in ranked:
        right_below += not is_wrong
        below += right_below * is_wrong
    count = sum(ranked)
    return 1 - below / (count * (len(ranked) - count))


def shown(catalog: Catalog, table: str) -> list[Figure]:
    figures = []
    for row in catalog.sql(f"FROM {table} ORDER BY ALL").to_pylist():
        if row["metric"] in METRICS:
            chance = "" if row["chance"] is None else f"; chance {100 * row['chance']:.1f}"
            note = f"± {100 * (row['standard_error'] or 0):.1f}{chance}"
            figures.append(
                Figure(f"{row['model']}: {row['task']}, {row['metric']}", 100 * row["value"], "%", note=note)
            )
    return figures


if __name__ == "__main__":
    for figure in measure(*sys.argv[1:]):
        print(figure.name, figure.shown, figure.unit, figure.note, sep=" | ")
