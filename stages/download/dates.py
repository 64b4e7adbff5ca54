"""Dates in HTTP headers (RFC 9110, section 5.6.7)."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def date_of(header: str | None) -> datetime | None:
    """The moment that a header names, to the second; None where there is none that can be read."""
    if header is None:
        return None
    try:
        moment = parsedate_to_datetime(header)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
