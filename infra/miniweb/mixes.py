"""How much of each kind a web holds, by name. What the shares leave is clean."""

from collections.abc import Mapping
from itertools import accumulate

from infra.miniweb.kinds import FACTS, Family, Kind

RARE = 0.001
"""Of every odd, forbidden or harmful kind: two pages of 2,000."""

ODD = (
    Kind.SMUGGLED, Kind.CMYK, Kind.DEEP, Kind.PALETTE_ALPHA, Kind.ANIMATED_GIF, Kind.ANIMATED_WEBP, Kind.ROTATED,
    Kind.POLYGLOT,
)  # fmt: skip
"""Sound, but not for every decoder."""
HOSTILE = tuple(kind for kind, facts in FACTS.items() if facts.family in (Family.FORBIDDEN, Family.HARMFUL))

CAPTIONS = {
    Kind.MISMATCH: 0.16,
    Kind.BOILERPLATE: 0.09,
    Kind.SPAM: 0.06,
    Kind.OTHER_LANGUAGE: 0.07,
    Kind.TRUNCATED_CAPTION: 0.04,
}
COPIES = {
    Kind.EXACT_COPY: 0.03,
    Kind.REENCODED_COPY: 0.02,
    Kind.RESIZED_COPY: 0.02,
    Kind.CROPPED_COPY: 0.015,
    Kind.RECOLOURED_COPY: 0.015,
    Kind.EXACT_LEAK: 0.005,
    Kind.ALTERED_LEAK: 0.005,
}
DEAD = {
    Kind.NOT_FOUND: 0.03,
    Kind.GONE: 0.005,
    Kind.SERVER_ERROR: 0.003,
    Kind.HANG_UP: 0.003,
    Kind.BAD_NAME: 0.003,
    Kind.HTML: 0.005,
    Kind.EMPTY: 0.002,
    Kind.TRUNCATED_IMAGE: 0.004,
    Kind.CHANGED: RARE,
    Kind.NO_URL: 0.002,
}

MIXES: dict[str, Mapping[Kind, float]] = {
    "web": {
        Kind.LOOK_ALIKE: 0.03,
        Kind.REPEATED_URL: 0.03,
        Kind.REDIRECT: 0.01,
        Kind.SLOW: 0.002,
        Kind.FLAKY: 0.005,
        Kind.RATE_LIMITED: RARE,
        Kind.TINY: 0.01,
        Kind.BANNER: 0.006,
        Kind.PLACEHOLDER: 0.01,
        **CAPTIONS,
        **COPIES,
        **DEAD,
        **dict.fromkeys((*ODD, *HOSTILE), RARE),
    },
    "clean": {},
    "captions": CAPTIONS,
    "copies": {Kind.LOOK_ALIKE: 0.1} | {kind: 2 * share for kind, share in COPIES.items()},
    "hostile": dict.fromkeys((*ODD, *HOSTILE, *DEAD, Kind.REDIRECT, Kind.SLOW, Kind.FLAKY, Kind.RATE_LIMITED), 0.02),
}
"""`web` is what a crawl brings home, about 60 % of it damaged; the others are for one question each."""


def ranges(mix: str, pages: int) -> dict[Kind, range]:
    """Every kind's places in the permuted order of the pages, clean last: without overlap, without a gap.

    Raises `ValueError` for a mix that there is not.
    """
    if mix not in MIXES:
        raise ValueError(f"mix is {mix!r}; expected {', '.join(MIXES)}")
    shares = MIXES[mix]
    ends = [round(share * pages) for share in accumulate(shares.values(), initial=0.0)]
    found = {kind: range(start, end) for kind, start, end in zip(shares, ends, ends[1:], strict=False)}
    return {**found, Kind.CLEAN: range(ends[-1], pages)}
