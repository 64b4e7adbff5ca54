"""Options for decoding, and what is measured of pictures."""

from typing import Any

import numpy as np

from stages.download.decode import Options


def options(**changes: Any) -> Options:
    """Those of `Download` by default, but for `changes`."""
    defaults = {
        "resize": "keep_ratio_largest",
        "side": 512,
        "resize_only_if_bigger": True,
        "passthrough": False,
        "quality": 95,
        "max_pixels": 50_000_000,
    }
    return Options(**{**defaults, **changes})


def psnr(one_hwc: np.ndarray, other_hwc: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pixels in dB; infinite for equal ones."""
    mean = float(((one_hwc.astype(np.float64) - other_hwc) ** 2).mean())
    return 10 * float(np.log10(255**2 / mean)) if mean else float("inf")
