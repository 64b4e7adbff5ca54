"""Captions cleaned and URLs judged, a batch at a time.

A caption keeps what was written but for NUL and other control characters; tab, line feed and carriage return are white
space and stay, and so do marks of direction such as U+202E: who shows a text isolates it (FAULTS.md, row 27).
"""

import re
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x{80}-\x{9f}]"
"""RE2: C0, DEL and C1 without the three that are white space."""

MAX_URL_CHARS = 16_384
"""Longer than any server takes; keeps a `data:`-sized mistake out of the tables."""

# What nearly every URL looks like; the others are parsed one by one. A port of five digits may exceed 65535.
PLAIN_URL = (
    r"(?i)^https?://[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[1-9][0-9]{0,3})?(?:[/?#][^\x00-\x1f\x7f\x{80}-\x{9f}]*)?$"
)
URL_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Cleaned:
    """Texts as they are stored, and what was done to them."""

    text: pa.Array
    cleaned: pa.Array
    """bool: characters were removed or replaced."""
    raw_sha256: pa.Array
    """sha256 of the bytes that were no UTF-8; null where they were."""


def clean(texts: pa.Array) -> Cleaned:
    """Remove control characters and replace what is no UTF-8 (`texts`: string or binary)."""
    text, raw = decoded(texts)
    invalid = pc.is_valid(raw)
    controlled = pc.fill_null(pc.match_substring_regex(text, pattern=CONTROL), False)
    if controlled.true_count:
        text = pc.replace_substring_regex(text, pattern=CONTROL, replacement="")
    return Cleaned(text, pc.or_(controlled, invalid), raw)


def decoded(texts: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Valid UTF-8 with U+FFFD for what was not, and the sha256 of the bytes of those that were not (else null)."""
    try:
        if pa.types.is_string(texts.type):
            texts.validate(full=True)
        return texts.cast(pa.string()), pa.nulls(len(texts), pa.string())
    except pa.ArrowInvalid:
        values = texts.cast(pa.binary()).to_pylist()
    shown: list[str | None] = []
    sums: list[str | None] = []
    for value in values:
        text = None if value is None else value.decode("utf-8", "replace")
        shown.append(text)
        changed = text is not None and text.encode() != value
        sums.append(sha256(value).hexdigest() if changed else None)
    return pa.array(shown, pa.string()), pa.array(sums, pa.string())


def why_bad(urls: pa.Array, invalid: pa.Array) -> pa.Array:
    """Why a URL cannot be fetched, null where it can (`invalid`: bool, it was no UTF-8). Null URLs give null."""
    plain = pc.and_(
        pc.match_substring_regex(urls, pattern=PLAIN_URL), pc.less_equal(pc.utf8_length(urls), MAX_URL_CHARS)
    )
    if pc.min(pc.fill_null(pc.and_(plain, pc.invert(invalid)), True)).as_py() is not False:
        return pa.nulls(len(urls), pa.string())
    reasons = [
        None if good is not False and not broken else "is not UTF-8" if broken else reason(url)
        for url, good, broken in zip(urls.to_pylist(), plain.to_pylist(), invalid.to_pylist(), strict=True)
    ]
    return pa.array(reasons, pa.string())


def reason(url: str) -> str | None:
    """Why this URL cannot be fetched, or None."""
    if len(url) > MAX_URL_CHARS:
        return f"has {len(url)} characters; at most {MAX_URL_CHARS} are taken"
    if URL_CONTROL.search(url):
        return "has control characters"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"cannot be parsed: {error}"
    if parts.scheme not in ("http", "https"):
        return (
            f"has the scheme {parts.scheme[:20]!r}; expected http or https"
            if parts.scheme
            else "has no scheme; expected http:// or https://"
        )
    if not parts.hostname or port == 0:
        return "names no host" if not parts.hostname else "has the port 0"
    return None
