"""Copies of every kind among 20,000 pages of the small local web: how many are found, and what is taken for one.

`python -m tests.benchmarks.bench_copies 4000 web` says how many pages of which mix; the seed is none that a threshold
was chosen on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.miniweb.kinds import FACTS, Family, Kind
from pipeline import Catalog
from pipeline.store import Store
from tests.benchmarks.figures import Figure

PAGES = 20_000
SEED = 77_017
PORT = 18_083
POOL = """
dag: pages
seed: 17
nodes:
  urls: {steps: [{stages.ingest.UrlTables: {files: FILES, url: url, caption: alt, rows_per_part: 1000}}]}
  pool:
    from: urls
    steps:
      - stages.download.Download:
          side: 256
          timeout_s: 5
          allow_private_hosts: ["127.0.0.1:PORT", "localhost:PORT"]
"""
COPIES = """
  looks: {from: pool, steps: [{stages.copy_embedding.CopyEmbedding: {}}]}
  copies:
    from: [pool, looks]
    steps: [{stages.dedup.NearDuplicates: {perceptual_bits: BITS, embedding: copy_embedding, cosine: COSINE}}]
"""
BITS, COSINE = 4, 0.85
COPY_KINDS = tuple(kind for kind, facts in FACTS.items() if facts.family is Family.COPY)
ONE_PICTURE = {Kind.PLACEHOLDER, Kind.PNG_NEAR_BOMB}
"""Kinds all of whose pages show the same."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a run says of the pages that were downloaded."""

    planted: Counter[str]
    proposed: Counter[str]
    """Copies of which a search brought up a pair with the same picture."""
    together: Counter[str]
    """Copies that are in one group with the same picture."""
    joined: int
    """Images that are in the group of another one."""
    rightly: int
    altered: int
    """Of those that were joined, the ones with other bytes than the one that stays."""
    altered_rightly: int
    alike: int
    alike_joined: Counter[str]
    """Look-alikes in the group of another picture, by what was changed."""
    looked: int
    images: int
    seconds: float


def measure(pages: int = PAGES, mix: str = "web", seed: int = SEED) -> list[Figure]:
    return figures_of(run(pages, mix, seed))


def figures_of(found: Found) -> list[Figure]:
    planted, together = found.planted.total(), found.together.total()
    figures = [
        Figure("copies found, all kinds", together / planted, "of 1", at_least=0.97, note=f"of {planted:,}"),
        Figure(
            "right among what was joined",
            found.rightly / max(1, found.joined),
            "of 1",
            at_least=0.99,
            note=f"of {found.joined:,} images in the group of another one",
        ),
        Figure(
            "right among those with other bytes",
            found.altered_rightly / max(1, found.altered),
            "of 1",
            note=f"of {found.altered:,}",
        ),
    ]
    for kind in COPY_KINDS:
        count = found.planted[kind]
        note = f"of {count:,}; {found.proposed[kind] / max(1, count):.1%} were candidates"
        figures.append(Figure(f"{kind}: found", found.together[kind] / max(1, count), "of 1", note=note))
    lost = found.alike_joined
    by = ", ".join(f"{changed} {count}" for changed, count in lost.most_common())
    figures += [
        Figure("look-alikes that stay apart", 1 - lost.total() / max(1, found.alike), "of 1", at_least=0.97, note=by),
        Figure("candidates that were looked at", found.looked / found.images, "an image", note=f"{found.looked:,}"),
        Figure("embedding, search, comparison", found.seconds, "s", note=f"{found.images:,} images"),
    ]
    return figures


