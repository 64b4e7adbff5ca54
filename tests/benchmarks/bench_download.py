"""Downloading against img2dataset 1.47: the same server, images and output, two processes each, in turns.

    python -m tests.benchmarks.bench_download 2000 1     # fewer images, fewer turns: printed, not kept

CPU-seconds are those of everything that a command starts, Ray's daemons included. The server runs beside them in a
process of its own and is not counted; on two cores it slows both down.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.figures import Figure
from tests.benchmarks.photographs import write_photographs, write_scenes
from tests.benchmarks.tree import Cost, cost_of

IMAGES, TURNS = 20_000, 3
RENDERED = 200
"""So many different scenes of the small local web stand behind all URLs."""
RENDERINGS = Path(tempfile.gettempdir()) / "sluice-bench-images"
"""Kept, for they take minutes."""
INSIDE = 1000
SIDE = 256
PROCESSES = 2
TEXT = """
dag: download
nodes:
  urls: {{steps: [{{stages.ingest.UrlTables: {{files: {table}, caption: caption, rows_per_part: {rows}}}}}]}}
  pool:
    from: urls
    workers: {{count: {processes}, cpus: 1}}
    steps: [{{stages.download.Download: {{{output}, allow_private_hosts: ["127.0.0.1:{port}"]}}}}]
"""
THEIRS = """
import sys, json
from img2dataset import download
if __name__ == "__main__":
    download(**json.loads(sys.argv[1]))
"""
OURS = {
    "resized": f"resize: keep_ratio_largest, side: {SIDE}, resize_only_if_bigger: true",
    "whole": 'resize: "no", passthrough: true',
}
PEERS: dict[str, dict[str, object]] = {
    "resized": {"resize_mode": "keep_ratio_largest", "image_size": SIDE, "resize_only_if_bigger": True},
    "whole": {"resize_mode": "no"},
}


def measure(images: int = IMAGES, turns: int = TURNS) -> list[Figure]:
    folder = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    try:
        paths = write_scenes(RENDERINGS / "scenes", RENDERED)
        photographs = write_photographs(RENDERINGS / "photographs", RENDERED)
        with server(RENDERINGS / "scenes") as port:
            table = folder / "urls.parquet"
            names = [paths[row % len(paths)].name for row in range(images)]
            urls = [f"http://127.0.0.1:{port}/{row}/{name}" for row, name in enumerate(names)]
            captions = [f"a rendered picture, the {row}th" for row in range(images)]
            pq.write_table(pa.table({"url": urls, "caption": captions}), table)
            figures = [
                *whole_runs(folder, table, port, images, turns, "resized", f"resized to {SIDE}", 2.0),
                *whole_runs(folder, table, port, images, turns, "whole", "passthrough against `no`", 2.5),
            ]
        return [
            *figures,
            inside_a_shard(folder, paths, turns, "scenes", 1.5),
            inside_a_shard(folder, photographs, turns, "photographs", None),
        ]
    finally:
        shutil.rmtree(folder)


@contextmanager
def server(folder: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "tests.benchmarks.photographs", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def whole_runs(
    folder: Path, table: Path, port: int, images: int, turns: int, output: str, what: str, goal: float
) -> list[Figure]:
    found: dict[str, list[Cost]] = {"ours": [], "theirs": []}
    for turn in range(turns):
        for who in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
            run = ours if who == "ours" else theirs
            found[who].append(run(folder / f"{who}{turn}", table, port, images, output))
            shutil.rmtree(folder / f"{who}{turn}")
    ms = {who: 1000 * statistics.median(cost.cpu_s for cost in costs) / images for who, costs in found.items()}
    rate = {who: images / statistics.median(cost.wall_s for cost in costs) for who, costs in found.items()}
    for who, costs in found.items():
        print(output, who, costs[-1].by_name, file=sys.stderr)
    return [
        Figure(f"whole run, {what}: CPU against img2dataset's", ms["theirs"] / ms["ours"], "×", at_least=goal,
               note=f"{ms['ours']:.2f} against {ms['theirs']:.2f} ms of CPU per image; {images:,} images"),
        Figure(f"whole run, {what}: images/s", rate["ours"], "1/s",
               note=f"img2dataset {rate['theirs']:.0f}; two processes each, and the server beside them"),
    ]  # fmt: skip


def ours(folder: Path, table: Path, port: int, images: int, output: str) -> Cost:
    folder.mkdir()
    rows = min(10_000, images // PROCESSES)
    dag = folder / "download.yaml"
    text = TEXT.format(table=table, rows=rows, port=port, output=OURS[output], processes=PROCESSES)
    dag.write_text(text)
    cost = cost_of([sys.executable, "-m", "pipeline.cli", "run", str(dag), str(folder / "root")])
    records = [json.loads(path.read_text()) for path in (folder / "root" / "pool" / "commits").glob("*.json")]
    done = sum(record["statuses"].get("success", 0) for record in records)
    assert done == images, f"{done} of {images} images"
    return cost


def theirs(folder: Path, table: Path, port: int, images: int, output: str) -> Cost:
    folder.mkdir()
    program = folder / "run.py"
    program.write_text(THEIRS)
    parameters: dict[str, object] = {
        "url_list": str(table),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_folder": str(folder / "out"),
        "output_format": "webdataset",
        "processes_count": PROCESSES,
        "thread_count": 64,
        "number_sample_per_shard": min(10_000, images // PROCESSES),
        **PEERS[output],
    }
    quiet = {"NO_ALBUMENTATIONS_UPDATE": "1"}
    cost = cost_of([sys.executable, "-W", "ignore", str(program), json.dumps(parameters)], quiet)
    stats = [json.loads(path.read_text()) for path in (folder / "out").glob("*_stats.json")]
    done = sum(one["successes"] for one in stats)
    assert done == images, f"{done} of {images} images"
    return cost


def inside_a_shard(folder: Path, paths: list[Path], turns: int, what: str, goal: float | None) -> Figure:
    """Decoding, resizing, encoding and writing of bytes that are in memory already, in one process and its decoder."""
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(turns):
        for who in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
            command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.inside_a_shard", who]
            command += [str(paths[0].parent), str(folder / f"inside-{who}"), str(INSIDE), str(SIDE)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[who].append(float(done.stdout.split()[-1]))
    ms = {who: statistics.median(values) for who, values in found.items()}
    size = statistics.mean(path.stat().st_size for path in paths) / 1000
    note = f"{ms['ours']:.2f} against {ms['theirs']:.2f} ms of CPU per image of {size:.0f} KB, resized to {SIDE}"
    gain = ms["theirs"] / ms["ours"]
    return Figure(f"inside a shard, {what}: CPU against img2dataset's", gain, "×", at_least=goal, note=note)


if __name__ == "__main__":
    for figure in measure(*(int(argument) for argument in sys.argv[1:])):
        print(figure.name, figure.shown, figure.unit, figure.note, sep=" | ")
