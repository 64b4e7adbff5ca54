"""How often a host is asked again, and after which pause."""

import random
from datetime import UTC, datetime

from stages.download.dates import date_of
from stages.download.hosts import MAX_PAUSE_S
from stages.download.statuses import FetchError

BACKOFF_S = 0.5
"""The first pause; it doubles, and half of it either way is chance, so that many rows do not come back at once."""

TRIES: dict[str, int] = {
    "http": 10,  # 408, 425, 429 and 5xx: the host says itself that it is a matter of time
    "truncated_body": 10,  # networks cut connections, and proxies under load do
    "dns_error": 10,  # EAI_AGAIN only: a resolver that is overworked. A name that does not exist is asked for once
    "connection_error": 2,  # a reset may be chance, a port that is closed stays closed for longer than we wait
    "timeout": 1,  # it has cost the most time of all already, and slow hosts are slow for hours
    "tls_error": 1,  # certificates are not mended within seconds
}
"""How often a row is tried at most, by the class of its failure; `tries` bounds all of them. All others: once.

An answer that is no HTTP, 501 and 505 are never tried again, whatever their class: they say what the host is.
"""
NEVER = frozenset({"http_501", "http_505"})


def tries_of(failure: FetchError, tries: int) -> int:
    """How many tries a row that failed so may have had in all, before it ends."""
    if not failure.again or failure.status in NEVER:
        return 1
    return min(tries, TRIES.get("http" if failure.status.startswith("http_") else failure.status, 1))


def backoff_s(tried: int) -> float:
    """Seconds to wait after the `tried`-th try."""
    return min(BACKOFF_S * 2.0 ** (tried - 1) * random.uniform(0.5, 1.5), MAX_PAUSE_S)


def retry_after_s(header: str | None) -> float | None:
    """Seconds in a Retry-After header, given as a number or as a date; None when there is none that can be read."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_PAUSE_S)
    until = date_of(text)
    if until is None:
        return None
    return min(max((until - datetime.now(UTC)).total_seconds(), 0.0), MAX_PAUSE_S)
