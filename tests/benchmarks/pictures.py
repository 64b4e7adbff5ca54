"""A pool without a network: every row gets one of a few JPEGs of noise and gradients; only sluice is measured."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.stage import OBSERVED, Device, PoolPart, PoolStage

MOTIFS = 64


class Pictures(PoolStage):
    """Writes JPEGs of `side` px, quality 90."""

    promise = "pure"
    adds = pa.schema(
        [
            ("status", pa.string()),
            ("sha256", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            pa.field("offset", pa.int64(), metadata=OBSERVED),
            pa.field("nbytes", pa.int64(), metadata=OBSERVED),
            pa.field("stored_sha256", pa.string(), metadata=OBSERVED),
        ]
    )

    side: int = 256

    def open(self, device: Device) -> Callable[[PoolPart], pa.Table]:
        jpegs = [jpeg(self.side, seed) for seed in range(MOTIFS)]
        digests = [hashlib.sha256(data).hexdigest() for data in jpegs]

        def write(part: PoolPart) -> pa.Table:
            rows: list[dict[str, Any]] = []
            with part.create("tar") as tar:
                for row in range(part.image.num_rows):
                    data, sha = jpegs[row % MOTIFS], digests[row % MOTIFS]
                    facts = {"status": "success", "sha256": sha, "width": self.side, "height": self.side}
                    rows.append(facts | {"offset": tar.tell(), "nbytes": len(data), "stored_sha256": sha})
                    tar.write(data)
            return pa.Table.from_pylist(rows, schema=self.adds)

        return write


def jpeg(side: int, seed: int) -> bytes:
    """About as many bytes as a photograph of this size has."""
    rng = np.random.default_rng(seed)
    y_hw, x_hw = np.mgrid[0:side, 0:side] / side
    waves_hwc = np.stack([np.sin(8 * (x_hw * a + y_hw * b)) for a, b in rng.uniform(0, 3, (3, 2))], axis=-1)
    noisy_hwc = 128 + 90 * waves_hwc + rng.normal(0, 12, (side, side, 3))
    sink = io.BytesIO()
    Image.fromarray(noisy_hwc.clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=90)
    return sink.getvalue()
