"""A pool of rendered pictures for whole runs: pairs of copies, and pairs of look-alikes with the same hash."""

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.stage import OBSERVED, Batch, Device, Grain, PartStage, PoolPart, PoolStage, Promise
from stages.kit.vectors import vector_type, vectors
from tests.stages.dedup.copies import Pair, scene_pairs

KINDS = ("reencoded", "resized", "trimmed", "recoloured", "greyscale", "other colour", "other count", "other scene")


@lru_cache
def pairs() -> list[Pair]:
    return [pair for pair in scene_pairs(9, 1, "small") if pair[0] in KINDS]


class Scenes(PoolStage):
    """Row n shows one end of pair n // 2; both ends have the same hash."""

    promise: ClassVar[Promise] = "pure"
    adds = pa.schema(
        [
            ("status", pa.string()),
            ("sha256", pa.string()),
            ("phash", pa.uint64()),
            pa.field("offset", pa.int64(), metadata=OBSERVED),
            pa.field("nbytes", pa.int64(), metadata=OBSERVED),
            ("stored_sha256", pa.string()),
        ]
    )

    def open(self, device: Device) -> Callable[[PoolPart], pa.Table]:
        def write(part: PoolPart) -> pa.Table:
            rows: list[dict[str, Any]] = []
            with part.create("tar") as tar:
                for number in part.image["n"].to_pylist():
                    data = pairs()[number // 2][2 + number % 2]
                    sha = sha256(data).hexdigest()
                    code = int.from_bytes(sha256(str(number // 2).encode()).digest()[:8], "big")
                    rows.append({"status": "success", "sha256": sha, "stored_sha256": sha, "phash": code})
                    rows[-1] |= {"offset": tar.tell(), "nbytes": len(data)}
                    tar.write(data)
            return pa.Table.from_pylist(rows, schema=self.adds)

        return write


class Vectors(PartStage):
    """Both ends of a pair have nearly the same embedding."""

    promise: ClassVar[Promise] = "pure"
    grain: ClassVar[Grain] = "image"
    reads = frozenset({"n"})
    adds = pa.schema([("image_embedding", vector_type(32))])

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def embed(batch: Batch) -> pa.Table:
            numbers = batch.table["n"].to_pylist()
            rows = [
                np.random.default_rng(n // 2).normal(size=32) + 0.01 * np.random.default_rng([n]).normal(size=32)
                for n in numbers
            ]
            rows_nd = np.array(rows, np.float32).reshape(-1, 32)
            unit_nd = rows_nd / np.linalg.norm(rows_nd, axis=1, keepdims=True)
            return pa.table([vectors(unit_nd, np.ones(len(numbers), bool))], schema=self.adds)

        return embed
