"""What can be measured of an image without a model: light, contrast, sharpness, entropy, colour, shape."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from pydantic import Field

from pipeline.stage import PIXELS, Batch, Device, PartStage

SHARPNESS_SIDE = 256
"""Longest side in px at which sharpness is measured: the Laplacian of one motif falls as its image grows."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Measures:
    """The measures of one image, in the order of the columns."""

    brightness: float
    contrast: float
    sharpness: float | None
    entropy: float
    colourfulness: float
    aspect_ratio: float
    blank: bool


class ImageQuality(PartStage):
    """Add seven measures to every image; null where there is none. Luma is ITU-R BT.601, as Pillow rounds it.

    - `brightness`: mean luma, 0 (black) to 1 (white).
    - `contrast`: standard deviation of luma, 0 to 0.5.
    - `sharpness`: variance of the Laplacian (Pech-Pacheco et al. 2000) of luma in 0..255, four neighbours, without the
      border; larger images are first reduced to `SHARPNESS_SIDE`. Null where a side is below 3 px.
    - `entropy`: of the histogram of luma, 0 to 8 bits.
    - `colourfulness`: Hasler & Süsstrunk 2003, section 7; grey is 0, extremely colourful about 109.
    - `aspect_ratio`: long side over short side, at least 1.
    - `blank`: no channel spans more than `blank_span` of its 255 levels, as in a placeholder.

    All sums are over integers, so they are exact; what may differ is how a libjpeg decodes.
    """

    promise = "numeric"
    grain = "image"
    reads = frozenset({PIXELS})
    adds = pa.schema(
        [
            ("brightness", pa.float32()),
            ("contrast", pa.float32()),
            ("sharpness", pa.float32()),
            ("entropy", pa.float32()),
            ("colourfulness", pa.float32()),
            ("aspect_ratio", pa.float32()),
            ("blank", pa.bool_()),
        ]
    )

    blank_span: int = Field(default=8, ge=0, le=255)
    """Levels that a channel of a blank image may span: JPEG leaves a few where nothing was drawn."""

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        nothing: dict[str, float | None] = dict.fromkeys(self.adds.names)

        def row(image_hwc: Pixels | None) -> dict[str, float | None]:
            return nothing if image_hwc is None else asdict(measure(image_hwc, self.blank_span))

        def measures(batch: Batch) -> pa.Table:
            with ThreadPoolExecutor(device.threads) as threads:
                return pa.Table.from_pylist(list(threads.map(row, batch.images())), schema=self.adds)

        return measures


def measure(image_hwc: Pixels, blank_span: int) -> Measures:
    """All measures of one RGB image, uint8 (height, width, 3)."""
    height, width = image_hwc.shape[:2]
    luma = Image.fromarray(image_hwc).convert("L")
    levels = np.array(luma.histogram(), np.int64)
    mean, deviation = _moments(levels)
    return Measures(
        brightness=mean / 255,
        contrast=deviation / 255,
        sharpness=sharpness(luma),
        entropy=entropy(levels),
        colourfulness=colourfulness(image_hwc),
        aspect_ratio=max(height, width) / min(height, width),
        blank=all(int(channel.max()) - int(channel.min()) <= blank_span for channel in np.moveaxis(image_hwc, 2, 0)),
    )


def sharpness(luma: Image.Image) -> float | None:
    """Variance of the Laplacian over the inner pixels; None where there are none."""
    scale = SHARPNESS_SIDE / max(luma.size)
    if scale < 1:
        reduced = tuple(max(1, round(side * scale)) for side in luma.size)
        luma = luma.resize((reduced[0], reduced[1]), Image.Resampling.BOX)  # of Pillow's filters, the least change
    if min(luma.size) < 3:
        return None
    y_hw = np.asarray(luma).astype(np.int16)
    laplacian_hw = y_hw[:-2, 1:-1] + y_hw[2:, 1:-1] + y_hw[1:-1, :-2] + y_hw[1:-1, 2:] - 4 * y_hw[1:-1, 1:-1]
    return _spread(laplacian_hw)[1]


def entropy(levels: npt.NDArray[np.int64]) -> float:
    """Bits of a histogram of counts."""
    shares = levels[levels > 0] / levels.sum()
    return abs(float(-(shares * np.log2(shares)).sum()))  # abs: one level alone gives -0.0


def colourfulness(image_hwc: Pixels) -> float:
    """The spread of the opponent colours plus 0.3 of their mean's distance from grey (Hasler & Süsstrunk 2003)."""
    red_hw, green_hw, blue_hw = (image_hwc[..., channel].astype(np.int16) for channel in range(3))
    mean_rg, variance_rg = _spread(red_hw - green_hw)
    mean_2yb, variance_4yb = _spread(red_hw + green_hw - 2 * blue_hw)  # doubled, to stay with integers
    spread = (variance_rg + variance_4yb / 4) ** 0.5
    return float(spread + 0.3 * (mean_rg**2 + mean_2yb**2 / 4) ** 0.5)


def _moments(levels: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Mean and standard deviation of a histogram of counts; exact up to the last division."""
    values = np.arange(len(levels))
    count, total, squares = int(levels.sum()), int(levels @ values), int(levels @ values**2)
    return total / count, (count * squares - total**2) ** 0.5 / count


def _spread(numbers: npt.NDArray[np.int16]) -> tuple[float, float]:
    """Mean and variance of integers; exact up to the last division, so that no order of summing matters."""
    count, total = numbers.size, int(numbers.sum(dtype=np.int64))
    flat = numbers.ravel().astype(np.int32)
    squares = int(np.einsum("n,n->", flat, flat, dtype=np.int64))
    return total / count, (count * squares - total**2) / count**2
