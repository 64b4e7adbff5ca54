"""Text that stands in images: where it is, what it says, and what an image is worth without it.

Many web captions only repeat what is written in their image, and CLIP rewards them for it. The rule of T-MARS (Maini et
al. 2023, arXiv 2307.03132) is to mask the text, embed the image again and drop the pairs that no longer fit:

    - stages.text_in_image.TextInImage: {}
    - stages.text_in_image.MaskedImageEmbeddings: {weights: openai/clip-vit-base-patch32}
    - stages.score.ClipScore: {image: masked_image_embedding, name: masked_clip_score}
    …
    - more_than_its_text: coalesce(masked_clip_score, clip_score) >= 0.28
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.errors import SluiceError
from pipeline.stage import PIXELS, Batch, Device, PartStage
from stages.kit.embeddings import Embeddings

if TYPE_CHECKING:
    from rapidocr import RapidOCR

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]
Quad = Sequence[float]
"""x and y of four corners, from the upper left of the text clockwise, in shares of the image's width and height."""

QUADS = pa.list_(pa.list_(pa.float32(), 8))
LEAST_SIDE, MOST_ASPECT = 8, 40
"""Pixels, and long side over short side: there is no text in what is smaller or thinner."""
RING = 5
"""Pixels around a text whose average colour takes its place."""


class Text(NamedTuple):
    """The text of one image, in the order of the columns."""

    text_boxes: list[list[float]]
    text_in_image: list[str]
    text_area: float
    text_confidence: float | None


class TextInImage(PartStage):
    """Add four columns to every image; null where there is none.

    - `text_boxes`: one for every line of text, downwards; eight numbers each, as `Quad` has them.
    - `text_in_image`: what the lines say, in the same order.
    - `text_area`: the share of the image's area that the boxes cover, 0 to 1.
    - `text_confidence`: the mean of the reader's confidences, 0 to 1; null where there is no text.

    Found and read by PP-OCRv6 small (Apache-2.0; Chinese, Japanese and Latin scripts) through RapidOCR, whose wheel has
    the weights; text upside down is found and misread. An image of 640 px takes 0.3 s of CPU, one full of text twice
    that. Needs the extra `ocr`.
    """

    promise = "numeric"
    grain = "image"
    reads = frozenset({PIXELS})
    adds = pa.schema(
        [
            ("text_boxes", QUADS),
            ("text_in_image", pa.list_(pa.string())),
            ("text_area", pa.float32()),
            ("text_confidence", pa.float32()),
        ]
    )

    side: int = Field(default=736, ge=32)
    """Pixels of the longer side at which text is looked for; larger images are reduced, smaller ones left."""
    confidence: float = Field(default=0.5, ge=0, le=1)
    """Lines that the reader is less sure of are no text."""
    letters: int = Field(default=2, ge=1)
    """Lines of fewer letters and digits are no text: a disc is read as `O`, a cross as `+`."""

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        reader = _reader(self.side, self.confidence)
        threads = ThreadPoolExecutor(device.threads)

        def one(image_hwc: Pixels | None) -> dict[str, object]:
            text = None if image_hwc is None else read(image_hwc, reader, self.letters)
            return dict.fromkeys(self.adds.names) if text is None else text._asdict()

        def look(batch: Batch) -> pa.Table:
            return pa.Table.from_pylist(list(threads.map(one, batch.images())), schema=self.adds)

        return look


class MaskedImageEmbeddings(Embeddings):
    """Add `masked_image_embedding` to every image with text: that of the image with its `text_boxes` painted over.

    Each box takes the average colour of the pixels around it, as in T-MARS. Null where the image has no text, since its
    own embedding stands, and where there is no image.
    """

    grain = "image"
    reads = frozenset({PIXELS, "text_boxes"})
    column = "masked_image_embedding"

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        model = self.model(device)
        threads = ThreadPoolExecutor(device.threads) if device.threads > 1 or device.kind != "cpu" else None

        def embed(batch: Batch) -> pa.Table:
            rows = zip(batch.images(), batch.table["text_boxes"].to_pylist(), strict=True)
            painted = [painted_over(image, boxes) if image is not None and boxes else None for image, boxes in rows]
            there = [image for image in painted if image is not None]
            return self.table(
                lambda: model.embed_images(there, self.batch, threads), [image is not None for image in painted]
            )

        return embed


def _reader(side: int, confidence: float) -> RapidOCR:
    try:
        from rapidocr import RapidOCR
    except ImportError:
        raise SluiceError("reading text needs RapidOCR; install it: pip install 'sluice[ocr]'") from None
    return RapidOCR(
        params={
            "Global.log_level": "error",  # it warns of every image without text
            "Global.text_score": confidence,
            "Global.use_cls": False,
            "Global.use_preprocess_img": False,  # it refuses what is long and thin
            "Det.limit_type": "max",
            "Det.limit_side_len": side,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,  # images are what is spread over threads
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def read(image_hwc: Pixels, reader: RapidOCR, letters: int) -> Text:
    """The lines of one RGB image, uint8 (height, width, 3), that have so many letters or digits."""
    height, width = image_hwc.shape[:2]
    if min(height, width) < LEAST_SIDE or max(height, width) > MOST_ASPECT * min(height, width):
        return Text([], [], 0.0, None)
    found = reader(np.ascontiguousarray(image_hwc[..., ::-1]))
    boxes_n42, texts, sure = (getattr(found, name, None) for name in ("boxes", "txts", "scores"))  # where it read none
    told = [] if boxes_n42 is None or texts is None else zip(boxes_n42, texts, sure or (), strict=True)
    lines = [line for line in told if sum(map(str.isalnum, line[1])) >= letters]
    if not lines:
        return Text([], [], 0.0, None)
    quads_n42 = np.array([quad for quad, _, _ in lines], np.float64) / (width, height)
    boxes = [quad.ravel().tolist() for quad in quads_n42.clip(0, 1)]
    area = float(mask_of(boxes, height, width).mean())
    return Text(boxes, [text for _, text, _ in lines], area, float(np.mean([score for _, _, score in lines])))


def mask_of(boxes: Iterable[Quad], height: int, width: int) -> Mask:
    """uint8 (height, width): 1 where a box is."""
    mask_hw: Mask = np.zeros((height, width), np.uint8)
    for box in boxes:
        corners = np.rint(np.reshape(box, (4, 2)) * (width, height)).astype(np.int32)
        cv2.fillPoly(mask_hw, [corners], (1,))
    return mask_hw


def painted_over(image_hwc: Pixels, boxes: Sequence[Quad]) -> Pixels:
    """A copy in which every box has the average colour of the `RING` px around it that no box covers."""
    height, width = image_hwc.shape[:2]
    painted, every_hw = image_hwc.copy(), mask_of(boxes, height, width)
    free = image_hwc[every_hw == 0]
    everywhere = free.mean(axis=0) if len(free) else image_hwc.mean(axis=(0, 1))
    kernel = np.ones((2 * RING + 1, 2 * RING + 1), np.uint8)
    for box in boxes:
        box_hw = mask_of([box], height, width)
        ring_hw = (cv2.dilate(box_hw, kernel) == 1) & (every_hw == 0)
        painted[box_hw == 1] = np.rint(image_hwc[ring_hw].mean(axis=0) if ring_hw.any() else everywhere)
    return painted
