"""How long seeing takes on ten million rows, from a cold process: `explain`, `what-if`, `diff`.

The run is synthetic: ingest, pool, scores, a selection and its shards, in parts that are buckets of uids as ingest
makes them. It is written once under `bench/explain` and kept.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.attempt import write_parquet
from pipeline.lookup import uid_of
from pipeline.records import File, Generation, Record, Run, digest
from pipeline.stage import CAPTIONS
from pipeline.store import MADE, Store
from tests.benchmarks.figures import Figure

BITS, ROWS = 10, 10_000
"""1,024 parts of 10,000 rows: 10,240,000 pairs."""
PER_SHARD = 10_000
ROOT = Path("bench/explain")
ASKED = 7
RULES = {
    "downloaded": "status = 'success'",
    "large": "width >= 600",
    "aligned": "clip_score >= 0.3",
    "unique": "uid = first_value(uid) OVER (PARTITION BY sha256 ORDER BY clip_score DESC, uid)",
}
STRICTER = RULES | {"aligned": "clip_score >= 0.4"}


def measure() -> list[Figure]:
    """Median and slowest of several samples, each asked of a process of its own; the others once."""
    build(ROOT)
    kept, dropped = (_asked(ROOT, verdict) for verdict in (True, False))
    pairs = f"{ROWS << BITS:,} pairs in {1 << BITS:,} parts"
    figures = []
    for name, samples in (("kept", kept), ("dropped", dropped)):
        times = [timed("explain", str(ROOT), sample)[0] for sample in samples]
        figures.append(
            Figure(f"explain, a {name} sample, median", float(np.median(times)), "s", at_most=1.0, note=pairs)
        )
        figures.append(Figure(f"explain, a {name} sample, slowest of {ASKED}", max(times), "s", at_most=1.0))
    figures.append(Figure("explain, by URL", timed("explain", str(ROOT), _url(5))[0], "s", at_most=1.0))
    for name, options in (
        ("a threshold", ("--rule", "aligned=clip_score >= 0.4", "--drop", "unique")),
        ("a threshold before a window", ("--rule", "aligned=clip_score >= 0.4")),
    ):
        seconds, peak = timed("what-if", str(ROOT), "--run", "0001", *options)
        figures.append(Figure(f"what-if, {name}", seconds, "s", at_most=60))
        figures.append(Figure(f"what-if, {name}: peak memory", peak, "MiB", at_most=4096))
    seconds, peak = timed("diff", str(ROOT), "0001", "0002")
    figures.append(Figure("diff of two selections", seconds, "s", at_most=60))
    figures.append(Figure("diff of two selections: peak memory", peak, "MiB", at_most=4096))
    return figures


def timed(*arguments: str) -> tuple[float, float]:
    """Seconds and MiB of `sluice …` in a process of its own. Raises `RuntimeError` with its words where it fails."""
    command = [str(Path(sys.executable).with_name("sluice")), *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said = process.stdout.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {said}")
    return seconds, used.ru_maxrss / 1024


def _asked(root: Path, kept: bool) -> list[str]:
    """Samples of parts and shards that lie far apart."""
    store = Store(str(root))
    generation = store.generation("kept", 1)
    assert generation is not None
    chosen = generation.records[:: (1 << BITS) // ASKED][:ASKED]
    found = []
    for place, record in enumerate(chosen):
        table = store.read_table(record, "caption")
        found.append(table.filter(pc.equal(table.column("kept"), kept)).column("uid")[place * 31].as_py())
    return found


def _url(number: int) -> str:
    return f"https://host{number % 97}.example/{number}.jpg"


# -- the store ---------------------------------------------------------------------------------------------------------


def build(root: Path) -> None:
    """Write two runs, unless they are there: the second has another selection."""
    store = Store(str(root))
    if len(list(store.runs())) == 2:
        return
    store.put(MADE, b'{"format": 1}')
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        parts = list(processes.map(partial(write_part, str(root)), range(1 << BITS), chunksize=8))
    above: dict[str, str] = {}
    for node in ("urls", "pool", "scores", "kept"):
        above[node] = _seal(store, node, [found[node] for found, _ in parts], above).content_hash
    shuffled = np.random.default_rng(0).permutation(np.concatenate([uids for _, uids in parts]))
    shards = [write_shard(store, place, uids) for place, uids in enumerate(_cut(shuffled))]
    above = {node: content for node, content in above.items() if node in ("pool", "kept")}
    _seal(store, "shards", shards, above)
    nodes = dict.fromkeys(("urls", "pool", "scores", "kept", "shards"), 1)
    store.add_run(Run(id="", dag="bench", text="", generations=nodes))
    _seal(store, "kept", [found["kept2"] for found, _ in parts], {"pool": above["pool"]}, STRICTER)
    store.add_run(Run(id="", dag="bench", text="", generations={**nodes, "kept": 2}))


def _cut(uids: npt.NDArray[np.bytes_]) -> list[npt.NDArray[np.bytes_]]:
    return [uids[start : start + PER_SHARD] for start in range(0, len(uids), PER_SHARD)]


def _seal(
    store: Store, node: str, records: Sequence[Record], above: Mapping[str, str], rules: Mapping[str, str] = RULES
) -> Generation:
    parameters = {"rules": [{name: sql} for name, sql in rules.items()]} if node == "kept" else {}
    identity = {"steps": [{"stage": f"bench.{node.title()}", "revision": 1, "parameters": parameters}]}
    key = digest([node, identity])
    return store.seal(
        Generation(node=node, number=0, key=key, identity=identity, inputs=dict(above), records=tuple(records))
    )


def write_part(root: str, part: int) -> tuple[dict[str, Record], npt.NDArray[np.bytes_]]:
    """The records of one part by node, and the uids that are kept."""
    store, rng, name = Store(root), np.random.default_rng(part), f"000-{part:05d}"
    # The leading bits of a uid are the number of its part; one URL is real, so that it can be asked for.
    heads = (np.uint64(part) << np.uint64(64 - BITS)) | (rng.integers(0, 2**62, ROWS, np.uint64) >> np.uint64(BITS - 2))
    tails = rng.integers(0, 2**63, ROWS, np.uint64)
    uids = np.sort(
        np.array([f"{a:016x}{b:016x}" for a, b in zip(heads.tolist(), tails.tolist(), strict=True)], dtype="S32")
    )
    urls = [_url(part * ROWS + row + 1000) for row in range(ROWS)]
    real = uid_of(_url(5))
    if int(real[:16], 16) >> (64 - BITS) == part:
        place = int(np.searchsorted(uids, real.encode()))
        uids[min(place, ROWS - 1)], urls[min(place, ROWS - 1)] = real.encode(), _url(5)
    width, score = rng.integers(50, 2000, ROWS), rng.random(ROWS, dtype=np.float32)
    success = rng.random(ROWS) < 0.8
    bytes_ = np.array([f"{number:064x}" for number in rng.integers(0, 2**63, ROWS).tolist()])
    uid = pa.array(uids.astype(str))
    keys = {"uid": uid, "caption_id": pa.array(np.array([f"{n:032x}" for n in tails.tolist()]))}
    image = {"uid": uid, "url": pa.array(urls), "captions": pa.array(np.ones(ROWS), pa.int32())}
    captions = {"caption": pa.array([f"a picture of thing {row} in place {part}" for row in range(ROWS)])}
    fetched = {
        "status": pa.array(np.where(success, "success", "http_404")),
        "width": pa.array(width, pa.int32()),
        "sha256": pa.array(bytes_),
        "offset": pa.array(np.arange(ROWS) * 20_000),
        "nbytes": pa.array(np.full(ROWS, 19_000)),
    }
    webs = {"source": pa.array(np.full(ROWS, "web"))}
    tables = {
        "urls": {"image": image, "caption": {**keys, **captions, **webs}},
        "pool": {"image": {**image, **fetched}, "caption": {**keys, **captions, **webs}},
        "scores": {"caption": {**keys, "clip_score": pa.array(score)}},
    }
    for node, least in (("kept", 0.3), ("kept2", 0.4)):
        failed = np.select([~success, width < 600, score < least], ["downloaded", "large", "aligned"], "")
        dropped_by = pa.array(failed, mask=failed == "")
        tables[node] = {"caption": {**keys, "kept": dropped_by.is_null(), "dropped_by": dropped_by}}
    notes = {"increment": 0, "bits": BITS, "bucket": part}
    records = {node: _record(store, node.rstrip("2"), name, kinds, notes, node) for node, kinds in tables.items()}
    kept = tables["kept"]["caption"]["kept"]
    return records, uids[np.asarray(kept)]


def write_shard(store: Store, place: int, uids: npt.NDArray[np.bytes_]) -> Record:
    """The index of a shard; the shard itself is empty."""
    uid = pa.array(uids.astype(str))
    offsets = np.arange(len(uids)) * 25_000
    index = {
        "uid": uid,
        "key": uid,
        "caption_id": uid,
        "shard": pa.array(np.full(len(uids), f"{place:08d}.tar")),
        "image": pc.binary_join_element_wise(uid, pa.scalar("jpg"), "."),
        **{f"{member}_offset": pa.array(offsets) for member in ("image", "txt", "json")},
        **{f"{member}_nbytes": pa.array(np.full(len(uids), 8_000)) for member in ("image", "txt", "json")},
    }
    return _record(store, "shards", f"{place:08d}", {"samples": index}, {}, "shards", shard=True)


def _record(
    store: Store,
    node: str,
    part: str,
    kinds: Mapping[str, Mapping[str, pa.Array]],
    notes: Mapping[str, int],
    key: str,
    shard: bool = False,
) -> Record:
    files, rows = [], {}
    for kind, columns in kinds.items():
        sink = io.BytesIO()
        fields = [CAPTIONS if name == CAPTIONS.name else pa.field(name, v.type) for name, v in columns.items()]
        table = pa.table(list(columns.values()), schema=pa.schema(fields))
        write_parquet(table, sink, "uid" if kind == "samples" else None)
        data = sink.getvalue()
        path = f"data/{part}-{key}.{kind}.parquet"
        target = Path(store.path) / node / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        files.append(File(kind=kind, path=path, bytes=len(data), sha256=sha256(data).hexdigest()))
        rows[kind] = table.num_rows
    if shard or node == "pool":
        files.append(File(kind="shard" if shard else "tar", path=f"data/{part}.tar", bytes=0, sha256=""))
    content = digest([file.sha256 for file in files])
    work_key = digest([node, part, key])
    return Record(
        work_key=work_key, node=node, phase="parts", part=part, files=tuple(files), rows=rows, notes=dict(notes),
        content_hash=content, statuses={"ok": ROWS},
    )  # fmt: skip
