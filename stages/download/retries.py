"""How often a host is asked again, and after which pause."""

import asyncio
import random
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

BACKOFF_S = 0.5
"""The first pause; it doubles, and half of it either way is chance, so that many rows do not come back at once."""
MAX_PAUSE_S = 30.0
"""The longest pause that Retry-After can ask for: one host must not hold a part for an hour."""


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
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    left = (until if until.tzinfo else until.replace(tzinfo=UTC)) - datetime.now(UTC)
    return min(max(left.total_seconds(), 0.0), MAX_PAUSE_S)


class Pauses:
    """Hosts that asked us to wait. Every row of such a host waits, not only the one that was told."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def pause(self, host: str, seconds: float) -> None:
        now = time.monotonic()
        self._until = {name: until for name, until in self._until.items() if until > now}
        self._until[host] = max(now + seconds, self._until.get(host, 0.0))

    async def wait(self, host: str) -> None:
        """Sleep until the host's pause is over, once: a host that keeps asking is met again by the tries' limit."""
        left = self._until.get(host, 0.0) - time.monotonic()
        if left > 0:
            await asyncio.sleep(min(left, MAX_PAUSE_S))
