"""A tiny CLIP from nothing on real figures and photographs: the whole path from URLs to retrieval, as it comes out.

    python -m tests.benchmarks.bench_real_clip 25600      # samples seen

A tenth of the images, chosen by their names, is held out for retrieval, one caption each; nine tenths are downloaded
over loopback, selected by the quickstart's rules, sharded and trained on. 877 images teach no model to see; what is
shown is that every step of the path works on real input, and what comes out.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.miniweb import Folder
from pipeline import Catalog, Dag, run
from tests.benchmarks.figures import Figure

SAMPLES = 25_600
SHARED = Path(__file__).parents[3] / "shared" / "data"
SETS = ("openstax_ccby", "coco_cc_by")
HELD_OUT = 10
"""One image in so many."""
TEXT = """
dag: real
seed: 17
nodes:
  urls: {{steps: [{{stages.ingest.UrlTables: {{files: {folder}/urls.parquet, url: url, caption: alt}}}}]}}
  pool:
    from: urls
    steps: [{{stages.download.Download: {{side: 256, allow_private_hosts: ["127.0.0.1:{port}"]}}}}]
  measures: {{from: pool, steps: [stages.text_quality.TextQuality]}}
  kept:
    from: [pool, measures]
    steps: [{{stages.select.Select: {{rules: [{{downloaded: "status = 'success'"}}, {{worded: "words >= 3"}}]}}}}]
  shards: {{from: [pool, kept], steps: [{{stages.shard.WebDataset: {{shuffle: true}}}}]}}
  clip:
    from: [shards, kept]
    workers: {{cpus: 2}}
    steps:
      - stages.train.Train: {{recipe: clip-vit-b32, tiny: true, samples: {samples}}}
  scores:
    from: clip
    workers: {{cpus: 2}}
    steps: [{{stages.evaluate.Evaluate: {{sets: {{held_out: {folder}/held_out, seen: {folder}/seen}}}}}}]
"""


def measure(samples: int = SAMPLES) -> list[Figure]:
    """Recall of the held-out images beside as many of those that it was trained on; chance stands in the notes."""
    if not SHARED.is_dir():
        return [Figure("retrieval of real images", None, "%", note=f"not run: no {SHARED}")]
    with tempfile.TemporaryDirectory(prefix="sluice-real-") as name, Folder(SHARED) as web:
        folder = Path(name)
        held, others = split()
        write_set(folder / "held_out", held)
        write_set(folder / "seen", others[:: len(others) // len(held)][: len(held)])
        rows = [{"url": web.url(entry["path"]), "alt": caption} for entry in others for caption in entry["captions"]]
        pq.write_table(pa.Table.from_pylist(rows), folder / "urls.parquet")
        port = re.findall(r":(\d+)", web.url("x"))[0]
        started = time.perf_counter()
        run(Dag.parse(TEXT.format(folder=folder, port=port, samples=samples)), f"{folder}/root")
        took_s = time.perf_counter() - started
        catalog = Catalog(f"{folder}/root")
        found = catalog.sql("SELECT * FROM scores ORDER BY metric, set").to_pylist()
        losses = catalog.sql("SELECT loss FROM clip ORDER BY samples").column("loss")
        trained = catalog.sql("SELECT count(*) AS n FROM shard_samples").column("n")[0].as_py()
    figures = [
        Figure(f"{row['set']}: {row['metric']}", 100 * row["value"], "%",
               note=f"± {100 * row['standard_error']:.1f}; chance {100 * row['chance']:.1f}; {row['samples']} samples")
        for row in found
    ]  # fmt: skip
    note = f"{trained} images, {samples:,} samples seen; loss {losses[0].as_py():.2f} to {losses[-1].as_py():.2f}"
    return [Figure("the whole path", took_s, "s", note=note), *figures]


def split(one_in: int = HELD_OUT, fold: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The images that are held out, and the others: by a hash of their names. Every image is held out in one of the
    `one_in` folds."""
    entries = []
    for of in SETS:
        for line in (SHARED / of / "manifest.jsonl").read_text().splitlines():
            entry = json.loads(line)
            if entry.get("captions"):
                entries.append({"path": f"{of}/{entry['file']}", "captions": entry["captions"]})
    chosen = [int(sha256(entry["path"].encode()).hexdigest(), 16) % one_in == fold for entry in entries]
    held = [entry for entry, yes in zip(entries, chosen, strict=True) if yes]
    return held, [entry for entry, yes in zip(entries, chosen, strict=True) if not yes]


def write_set(folder: Path, entries: list[dict[str, Any]]) -> None:
    """A retrieval set in CLIP_benchmark's layout, the first caption of each image."""
    (folder / "test").mkdir(parents=True)
    (folder / "dataset_type.txt").write_text("retrieval")
    (folder / "test" / "nshards.txt").write_text("1")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number, entry in enumerate(entries):
            ending = entry["path"].rpartition(".")[2].lower().replace("jpeg", "jpg")
            caption = " ".join(entry["captions"][0].split())
            for suffix, data in ((ending, (SHARED / entry["path"]).read_bytes()), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    for figure in measure(*(int(argument) for argument in sys.argv[1:])):
        print(figure.name, figure.shown, figure.unit, figure.note, sep=" | ")
