"""Small runs with real pictures, written as the engine writes them: a pool, numbers, a selection, copies, shards."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.attempt import Attempt
from pipeline.records import Generation, Record, Run, digest
from pipeline.rules import Rules
from pipeline.stage import Column, Task
from pipeline.store import Store

PARTS = ("000-0", "000-1")
RETRY = "000-0.r1"
RULES = [
    {"downloaded": "status = 'success'"},
    {"wide": "width BETWEEN 80 AND 250"},
    {"top": "score >= quantile_cont(score, 0.5) OVER ()"},
]


@dataclass
class Row:
    """One URL with its caption; `numbers` come from a node of their own. Without `picture` it was not downloaded."""

    uid: str
    caption: str = "a picture"
    url: str = "https://host.example/a.jpg"
    status: str = "success"
    picture: bytes | None = None
    width: int | None = 100
    numbers: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    similarity: float | None = None


def picture(
    colour: tuple[int, int, int] = (200, 60, 30), size: tuple[int, int] = (40, 30), form: str = "JPEG"
) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, colour).save(sink, form)
    return sink.getvalue()


def uid(number: int) -> str:
    """A uid as uids are: 32 hex digits of a hash."""
    return sha256(str(number).encode()).hexdigest()[:32]


@dataclass
class SmallRun:
    """What is written beside the pool and the scores."""

    rules: Sequence[Mapping[str, str]] = ()
    dropped_by: Sequence[str | None] | None = None
    """The verdicts as they are, where no rules of ours gave them."""
    dag: str = "demo"
    text: str = "dag: demo\n"
    stage: str = "stages.select.Select"
    edges: pa.Table | None = None
    errors: Sequence[str] = ()
    retried: Sequence[Row] = ()
    """Rows of a later part, which replace those of the same uid."""
    shard: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def write(self, root: str, rows: Sequence[Row]) -> Store:
        """The run, under `root`; the rows alternate between two parts."""
        store = Store(root)
        halves = {part: rows[place :: len(PARTS)] for place, part in enumerate(PARTS)}
        if self.retried:
            halves[RETRY] = self.retried
            rows = [*rows, *self.retried]
        self._seal(store, "pool", [], halves, self._pool)
        self._seal(store, "scores", ["pool"], halves, self._scores)
        nodes = ["pool", "scores"]
        if self.rules or self.dropped_by is not None:
            verdicts = dict(zip([row.uid for row in rows], self._verdicts(rows), strict=True))
            self._seal(store, "kept", ["pool", "scores"], halves, lambda a, some: self._kept(a, some, verdicts))
            nodes.append("kept")
        if any(row.group for row in rows):
            self._seal(store, "copies", ["pool"], halves, self._copies)
            nodes.append("copies")
        if self.shard:
            self._seal(store, "shards", [nodes[-1]], {"0": rows}, self._shards)
            nodes.append("shards")
        store.add_run(Run(id="", dag=self.dag, text=self.text, generations=dict.fromkeys(nodes, 1)))
        return store

    def _seal(
        self,
        store: Store,
        node: str,
        inputs: Sequence[str],
        halves: Mapping[str, Sequence[Row]],
        write: Callable[[Attempt, Sequence[Row]], None],
    ) -> None:
        records: list[Record] = []
        for part, rows in halves.items():
            task = Task(part, supersedes=PARTS if part == RETRY else ())
            with Attempt(store, node, "parts", task, digest([node, part])) as attempt:
                write(attempt, rows)
                attempt.note(**self.notes)
                records.append(attempt.commit())
        above = {name: found.content_hash for name in inputs if (found := store.newest(name)) is not None}
        parameters = {"rules": [dict(rule) for rule in self.rules]} if node == "kept" and self.rules else {}
        identity = {"steps": [{"stage": self.stage, "revision": 1, "parameters": parameters}]}
        store.seal(Generation(node=node, number=0, key="key", identity=identity, inputs=above, records=tuple(records)))

    def _pool(self, attempt: Attempt, rows: Sequence[Row]) -> None:
        places, tar = [], b""
        for row in rows:
            places.append((len(tar), len(row.picture)) if row.picture is not None else (None, None))
            tar += row.picture or b""
        shas = [sha256(row.picture).hexdigest() if row.picture is not None else None for row in rows]
        columns = {
            "uid": [row.uid for row in rows],
            "url": [row.url for row in rows],
            "status": [row.status for row in rows],
            "sha256": pa.array(shas, pa.string()),
            "width": pa.array([row.width for row in rows], pa.int32()),
            "offset": pa.array([offset for offset, _ in places], pa.int64()),
            "nbytes": pa.array([size for _, size in places], pa.int64()),
            "stored_sha256": pa.array(shas, pa.string()),
        }
        attempt.write("image", pa.table(columns))
        attempt.write("caption", keys(rows).append_column("caption", [[row.caption for row in rows]]))
        attempt.write_bytes("tar", "tar", tar)
        attempt.count({"success": sum(row.picture is not None for row in rows)})
        if self.errors:
            schema = ["uid", "row", "step", "error", "traceback"]
            found = [[None, place, self.stage, error, ""] for place, error in enumerate(self.errors)]
            types = [pa.string(), pa.int64(), pa.string(), pa.string(), pa.string()]
            columns_ = [pa.array(list(column), t) for column, t in zip(zip(*found, strict=True), types, strict=True)]
            attempt.write("errors", pa.table(columns_, names=schema))

    def _scores(self, attempt: Attempt, rows: Sequence[Row]) -> None:
        table = keys(rows)
        for name in dict.fromkeys(name for row in rows for name in row.numbers):
            table = table.append_column(name, pa.array([row.numbers.get(name) for row in rows]))
        attempt.write("caption", table)
        attempt.count({"ok": len(rows)})
        if self.edges is not None:
            attempt.write("edge", self.edges)

    def _verdicts(self, rows: Sequence[Row]) -> Sequence[str | None]:
        if self.dropped_by is not None:
            return self.dropped_by
        columns = {
            "pool.status": pa.array([row.status for row in rows]),
            "pool.width": pa.array([row.width for row in rows], pa.int32()),
            "pool.url": pa.array([row.url for row in rows]),
        }
        for name in dict.fromkeys(name for row in rows for name in row.numbers):
            columns[f"scores.{name}"] = pa.array([row.numbers.get(name) for row in rows])
        table = pa.table({**{key: keys(rows).column(key) for key in ("uid", "caption_id")}, **columns})
        split = {name: name.partition(".") for name in columns}
        found = [Column(split[name][2], split[name][0], "caption", values.type) for name, values in columns.items()]
        verdicts: list[str | None] = Rules(self.rules).bind(found).judge(table).to_pylist()
        return verdicts

    def _kept(self, attempt: Attempt, rows: Sequence[Row], verdicts: Mapping[str, str | None]) -> None:
        dropped_by = pa.array([verdicts[row.uid] for row in rows], pa.string())
        attempt.write(
            "caption", keys(rows).append_column("kept", dropped_by.is_null()).append_column("dropped_by", dropped_by)
        )
        if self.rules:
            attempt.note(funnel=Rules(self.rules).funnel(dropped_by))

    def _copies(self, attempt: Attempt, rows: Sequence[Row]) -> None:
        table = {
            "uid": [row.uid for row in rows],
            "duplicate_group": [row.group or row.uid for row in rows],
            "similarity": pa.array([row.similarity for row in rows], pa.float32()),
        }
        attempt.write("image", pa.table(table))

    def _shards(self, attempt: Attempt, rows: Sequence[Row]) -> None:
        attempt.adopt("shard", self.shard, 12_345, "0" * 64)


def keys(rows: Sequence[Row]) -> pa.Table:
    return pa.table({"uid": [row.uid for row in rows], "caption_id": [f"{row.uid[:16]}{'c' * 16}" for row in rows]})


def scored(count: int, seed: int = 0) -> list[Row]:
    """Rows with a score in [0, 1] and a picture each, but for every tenth, which has neither."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        gone = number % 10 == 9
        rows.append(
            Row(
                uid(number),
                caption=f"picture {number}",
                url=f"https://host{number % 3}.example/{number}.jpg",
                status="http_404" if gone else "success",
                picture=None if gone else picture(tuple(int(v) for v in rng.integers(0, 255, 3)), (24, 18)),  # type: ignore[arg-type]
                width=None if gone else int(rng.integers(50, 300)),
                numbers={"score": None if gone else float(np.float32(rng.random()))},
            )
        )
    return rows
