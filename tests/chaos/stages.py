"""Toy stages for faults: files under final names, bulk that fills a disk, a crash that passes."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.attempt import Attempt
from pipeline.records import Record
from pipeline.stage import Batch, Device, Job, PartStage, Task, Work
from stages.kit.tar import TarWriter


class Bundle(Job):
    """A text file per part with the uids in it and `kb` KiB of noise, as `data/bundle-<part>.txt`."""

    promise = "pure"

    kb: int = 0

    def assemble(self, work: Work) -> list[Record]:
        source = next(iter(work.inputs.values()))
        tasks = [
            Task(record.part, inputs={source.node: (record,)}, rows=record.rows["image"]) for record in source.records
        ]
        return work.map("bundle", tasks, self.bundle)

    def bundle(self, task: Task, attempt: Attempt) -> None:
        (records,) = task.inputs.values()
        uids = attempt.read(records[0], "image", ["uid"]).column("uid").to_pylist()
        sink = attempt.create_final("bundle", f"data/bundle-{task.part}.txt")
        sink.write("\n".join(uids).encode())
        sink.write(noise(len(uids), self.kb))
        attempt.count({"ok": len(uids)})


class Bulk(PartStage):
    """Adds `noise`, `kb` KiB a row."""

    promise = "pure"
    grain = "image"
    reads = frozenset({"n"})
    adds = pa.schema([("noise", pa.binary())])

    kb: int = 64

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        return lambda batch: pa.table({"noise": pa.array([noise(n, self.kb) for n in batch.table["n"].to_pylist()])})


class Faints(PartStage):
    """Adds `awake` = n, but SIGKILLs its process the first `times` that it is asked; `log` counts them."""

    promise = "pure"
    grain = "image"
    reads = frozenset({"n"})
    adds = pa.schema([("awake", pa.int64())])

    times: int = 3
    log: str

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def faint(batch: Batch) -> pa.Table:
            with Path(self.log).open("a+") as handle:
                handle.seek(0)
                fainted = len(handle.readlines())
                if fainted < self.times:
                    handle.write(f"{os.getpid()}\n")
            if fainted < self.times:
                os.kill(os.getpid(), signal.SIGKILL)
            return pa.table({"awake": batch.table["n"].cast(pa.int64())})

        return faint


def noise(seed: int, kb: int) -> bytes:
    """The same `kb` KiB for the same seed; they cannot be compressed."""
    return np.random.default_rng(seed).bytes(kb << 10)


class Pictures(Job):
    """One shard of coloured squares and what they show, for a training."""

    promise = "pure"

    samples: int

    def assemble(self, work: Work) -> list[Record]:
        return work.map("write", [Task("00000000", rows=self.samples)], self.write)

    def write(self, task: Task, attempt: Attempt) -> None:
        tar = TarWriter(attempt.create_final("shard", f"data/squares-{self.samples}/00000000.tar"))
        for number in range(self.samples):
            sink = io.BytesIO()
            colour = ("red", "green", "blue", "white")[number % 4]
            Image.new("RGB", (16 + number % 5, 16), colour).save(sink, "JPEG")
            tar.add([(f"{number:04d}.jpg", sink.getvalue()), (f"{number:04d}.txt", f"a {colour} square".encode())])
        tar.finish()
        attempt.count({"written": self.samples})
