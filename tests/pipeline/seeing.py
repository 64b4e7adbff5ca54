"""A small real run to look at: ingested from Parquet, drawn, measured, selected with a window, sharded; then changed.

`make(folder).root` has four runs: 0001, 0002 (what failed tried again), 0003 (more input), 0004 (another rule).
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline import Dag, run
from pipeline.lookup import uid_of
from pipeline.stage import OBSERVED, Device, PoolPart, PoolStage
from pipeline.store import Store
from tests.inline import Inline

ROWS = 48
HOSTILE = "a \u202ecaption\u2066 [bold red]<script>alert(1)</script>"
"""What ingest leaves of a caption: marks of direction, markup of a terminal, markup of a page."""
CONTROLS = "\x1b]0;owned\x07\x1b[2J\x9b31m"
"""What it leaves of a column that is carried along."""
REFUSED = "ftp://site0.example/refused.png"
RULES = {
    "downloaded": "status = 'success'",
    "even": "n % 2 = 0",
    "small": "product < 80",
    "first": "uid = first_value(uid) OVER (PARTITION BY kind ORDER BY n, uid)",
}
LOOSER = RULES | {"even": "n % 2 = 0 OR n % 3 = 0"}
TEXT = """
dag: seen
seed: 5
nodes:
  urls:
    steps: [{{stages.ingest.UrlTables: {{files: "{folder}/in/*.parquet", url: address, caption: [alt, title],
             source_uid: id, rows_per_part: 16}}}}]
  pool: {{from: urls, steps: [{{tests.pipeline.seeing.Draw: {{fails: 9, answers: {folder}/answers}}}}]}}
  scores: {{from: pool, steps: [tests.toys.Times, tests.toys.Label]}}
  beside: {{from: pool, steps: [{{tests.toys.Poison: {{bad: []}}}}]}}
  depth: {{from: pool, steps: [{{tests.toys.Times: {{factor: 7}}}}]}}
  kept: {{from: [pool, scores], steps: [{{stages.select.Select: {{rules: {rules}}}}}]}}
  shards: {{from: [pool, kept], steps: [{{stages.shard.WebDataset: {{samples_per_shard: 4, shuffle: true}}}}]}}
"""


def url_of(number: int) -> str:
    return f"https://site{number % 3}.example/{number}.png"


def uid(number: int) -> str:
    return uid_of(url_of(number))


def picture(number: int) -> bytes:
    """A PNG of its own for every number."""
    sink = io.BytesIO()
    Image.fromarray(np.full((8 + number, 8, 3), number % 256, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


class Draw(PoolStage):
    """A pool without a network: numbers divisible by `fails` are `http_503` until the file `answers` exists."""

    promise = "observed"
    adds = pa.schema(
        [
            ("status", pa.string()),
            ("key", pa.string()),
            ("sha256", pa.string()),
            pa.field("offset", pa.int64(), metadata=OBSERVED),
            pa.field("nbytes", pa.int64(), metadata=OBSERVED),
            ("stored_sha256", pa.string()),
            pa.field("fetched_at", pa.timestamp("ms", "UTC"), metadata=OBSERVED),
            ("image_embedding", pa.list_(pa.float16(), 4)),
        ]
    )
    retryable = frozenset({"http_503"})
    remembered = frozenset({"sha256"})

    fails: int = 9
    answers: str = ""

    def open(self, device: Device) -> Callable[[PoolPart], pa.Table]:
        def draw(part: PoolPart) -> pa.Table:
            up = Path(self.answers).exists()
            rows: list[dict[str, Any]] = []
            with part.create("tar") as tar:
                for row in part.image.select(["uid", "n"]).to_pylist():
                    if row["n"] % self.fails == 0 and not up:
                        rows.append({"status": "http_503"})
                        continue
                    data = picture(row["n"])
                    sha = hashlib.sha256(data).hexdigest()
                    place = {"offset": tar.tell(), "nbytes": len(data), "sha256": sha, "stored_sha256": sha}
                    rows.append({"status": "success", "key": row["uid"], "fetched_at": 1_700_000_000_000, **place})
                    tar.write(data)
            return pa.Table.from_pylist(rows, schema=self.adds)

        return draw


@dataclass(frozen=True)
class Runs:
    """What was made."""

    root: str
    folder: Path

    def go(self, rules: dict[str, str], retry: bool = False, until: str | None = None) -> None:
        listed = "[" + ", ".join(f'{{{name}: "{sql}"}}' for name, sql in rules.items()) + "]"
        text = TEXT.format(folder=self.folder, rules=listed)
        run(Dag.parse(text), self.root, executor=Inline(Store(self.root)), retry=["pool"] if retry else [], until=until)


def write_input(path: Path, numbers: list[int], alt: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "address": url_of(number),
            "alt": f"{number} is a number{alt}" if number != 8 else HOSTILE,
            "title": f"the title of {number}" if number % 4 == 0 else None,
            "id": f"own-{number}",
            "n": number,
            "kind": f"kind {number % 16}",
            "ratio": float("nan") if number % 5 == 0 else number / 100,
            "note": CONTROLS if number == 8 else "plain",
            f"[red]{CONTROLS}": number,
        }
        for number in numbers
    ]
    rows.append({**rows[0], "address": REFUSED, "id": "refused"})
    pq.write_table(pa.Table.from_pylist(rows), path)


def make(folder: Path) -> Runs:
    """First run, retry of what failed, more input in which some URLs come again, another rule."""
    runs = Runs(str(folder / "root"), folder)
    write_input(folder / "in" / "a.parquet", list(range(ROWS)))
    runs.go(RULES)
    (folder / "answers").touch()
    runs.go(RULES, retry=True)
    write_input(folder / "in" / "b.parquet", [4, 18, *range(ROWS, ROWS + 6)], alt=", again")
    runs.go(RULES, retry=True)
    runs.go(LOOSER, retry=True)
    return runs
