"""Bodies: what is counted, and what is held."""

import gzip
import tracemalloc

import pytest

from stages.download.body import Body
from stages.download.statuses import FetchError


def test_what_comes_behind_a_gzip_stream_is_dropped() -> None:
    body = Body("gzip", 1_000)
    body.feed(gzip.compress(b"whole") + b"\0" * 10)
    body.feed(b"\0" * 900)
    assert body.finish() == b"whole"


def test_what_comes_behind_a_gzip_stream_counts_and_is_not_held() -> None:
    """zlib keeps every byte that it is given after the end: a host could send hundreds of megabytes."""
    body = Body("gzip", 1_000_000)
    body.feed(gzip.compress(b"x"))
    tracemalloc.start()
    try:
        for _ in range(15):
            body.feed(bytes(64 << 10))
        with pytest.raises(FetchError, match="too_large"):
            body.feed(bytes(64 << 10))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 300_000
