"""Tiny stages for tests of the engine: numbers instead of images."""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.attempt import Attempt
from pipeline.records import Record
from pipeline.stage import OBSERVED, Batch, Column, Device, File, PartStage, PoolPart, PoolStage, TableStage, Task, Work

IMAGE = pa.schema([("uid", pa.string()), ("url", pa.string()), ("n", pa.int64())])
CAPTION = pa.schema(
    [("uid", pa.string()), ("caption_id", pa.string()), ("caption", pa.string()), ("source", pa.string())]
)


def uid_of(number: int) -> str:
    return blake2b(str(number).encode(), digest_size=16).hexdigest()


class Numbers(TableStage):
    """A source: `rows` rows in `parts` parts; the row n has the number n and `captions` captions."""

    promise = "pure"

    rows: int = 100
    parts: int = 4
    captions: int = 1
    limit: int | None = None

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        return {"image": IMAGE, "caption": CAPTION}

    def assemble(self, work: Work) -> list[Record]:
        rows = min(self.rows, self.limit or self.rows)
        tasks = [
            Task(f"000-{part:05d}", {"part": part, "rows": rows}, rows=rows // self.parts) for part in range(self.parts)
        ]
        return work.map("make", tasks, self.make)

    def make(self, task: Task, attempt: Attempt) -> None:
        numbers = list(range(task.payload["part"], task.payload["rows"], self.parts))
        uids = [uid_of(number) for number in numbers]
        attempt.write("image", pa.table([uids, [f"http://toy/{n}" for n in numbers], numbers], schema=IMAGE))
        rows = [
            {"uid": uid, "caption_id": uid_of(1000 * number + k), "caption": f"{number} is number {k}", "source": "web"}
            for uid, number in zip(uids, numbers, strict=True)
            for k in range(self.captions)
        ]
        attempt.write("caption", pa.Table.from_pylist(rows, schema=CAPTION))
        attempt.count({"ok": len(numbers)})


class Times(PartStage):
    """Adds `product` = n · factor."""

    promise = "pure"
    grain = "image"
    reads = frozenset({"n"})
    adds = pa.schema([("product", pa.int64())])

    factor: int = 2

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def multiply(batch: Batch) -> pa.Table:
            return pa.table({"product": pa.array([n * self.factor for n in batch.table["n"].to_pylist()], pa.int64())})

        return multiply


class Label(PartStage):
    """Adds to every caption `label` = the caption and its image's product."""

    promise = "pure"
    grain = "caption"
    reads = frozenset({"product", "caption"})
    adds = pa.schema([("label", pa.string())])

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def label(batch: Batch) -> pa.Table:
            pairs = zip(batch.table["caption"].to_pylist(), batch.table["product"].to_pylist(), strict=True)
            return pa.table({"label": pa.array([f"{caption}: {product}" for caption, product in pairs], pa.string())})

        return label


class Poison(PartStage):
    """Adds `m` = n, but fails on the numbers in `bad`: raises, or kills its process."""

    promise = "pure"
    grain = "image"
    reads = frozenset({"n"})
    adds = pa.schema([("m", pa.int64())])

    bad: tuple[int, ...] = (17,)
    how: str = "raise"

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def copy(batch: Batch) -> pa.Table:
            import os
            import signal

            numbers = batch.table["n"].to_pylist()
            found = set(numbers) & set(self.bad)
            if found and self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if found:
                raise ValueError(f"cannot bear {min(found)}")
            return pa.table({"m": pa.array(numbers, pa.int64())})

        return copy


class Listed(PartStage):
    """Adds `listed`: whether the number stands in the file `numbers`, one a line."""

    promise = "pure"
    grain = "image"
    reads = frozenset({"n"})
    adds = pa.schema([("listed", pa.bool_())])

    numbers: File

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        import fsspec

        with fsspec.open(self.numbers, "rt") as handle:
            listed = {int(line) for line in handle if line.strip()}

        def look(batch: Batch) -> pa.Table:
            return pa.table({"listed": pa.array([n in listed for n in batch.table["n"].to_pylist()], pa.bool_())})

        return look


class Slow(PartStage):
    """Adds `slow` = n, after `seconds` a batch; appends a line to `log` for every batch."""

    promise = "pure"
    grain = "image"
    reads = frozenset({"n"})
    adds = pa.schema([("slow", pa.int64())])

    seconds: float = 0.1
    log: str | None = None

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def wait(batch: Batch) -> pa.Table:
            import os
            import time

            time.sleep(self.seconds)
            if self.log:
                with Path(self.log).open("a") as handle:
                    handle.write(f"{os.getpid()} {batch.table.num_rows}\n")
            return pa.table({"slow": batch.table["n"].cast(pa.int64())})

        return wait


class Fetch(PoolStage):
    """A pool without a network: numbers divisible by `fails` are `http_503` until the file `answers` exists."""

    promise = "observed"
    adds = pa.schema(
        [
            ("status", pa.string()),
            ("sha256", pa.string()),
            ("width", pa.int32()),
            pa.field("offset", pa.int64(), metadata=OBSERVED),
            pa.field("nbytes", pa.int64(), metadata=OBSERVED),
            ("stored_sha256", pa.string()),
            pa.field("seconds", pa.float64(), metadata=OBSERVED),
            pa.field("fetched_at", pa.timestamp("s"), metadata=OBSERVED),  # of a unit that Parquet does not have
        ]
    )
    retryable = frozenset({"http_503", "lost", "quarantined"})
    remembered = frozenset({"sha256"})

    fails: int = 10
    answers: str = ""

    def open(self, device: Device) -> Callable[[PoolPart], pa.Table]:
        def fetch(part: PoolPart) -> pa.Table:
            import hashlib
            import time

            up = bool(self.answers) and Path(self.answers).exists()
            rows: list[dict[str, Any]] = []
            with part.create("tar") as tar:
                for number in part.image.column("n").to_pylist():
                    if number % self.fails == 0 and not up:
                        rows.append({"status": "http_503", "seconds": time.monotonic()})
                        continue
                    data = f"image {number}".encode()
                    sha = hashlib.sha256(data).hexdigest()
                    offset = tar.tell()
                    tar.write(data)
                    rows.append(
                        {
                            "status": "success", "sha256": sha, "width": number, "offset": offset, "nbytes": len(data),
                            "stored_sha256": sha, "seconds": time.monotonic(),
                        }
                    )  # fmt: skip
            return pa.Table.from_pylist(rows, schema=self.adds)

        return fetch
