"""What one process does to images that it has fetched: `inside_a_shard ours|theirs <images> <out> <count> <side>`.

Prints ms of CPU per image, without starting and importing.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa

TEXTS = ("url", "caption", "key", "status", "error_message", "exif", "sha256")
SIDES = ("width", "height", "original_width", "original_height")
SCHEMA = pa.schema([*((name, pa.string()) for name in TEXTS), *((name, pa.int32()) for name in SIDES)])


def ours(images: Iterable[bytes], out: Path, side: int) -> float:
    """CPU-seconds, those of the decoder included."""
    import pyarrow.parquet as pq

    from stages.download.archive import SampleWriter
    from stages.download.decode import Options
    from stages.download.decoders import DecoderPool

    options = Options("keep_ratio_largest", side, True, False, 95, 50_000_000)
    pool = DecoderPool(options, 15.0, 1)
    pool.wait_ready()
    (pid,) = pool.pids()
    started = time.process_time() + cpu_s(pid)
    rows: list[dict[str, Any]] = []
    with (out / "0.tar").open("wb") as stream:
        writer = SampleWriter(stream)
        for number, data in enumerate(images):
            decoded = pool.decode(data)
            facts = {name: decoded.facts.get(name) for name in SCHEMA.names}
            row = facts | sample(number) | {"status": decoded.status, "sha256": decoded.sha256}
            writer.write(row["key"], decoded.image, decoded.ending, row["caption"], row)
            rows.append(row)
        writer.finish()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), out / "0.parquet")
    spent = time.process_time() + cpu_s(pid) - started
    pool.close()
    return spent


def theirs(images: Iterable[bytes], out: Path, side: int) -> float:
    """CPU-seconds of what img2dataset's `Downloader.download_shard` does to an image once it has come."""
    import json

    import exifread  # type: ignore[import-untyped]
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    resize = Resizer(side, "keep_ratio_largest", True)
    started = time.process_time()
    writer = WebDatasetSampleWriter(0, str(out), True, 5, SCHEMA, "jpg")
    for number, data in enumerate(images):
        stream = io.BytesIO(data)
        image, width, height, original_width, original_height, error = resize(stream)
        assert error is None
        stream.seek(0)
        exif = json.dumps({k: str(v).strip() for k, v in exifread.process_file(stream, details=False).items()})
        row = sample(number) | {"width": width, "height": height, "exif": exif}
        row |= {
            "original_width": original_width,
            "original_height": original_height,
            "sha256": sha256(data).hexdigest(),
        }
        writer.write(image, row["key"], row["caption"], dict.fromkeys(SCHEMA.names) | row)
    writer.close()
    return time.process_time() - started


def sample(number: int) -> dict[str, Any]:
    url, caption = f"http://127.0.0.1/{number}.jpg", f"a rendered picture, the {number}th"
    return {"url": url, "caption": caption, "key": f"{number:032d}", "status": "success", "error_message": None}


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(who: str, web: str, out: str, count: str, side: str) -> None:
    images = [path.read_bytes() for path in sorted(Path(web).glob("*.jpg"))]
    folder = Path(out)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    work: Callable[[Iterable[bytes], Path, int], float] = ours if who == "ours" else theirs
    spent = work((images[row % len(images)] for row in range(int(count))), folder, int(side))
    print(1000 * spent / int(count))


if __name__ == "__main__":
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    main(*sys.argv[1:])
