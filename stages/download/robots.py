"""robots.txt (RFC 9309): which paths of a host we may ask for.

A parser of our own: those on PyPI turn patterns into regular expressions, which a hostile file can make to run for
hours (`/*a*a*a*a*b`); this one matches in the product of the lengths at worst, and keeps only what concerns us.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

MAX_BYTES: Final = 500 << 10
"""What is parsed (section 2.5 asks for at least as much); a line that is cut there is dropped."""
MAX_RULES: Final = 5_000
"""Rules for one agent; past it a host has better things to ask for than to be matched against more."""
MAX_PATTERN: Final = 2_000
MAX_STARRED: Final = 16 << 10
"""Characters of all patterns with a `*`. To search a hostile path for hostile ones takes the product of the lengths:
two seconds of the event loop for every URL where a file is full of them, a tenth of one with so many."""
MAX_DELAY_S: Final = 30.0
"""The longest Crawl-delay that is honoured; who asks for a day means no, and has `Disallow` for that."""
KNOWN_S: Final = 12 * 3600.0
"""How long a robots.txt is gone by, here and then in a worker: 24 hours in all (RFC 9309, section 2.4)."""
REFUSED_S: Final = 300.0
"""How long it is gone by that one could not be had."""
AGENT_LINES = frozenset({"user-agent", "useragent", "user agent"})
RULE_LINES = {
    "allow": True,
    **dict.fromkeys(("disallow", "dissallow", "dissalow", "disalow", "diasllow", "disallaw"), False),
}
"""The spellings that Google's parser takes for the word as well."""
KEY = re.compile(r"user agent|[A-Za-z-]+", re.IGNORECASE)
LONGER_NAME = re.compile(r"[A-Za-z_-]")
NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})|([^!-~]|[*$])")
UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


@dataclass(frozen=True)
class Rules:
    """What a robots.txt says to us, or why there is nothing it says."""

    host: str
    """Whose politeness `delay_s` concerns."""
    rules: tuple[tuple[str, bool], ...] = ()
    """(pattern, whether it allows), the longest first, and of those that are as long the allowing ones."""
    delay_s: float = 0.0
    refused: tuple[str, str] | None = None
    """(status, message) of every row of this origin, where the file could not be had."""
    nbytes: int = field(default=0, compare=False)
    """About what it takes to keep."""

    @property
    def kept_s(self) -> float:
        """How long it is gone by."""
        return KNOWN_S if self.refused is None else REFUSED_S

    def allows(self, target: str) -> bool:
        """Whether a path (with its query, as it is sent) may be asked for."""
        path = _normal(target.encode(), path=True)
        return path == "/robots.txt" or next((allow for rule, allow in self._split if rule.matches(path)), True)

    @cached_property
    def _split(self) -> list[tuple["_Pattern", bool]]:
        return [(_Pattern(pattern), allow) for pattern, allow in self.rules]


class _Pattern:
    """A path with `*` for anything and `$` for the end."""

    def __init__(self, pattern: str) -> None:
        self._anchored = pattern.endswith("$")
        bare = pattern.removesuffix("$") if self._anchored else pattern.rstrip("*")  # those change nothing
        first, *self._rest = bare.split("*")
        self._first = first

    def matches(self, path: str) -> bool:
        if not path.startswith(self._first):
            return False
        at = len(self._first)
        if not self._rest:
            return not self._anchored or at == len(path)
        *middle, last = self._rest
        for piece in middle:  # the earliest place leaves the most for what follows: no need to go back
            at = path.find(piece, at)
            if at < 0:
                return False
            at += len(piece)
        if self._anchored:
            return len(path) - len(last) >= at and path.endswith(last)
        return path.find(last, at) >= 0


def parse_robots(data: bytes, agent: str, host: str = "") -> Rules:
    """The rules for `agent` (a product token): its own groups, else those of `*`. Nothing in `data` is an error."""
    own: list[tuple[str, bool]] = []
    all_: list[tuple[str, bool]] = []
    delays = {True: 0.0, False: 0.0}
    named = False
    concerns_us = concerns_all = False
    naming = False
    for key, value in _lines(data):
        if key in AGENT_LINES:
            if not naming:
                naming, concerns_us, concerns_all = True, False, False
            concerns_us |= _names(value, agent)
            concerns_all |= value.split(maxsplit=1)[:1] == ["*"]
            named |= concerns_us
        elif key in RULE_LINES:
            naming = False
            if value and len(value) <= MAX_PATTERN:
                rule = (_normal(value.encode("utf-8", "surrogateescape"), path=False), RULE_LINES[key])
                for wanted, rules in ((concerns_us, own), (concerns_all, all_)):
                    if wanted and len(rules) < MAX_RULES:
                        rules.append(rule)
        elif key == "crawl-delay" and NUMBER.fullmatch(value):
            for us, concerned in ((True, concerns_us), (False, concerns_all)):
                if concerned:
                    delays[us] = min(float(value), MAX_DELAY_S)
    bounded = _affordable(dict.fromkeys(own if named else all_))
    rules = sorted(dict.fromkeys(bounded), key=lambda rule: (-len(rule[0]), not rule[1]))
    return Rules(host, tuple(rules), delays[named], nbytes=200 + sum(100 + len(pattern) for pattern, _ in rules))


def _affordable(rules: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    """The rules, but where there are too many stars more is forbidden than was said, never less."""
    left = MAX_STARRED
    for pattern, allow in rules:
        start, star, _ = pattern.partition("*")
        left -= len(pattern) if star else 0
        if not star or left >= 0:
            yield pattern, allow
        elif not allow:
            yield start.ljust(len(pattern), "*"), allow  # as long as before: the longest rule decides


def _lines(data: bytes) -> Iterator[tuple[str, str]]:
    whole = data[:MAX_BYTES].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    lines = re.split(r"\r\n|\r|\n", whole)
    for line in lines[: len(lines) - (len(data) > MAX_BYTES)]:
        said = line.partition("#")[0].lstrip()
        key = KEY.match(said)
        if key is None:
            continue
        rest = said[key.end() :]
        value = rest.lstrip()
        if value.startswith(":"):
            yield key[0].lower(), value[1:].strip()
        elif len(value) < len(rest):  # Google's parser takes white space for the colon
            yield key[0].lower(), value.strip()


def _names(value: str, agent: str) -> bool:
    """Whether a group is for `agent`: a version or other words may follow, but not the rest of a longer name.

    RFC 9309 knows names of letters, `_` and `-` alone; ours may have digits and dots as well.
    """
    return value.lower().startswith(agent.lower()) and not LONGER_NAME.match(value, len(agent))


def _normal(octets: bytes, path: bool) -> str:
    """One spelling for what means the same (section 2.2.2): unreserved characters bare, all others escaped.

    In a path `*` and `$` mean themselves; in a pattern only as `%2A` and `%24`, and a `$` that is not at the end.
    """

    def replaced(found: re.Match[bytes]) -> bytes:
        if found[1] is not None:
            octet = int(found[1], 16)
            return bytes([octet]) if octet in UNRESERVED else b"%%%02X" % octet
        if not path and (found[2] == b"*" or (found[2] == b"$" and found.end() == len(octets))):
            return found[2]
        return b"%%%02X" % found[2][0]

    return ESCAPE.sub(replaced, octets).decode("ascii")
