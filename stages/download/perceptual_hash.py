"""What a picture looks like, in 64 bits: copies of it lie a few bits apart, and other pictures about 32.

The hash of Zauner 2010 (Implementation and Benchmarking of Perceptual Image Hash Functions, section 3.2.1) as the
libraries imagehash and imagededup compute it: a gray square of 32 x 32 pixels, its discrete cosine transform, the
lowest 8 x 8 coefficients, and for each of them whether it lies above their median.
"""

import numpy as np

from stages.download.decode import GRAY_SIDE

LOWEST = 8
SCALE = 1 << 16
"""The cosines are whole numbers of this unit, so that every sum is exact in float64: the same bits on any machine, and
a flat picture has no noise around its zeros."""

BASIS_un = np.round(SCALE * np.cos(np.pi / (2 * GRAY_SIDE) * np.outer(np.arange(LOWEST), 2 * np.arange(GRAY_SIDE) + 1)))
"""DCT-II, not normalised, as scipy has it by default and so those libraries."""


def perceptual_hash(gray: bytes) -> int:
    """64 bits of a square of 32 x 32 gray pixels, row by row. Raises `ValueError` for another number of pixels.

    The highest bit is the mean of the picture, the next seven are its lowest horizontal frequencies.
    """
    if len(gray) != GRAY_SIDE**2:
        raise ValueError(f"{len(gray)} gray pixels instead of {GRAY_SIDE**2}")
    gray_nn = np.frombuffer(gray, np.uint8).reshape(GRAY_SIDE, GRAY_SIDE)
    lowest = (BASIS_un @ gray_nn @ BASIS_un.T).ravel()
    middle = np.sort(lowest)[LOWEST * LOWEST // 2 - 1 : LOWEST * LOWEST // 2 + 1].sum() / 2
    return int.from_bytes(np.packbits(lowest > middle).tobytes(), "big")
