"""What of an image stands out where, as a unit vector: copies are near each other, cropped ones too, without a model.

    looks:
      from: pool
      steps: [{stages.copy_embedding.CopyEmbedding: {}}]
    copies:
      from: [pool, looks]
      steps: [{stages.dedup.NearDuplicates: {perceptual_bits: 4, embedding: copy_embedding, cosine: 0.85}}]

A perceptual hash says where an image is light and where dark. A crop moves all of that by a few per cent of the side
and changes the hash in many bits; and of one thing on a striped ground it sees the stripes. Here a pixel counts by how
rare its colour is in its image (the self-information of Bruce & Tsotsos 2009), so that the things count and the ground
does not. Where the things are that are lighter, darker, redder, greener, yellower or bluer than most of the image is
six maps, of which the lowest frequencies are kept: a shift by a few per cent changes those little. What colours there
are at all and how wide the image is for its height go into the vector, too.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.stage import PIXELS, Batch, Device, PartStage

SIDE = 64
"""Px: the square to which every image is brought first."""
SOFT = 0.7
"""Standard deviation in px of the blur that takes the noise."""
FINE, COARSE = 16, 4
"""Steps of a channel by which a colour is rare or common, and by which two images have the same colours."""
COMMON, RAREST = 0.1, 1e-4
"""Shares of the image: a colour that fills so much is ground, and no colour is rarer than the other."""
FREQUENCIES = 5
"""Of each map in each direction, the lowest; without the mean."""
BLUR = 0.12
"""Share of the side by which the maps are blurred, as a Gaussian: what a crop may shift."""
LAYOUT, COLOURS, SHAPE = 0.55, 0.25, 0.2
"""What maps, colours and aspect ratio have in the square of the length, and so in a cosine."""
TURN = 3.0
"""Radians by which the aspect ratio turns its part of the vector, per unit of its logarithm."""
WIDTH = 6 * (FREQUENCIES**2 - 1) + COARSE**3 + 2

TURNS_f = np.pi * np.arange(FREQUENCIES)
BLURRED_f1 = np.exp(-0.5 * (TURNS_f[:, None] * BLUR) ** 2)
BLURRED_f1[0] *= 0.5**0.5
BASIS_fs = (BLURRED_f1 * np.cos(np.outer(TURNS_f, np.arange(SIDE) + 0.5) / SIDE)).astype(np.float32)
"""A cosine transform after a Gaussian blur."""
OPPONENTS = np.array([[0.299, 0.587, 0.114], [0.5, -0.5, 0.0], [0.25, 0.25, -0.5]], np.float32)
"""Brightness, red less green, yellow less blue."""
NEAR = np.array([0.25, 0.5, 0.25], np.float32)

Levels = npt.NDArray[np.float32]


class CopyEmbedding(PartStage):
    """Add `copy_embedding`, a unit vector of 210 float16, to every image; null where there is none."""

    promise = "numeric"
    grain = "image"
    reads = frozenset({PIXELS})
    adds = pa.schema([("copy_embedding", pa.list_(pa.float16(), WIDTH))])

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def row(image_hwc: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.float16] | None:
            return None if image_hwc is None else embedding(image_hwc)

        def embeddings(batch: Batch) -> pa.Table:
            with ThreadPoolExecutor(device.threads) as threads:
                rows = list(threads.map(row, batch.images()))
            return pa.table([pa.array(rows, self.adds.field(0).type)], schema=self.adds)

        return embeddings


def embedding(image_hwc: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
    """Of one RGB image, uint8 (height, width, 3). Where nothing stands out, the maps are zeros."""
    small = cv2.resize(image_hwc, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    rgb_ssc = cv2.GaussianBlur(small, (0, 0), SOFT).astype(np.float32)
    angle = TURN * np.log(image_hwc.shape[1] / image_hwc.shape[0])
    parts = (
        LAYOUT**0.5 * _unit(_layout(rgb_ssc)),
        COLOURS**0.5 * _unit(np.sqrt(_shares(_steps(rgb_ssc, COARSE), COARSE)).ravel()),
        SHAPE**0.5 * np.array([np.cos(angle), np.sin(angle)]),
    )
    return _unit(np.concatenate(parts)).astype(np.float16)


def _layout(rgb_ssc: Levels) -> Levels:
    """The lowest frequencies of where what stands out is."""
    steps = _steps(rgb_ssc, FINE)
    shares = _shares(steps, FINE)[tuple(np.moveaxis(steps, 2, 0))]
    rarity = np.maximum(np.log(COMMON / np.maximum(shares, RAREST)), 0)
    opponents = cv2.transform(rgb_ssc, OPPONENTS)
    apart = np.moveaxis((opponents - np.median(opponents, axis=(0, 1))) * rarity[..., None], 2, 0)
    maps_mss = np.concatenate([np.maximum(apart, 0), np.maximum(-apart, 0)])
    lowest = BASIS_fs @ maps_mss @ BASIS_fs.T
    return np.asarray(lowest.reshape(len(maps_mss), -1)[:, 1:].ravel(), np.float32)


def _steps(rgb_ssc: Levels, steps: int) -> npt.NDArray[np.int64]:
    return np.asarray(np.minimum(rgb_ssc * (steps / 256), steps - 1), np.int64)


def _shares(steps_ssc: npt.NDArray[np.int64], steps: int) -> Levels:
    """The share of the image that each colour has, and its neighbours half as much: (steps, steps, steps)."""
    codes = steps_ssc @ [steps * steps, steps, 1]
    counts = np.bincount(codes.ravel(), minlength=steps**3).reshape(steps, steps, steps) / codes.size
    for axis in range(3):
        rim = [(1, 1) if axis == other else (0, 0) for other in range(3)]
        padded = np.pad(counts, rim)
        counts = sum(NEAR[n] * np.take(padded, range(n, n + steps), axis=axis) for n in range(3))
    return np.asarray(counts, np.float32)


def _unit(vector: npt.NDArray[np.floating]) -> Levels:
    length = float(np.linalg.norm(vector))
    return np.asarray(vector / length if length > 0 else vector, np.float32)
