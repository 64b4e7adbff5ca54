"""Which real images are there twice: figures of textbooks and photographs, and what the comparison of pixels let go.

python -m tests.benchmarks.bench_real_copies tile.png     # the pairs in one group, to look at
"""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from infra.miniweb import Folder
from pipeline import Catalog, Dag, run
from pipeline.store import Store
from tests.benchmarks.bench_real_clip import SETS, SHARED
from tests.benchmarks.figures import Figure
from tests.inline import Inline

TEXT = """
dag: real_copies
nodes:
  urls: {{steps: [{{stages.ingest.UrlTables: {{files: {folder}/urls.parquet, url: url, caption: alt}}}}]}}
  pool:
    from: urls
    steps: [{{stages.download.Download: {{side: 256, allow_private_hosts: ["127.0.0.1:{port}"]}}}}]
  looks: {{from: pool, steps: [{{stages.copy_embedding.CopyEmbedding: {{}}}}]}}
  copies:
    from: [pool, looks]
    steps: [{{stages.dedup.NearDuplicates: {{perceptual_bits: 4, embedding: copy_embedding, cosine: 0.85}}}}]
"""
SIDE, ACROSS = 220, 12


def measure(tile: Path | None = None) -> list[Figure]:
    if not SHARED.exists():
        return [Figure("images that are there twice", None, "", note=f"no {SHARED}")]
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name, Folder(SHARED) as web:
        folder, root = Path(name), f"{name}/root"
        files = [
            f"{place}/{json.loads(line)['file']}"
            for place in SETS
            for line in (SHARED / place / "manifest.jsonl").read_text().splitlines()
        ]
        urls = {web.url(file): file for file in dict.fromkeys(files)}
        pq.write_table(pa.table({"url": list(urls), "alt": ["an image"] * len(urls)}), folder / "urls.parquet")
        port = re.findall(r":(\d+)", web.url("x"))[0]
        run(Dag.parse(TEXT.format(folder=folder, port=port)), root, executor=Inline(Store(root)))
        with Catalog(root) as catalog:
            images = catalog.sql("SELECT DISTINCT uid, url, duplicate_group FROM samples WHERE status = 'success'")
        generation = Store(root).newest("copies")
        assert generation is not None
        edges = pa.concat_tables([Store(root).read_table(record, "edge") for record in generation.records])
    file_of = {row["uid"]: urls[row["url"]] for row in images.to_pylist()}
    group_of = {row["uid"]: row["duplicate_group"] for row in images.to_pylist()}
    found = list(zip(edges["uid_a"].to_pylist(), edges["uid_b"].to_pylist(), strict=True))
    same = sorted((a, b) for a, b in found if group_of[a] == group_of[b])
    shown = ", ".join(f"{Path(file_of[a]).stem} = {Path(file_of[b]).stem}" for a, b in same)
    if tile is not None:
        looked_at(tile, [(file_of[a], file_of[b]) for a, b in same])
    return [
        Figure("images", len(file_of), ""),
        Figure("pairs that a search brought up", len(found), ""),
        Figure("pairs in one group", len(same), "", note=shown),
    ]


def looked_at(tile: Path, pairs: list[tuple[str, str]]) -> None:
    """The two of a pair one above the other."""
    lines = [pairs[start : start + ACROSS] for start in range(0, len(pairs), ACROSS)]
    sheet = Image.new("RGB", (SIDE * ACROSS, 2 * SIDE * len(lines)), "white")
    for down, line in enumerate(lines):
        for across, pair in enumerate(line):
            for below, file in enumerate(pair):
                image = Image.open(io.BytesIO((SHARED / file).read_bytes())).convert("RGB")
                sheet.paste(ImageOps.contain(image, (SIDE - 6, SIDE - 6)), (across * SIDE, (2 * down + below) * SIDE))
    sheet.save(tile)


if __name__ == "__main__":
    for figure in measure(Path(sys.argv[1])):
        print(f"{figure.name:<40}{figure.shown:>8}  {figure.note}")
