"""A pool without a network: a few pictures of shapes, some of which were not downloaded."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.attempt import Attempt
from pipeline.records import Record
from pipeline.stage import OBSERVED, Column, Device, Job, PoolPart, PoolStage, TableStage, Task, Work
from tests.toys import CAPTION, IMAGE, uid_of

WORDS = ("a red circle", "two blue squares", "the cat sat on the mat", "一只猫坐在垫子上", "no image")


class Links(TableStage):
    """A source: `rows` URLs in `parts` parts, with one caption, or two where the number is divisible by 5."""

    promise = "pure"

    rows: int = 24
    parts: int = 2

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        return {"image": IMAGE, "caption": CAPTION}

    def assemble(self, work: Work) -> list[Record]:
        tasks = [Task(f"000-{part:05d}", {"part": part, "of": self.rows}) for part in range(self.parts)]
        return work.map("make", tasks, self.make)

    def make(self, task: Task, attempt: Attempt) -> None:
        numbers = list(range(task.payload["part"], task.payload["of"], self.parts))
        uids = [uid_of(number) for number in numbers]
        attempt.write("image", pa.table([uids, [f"http://gallery/{n}" for n in numbers], numbers], schema=IMAGE))
        rows = [
            (uid_of(number), uid_of(1000 + 10 * number + k), WORDS[(number + k) % len(WORDS)], "web")
            for number in numbers
            for k in range(1 + (number % 5 == 0))
        ]
        columns = list(zip(*rows, strict=True))
        attempt.write("caption", pa.table([list(column) for column in columns], schema=CAPTION))
        attempt.count({"ok": len(numbers)})


class Gallery(PoolStage):
    """Writes a PNG for every URL whose number is not divisible by `missing`."""

    promise = "pure"
    adds = pa.schema(
        [
            ("status", pa.string()),
            pa.field("offset", pa.int64(), metadata=OBSERVED),
            pa.field("nbytes", pa.int64(), metadata=OBSERVED),
            pa.field("stored_sha256", pa.string(), metadata=OBSERVED),
        ]
    )

    missing: int = 7

    def open(self, device: Device) -> Callable[[PoolPart], pa.Table]:
        def write(part: PoolPart) -> pa.Table:
            rows: list[dict[str, Any]] = []
            with part.create("tar") as tar:
                for number in part.image["n"].to_pylist():
                    if number % self.missing == 0:
                        rows.append({"status": "http_404"})
                        continue
                    data = png(number)
                    sha = sha256(data).hexdigest()
                    rows.append({"status": "success", "offset": tar.tell(), "nbytes": len(data), "stored_sha256": sha})
                    tar.write(data)
            return pa.Table.from_pylist(rows, schema=self.adds)

        return write


class Trained(Job):
    """Stands for a training: the files of a folder, committed as a checkpoint."""

    promise = "pure"

    folder: str

    def assemble(self, work: Work) -> list[Record]:
        return work.map("train", [Task("last", {"folder": self.folder})], self.train)

    def train(self, task: Task, attempt: Attempt) -> None:
        for path in sorted(Path(self.folder).iterdir()):
            token = sha256(path.read_bytes()).hexdigest()[:8]
            with attempt.create_final(path.name, f"data/last-{token}.{path.name}") as file:
                file.write(path.read_bytes())
        attempt.count({"ok": 0})


def picture(number: int) -> np.ndarray:
    """uint8 (height, width, 3): coarse blocks of colour, of another shape for every number."""
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, 256, (int(rng.integers(2, 6)), int(rng.integers(2, 6)), 3), dtype=np.uint8)
    return blocks.repeat(12, 0).repeat(12, 1)


def png(number: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(picture(number)).save(sink, "PNG")
    return sink.getvalue()
