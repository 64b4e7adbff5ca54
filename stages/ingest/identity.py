"""Who an image and a caption are: 32 hex characters of BLAKE2b-128 over the URL, over the text."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import pyarrow as pa


def identify(data: bytes) -> str:
    """The `uid` of a URL's bytes, the `caption_id` of a text's."""
    return blake2b(data, digest_size=16).hexdigest()


NO_CAPTION = identify(b"")
"""The `caption_id` of an image without a caption."""


def identify_all(values: Iterable[bytes | None]) -> pa.Array:
    """`identify` for many, null for null."""
    return pa.array([None if v is None else blake2b(v, digest_size=16).hexdigest() for v in values], pa.string())


def places(uids: pa.Array) -> pa.Array:
    """uint64: the leading half of every uid, by which rows spread over buckets. No uid may be null."""
    halves = bytes.fromhex("".join(uid[:16] for uid in uids.to_pylist()))
    return pa.array(np.frombuffer(halves, dtype=">u8").astype(np.uint64))
