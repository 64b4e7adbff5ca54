"""What a host's answer says about use for machine learning, read before the body is.

`X-Robots-Tag` (noai, noimageai, noindex, noimageindex, noml, none) for everyone or for our agent, and the TDM
Reservation Protocol's `tdm-reservation: 1` (W3C community group report, 2024).
"""

import re
from collections.abc import Iterator

from stages.download.answers import Head

FORBIDDING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})
"""`none` is short for `noindex, nofollow`."""
VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives that have a colon of their own, so that what stands before it names no agent."""
AGENT = re.compile(r"\s*([A-Za-z0-9_.*-]+)\s*:(.*)")


def opted_out(head: Head, agent: str) -> str | None:
    """The header that reserves the image, as `name: directive`, or None. `agent` is our product token."""
    for header in head.all("x-robots-tag"):
        for directive in _directives(header, agent.lower()):
            if directive in FORBIDDING:
                return f"X-Robots-Tag: {directive}"
    return "tdm-reservation: 1" if "1" in head.all("tdm-reservation") else None


def _directives(header: str, agent: str) -> Iterator[str]:
    """The directives that concern `agent`: those after `agent:`, after `*:`, and those before any agent is named."""
    concerned = True
    for piece in header.split(","):
        named = AGENT.fullmatch(piece)
        if named and named[1].lower() not in VALUED:
            concerned = named[1].lower() in ("*", agent)
            piece = named[2]
        if concerned:
            yield piece.strip().lower()