def run(pages: int, mix: str, seed: int) -> Found:
    """Serve and download that many pages; then look for copies, without the web."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        folder = Path(name)
        text = POOL.replace("FILES", str(folder / "web/urls.parquet")).replace("PORT", str(PORT))
        (folder / "pool.yaml").write_text(text)
        (folder / "copies.yaml").write_text(text + COPIES.replace("BITS", str(BITS)).replace("COSINE", str(COSINE)))
        sluice = [sys.executable, "-m", "pipeline.cli", "run"]
        web = [sys.executable, "-m", "infra.miniweb", str(folder / "web"), "--pages", str(pages), "--mix", mix]
        web += ["--seed", str(seed), "--port", str(PORT), "--"]
        with (folder / "said").open("wb") as said:
            done = subprocess.run(
                [*web, *sluice, str(folder / "pool.yaml"), str(folder / "root")], stdout=said, stderr=said
            )
            started = time.monotonic()
            if done.returncode == 0:
                command = [*sluice, str(folder / "copies.yaml"), str(folder / "root")]
                done = subprocess.run(command, stdout=said, stderr=said)
        seconds = time.monotonic() - started
        if done.returncode:
            sys.exit((folder / "said").read_text()[-3000:])
        return judged(pq.read_table(folder / "key/key.parquet"), str(folder / "root"), seconds)


def judged(key: pa.Table, root: str, seconds: float = 0.0) -> Found:
    """The groups and edges of a run against the key of its web."""
    with Catalog(root) as catalog:
        rows = catalog.sql(
            "SELECT DISTINCT uid, url, sha256, duplicate_group FROM samples WHERE status = 'success'"
        ).to_pylist()
    store = Store(root)
    generation = store.newest("copies")
    assert generation is not None
    edges = pa.concat_tables([store.read_table(record, "edge") for record in generation.records])
    pages = {page["url"]: page for page in key.to_pylist() if page["kind"] != Kind.REPEATED_URL}
    page_of = {row["uid"]: pages[row["url"]] for row in rows if row["url"] in pages}
    picture = {uid: picture_of(page) for uid, page in page_of.items()}
    groups = defaultdict(list)
    for row in rows:
        groups[row["duplicate_group"]].append(row["uid"])
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    shown = Counter(picture.values())
    proposed = {
        uid
        for a, b in zip(edges["uid_a"].to_pylist(), edges["uid_b"].to_pylist(), strict=True)
        if a in picture and picture[a] == picture.get(b)
        for uid in (a, b)
    }
    bytes_of = {row["uid"]: row["sha256"] for row in rows}
    joined = rightly = altered = altered_rightly = 0
    for members in groups.values():
        main, others = _kept(members, picture)
        joined += len(others)
        for uid in others:
            right = picture.get(uid) == picture.get(main)
            rightly += right
            altered += bytes_of[uid] != bytes_of[main]
            altered_rightly += right and bytes_of[uid] != bytes_of[main]
            if not right and page_of[uid]["kind"] == Kind.LOOK_ALIKE:
                counts["alike"][page_of[uid]["changed"]] += 1
        within = Counter(picture.get(uid) for uid in members)
        for uid in members:
            page = page_of.get(uid)
            if page and page["kind"] in COPY_KINDS and shown[picture[uid]] > 1:
                counts["planted"][page["kind"]] += 1
                counts["proposed"][page["kind"]] += uid in proposed
                counts["together"][page["kind"]] += within[picture[uid]] > 1
    return Found(
        counts["planted"],
        counts["proposed"],
        counts["together"],
        joined,
        rightly,
        altered,
        altered_rightly,
        sum(page["kind"] == Kind.LOOK_ALIKE for page in page_of.values()),
        counts["alike"],
        edges["agreement"].length() - edges["agreement"].null_count,
        len(rows),
        seconds,
    )


def _kept(members: Sequence[str], picture: Mapping[str, object]) -> tuple[str, list[str]]:
    """The one image of a group that stays, of the picture that most of it shows, and those that would go for it."""
    most = Counter(picture.get(uid) for uid in members).most_common(1)[0][0]
    main = min(uid for uid in members if picture.get(uid) == most)
    return main, [uid for uid in members if uid != main]


def picture_of(page: Row) -> object:
    """What two pages have in common that show the same picture."""
    if page["kind"] in COPY_KINDS:
        return page["source"]
    if page["leaked"] is not None:
        return ("evaluation", page["leaked"])
    return page["kind"] if page["kind"] in ONE_PICTURE else page["page_id"]


def main(arguments: Sequence[str]) -> None:
    pages, mix = int(arguments[0]) if arguments else PAGES, arguments[1] if len(arguments) > 1 else "web"
    for figure in measure(pages, mix, int(arguments[2]) if len(arguments) > 2 else SEED):
        print(f"{figure.name:<36}{figure.shown:>9} {figure.unit:<9}{figure.goal:<8}{figure.note}")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
