"""Numbers and other people's text as a page shows them. Everything here gives plain text; the template escapes it."""

from __future__ import annotations

import math
import re

CONTROL = {code: "\ufffd" for code in [*range(32), *range(0x7F, 0xA0)] if code not in (9, 10, 13)}
URL = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]*://)([^\s\"'<>,\\\]})]*)")
UNITS = {
    "bytes": ("bytes", "nbytes", "size"),
    "px": ("width", "height", "side"),
    "s": ("seconds",),
    "bits": ("hamming", "bits"),
}
NEARLY = 0.9995
"""From this share of a round number on it is that number, in three digits."""
SCALED = ("bytes",)
"""Units that change with the value (kB, MB), so that they stand at every one of them."""


def clean(text: str, most: int = 0) -> str:
    """Without control characters; cut to `most` characters, unless that is 0."""
    text = text.translate(CONTROL)
    return text if not most or len(text) <= most else text[: most - 1].rstrip() + "…"


def inert(url: str, most: int = 0) -> str:
    """A URL as text: userinfo, query string and fragment, which may hold secrets, are left out."""
    parts = re.match(r"((?:[^/?#:]*:)?//)?([^/?#]*)([^?#]*)", url)
    assert parts is not None  # every part may be empty
    scheme, host, path = parts.groups(default="")
    tail = "" if parts.end() == len(url) else "?…"
    return clean(scheme + host.rpartition("@")[2] + path, most) + tail


def redacted(text: str) -> str:
    """Text with every URL in it made inert."""
    return URL.sub(lambda match: inert(match[0]), clean(text))


def count(number: float) -> str:
    """A whole number with its thousands apart."""
    return f"{number:,.0f}"


def short(number: float) -> str:
    """A count in few characters: 12.3k, 4M."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= NEARLY * limit:
            return f"{_three_digits(number / limit)}{unit}"
    return f"{number:,.0f}"


def _three_digits(number: float) -> str:
    decimals = 2 if number < 10 * NEARLY else 1 if number < 100 * NEARLY else 0
    shown = f"{number:,.{decimals}f}"
    return shown.rstrip("0").rstrip(".") if decimals else shown


def share(part: float, whole: float) -> str:
    """Per cent, with a decimal where there is room for doubt."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if not part:
        return "0 %"
    if percent < 0.1:
        return "<0.1 %"
    if part != whole and percent > 99.9:
        return ">99.9 %"
    return f"{percent:.1f} %" if percent < 99.95 else "100 %"


def value(number: float, unit: str = "") -> str:
    """A measured value in few characters, with its unit."""
    if math.isnan(number):
        return "NaN"
    if unit == "bytes":
        return size(number)
    absolute = abs(number)
    if number == int(number) and absolute < 1e5:
        shown = f"{number:,.0f}"
    elif absolute >= 1e5:
        shown = f"-{short(absolute)}" if number < 0 else short(absolute)
    elif absolute >= 1e-3:
        shown = f"{number:,.4g}" if absolute < 1000 else f"{number:,.0f}"
    else:
        shown = f"{number:.2g}"
    return f"{shown} {unit}" if unit else shown


def size(count_: float) -> str:
    """Bytes: 1.4 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count_) < 1000 * NEARLY:
            return f"{count_:,.0f} bytes" if unit == "bytes" else f"{_three_digits(count_)} {unit}"
        count_ /= 1000
    return f"{_three_digits(count_)} TB"


def duration(seconds: float) -> str:
    """Seconds, or minutes and hours where there are many."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def unit_of(column: str) -> str:
    """The unit that a column's name tells; empty where it tells none."""
    last = column.rpartition(".")[2].lower()
    for unit, ends in UNITS.items():
        if last in ends or any(last.endswith(f"_{end}") for end in ends):
            return unit
    return "s" if last.endswith("_s") else "ms" if last.endswith("_ms") else ""
