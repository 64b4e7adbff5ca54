"""Politeness over the whole run: who may ask which host, how often, and what its robots.txt says.

`Hosts` is the one object that all workers of a run share; leases.py is a worker's side of it. A worker tells it, in one
message for all hosts, how many requests to each it has under way and would like to have, and is told how many it may
have. What it holds it keeps from request to request without another word, so that a busy host costs no messages;
where several workers want the same host, each is given its fair share as the others' requests end.

What is promised: requests to one host that are under way at once, in all workers together, are at most `per_host`, and
they begin at least `1 / rate` seconds apart. A pause that is known here is known to every worker after `RENEW_S` and
one message. Everything here is soft: leases end by themselves when a worker stops renewing them, and if this object is
made anew, workers keep to the leases that they have until they renew; for that moment a limit can be exceeded.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from stages.download.robots import Rules

LEASE_S: Final = 3.0
"""After this silence a worker is taken for dead, and what it held is free."""
RENEW_S: Final = 0.5
"""How often a worker that has requests under way reports; also how late it may hear of a pause."""
BLOCKED_S: Final = 0.05
"""How soon a worker asks again for a host whose permits others hold."""
TICK_S: Final = 0.015
"""A worker sends no two messages within this time, and within more where there are many workers."""
MESSAGES_A_SECOND: Final = 500
"""How many messages this object should have to answer; one takes about 0.1 ms, and 1 ms through Ray."""
AHEAD_S: Final = 0.25
"""How far ahead starts at a limited rate are given away."""
STARTS_AT_ONCE: Final = 32
SLICE_S: Final = 1.0
"""Where there are fewer permits than workers that want one, they go round in slices of this time."""
MAX_PAUSE_S: Final = 30.0
"""The longest pause that a host can ask for: one host must not hold a part for an hour."""
ROBOTS_LEASE_S: Final = 60.0
"""How long a worker is given to fetch a robots.txt before another one is asked to."""
ROBOTS_KEPT: Final = 200_000
"""Origins whose rules are remembered; most are a few lines."""
ROBOTS_BYTES: Final = 256 << 20
"""What all those rules may take."""
SWEEP_S: Final = 5.0


@dataclass(frozen=True)
class Manners:
    """How hosts are treated; `wait_s`: how long a row waits for its host's turn in all."""

    per_host: int = 16
    rate: float | None = None
    wait_s: float = 1800.0
    robots: bool = False

    def hosts(self) -> "Hosts":
        return Hosts(self.per_host, self.rate)


class Ask(NamedTuple):
    """What a worker says of one host; nothing held and nothing waiting gives it up."""

    held: int
    """Requests that it takes itself to be allowed: those under way, and those it will begin from what it had."""
    used: int
    """Requests under way."""
    waiting: int
    """Requests that it would begin if it could."""
    starts: int = 0
    """Starts that it was given and has not used."""
    delay_s: float = 0.0
    """What the host's robots.txt asks for between starts, as far as this worker knows."""

    @property
    def wanted(self) -> int:
        return max(self.held, self.used + self.waiting)


class Permit(NamedTuple):
    """What it is told."""

    held: int
    """Requests that it may have under way. Fewer than it has: it begins none until others have ended."""
    starts: tuple[float, ...] | None
    """When new ones may begin, in seconds from now, beside those it had; None where no rate is set."""
    pause_s: float
    """Until then none may begin."""


class Said(NamedTuple):
    """A worker's message."""

    asks: Mapping[str, Ask]
    pauses: Mapping[str, float] = {}
    robots: tuple[str, ...] = ()
    """Origins whose rules it needs."""
    found: Mapping[str, Rules] = {}
    """Rules that it fetched, by origin."""


class Told(NamedTuple):
    """The answer."""

    permits: Mapping[str, Permit]
    robots: Mapping[str, Rules | None] = {}
    """Rules by origin; None: fetch them. An origin that is missing is being fetched by another worker."""
    tick_s: float = TICK_S


@dataclass
class _Share:
    held: int
    wanted: int
    seen: float
    delay_s: float = 0.0


@dataclass
class _Host:
    shares: dict[str, _Share] = field(default_factory=dict)
    paused_until: float = 0.0
    next_start: float = 0.0

    @property
    def delay_s(self) -> float:
        """What its robots.txt asks for; known as long as anybody who knows it asks the host."""
        return max((share.delay_s for share in self.shares.values()), default=0.0)


class Hosts:
    """Leases of requests per host, at most `per_host` each, `rate` new ones a second (None: no limit).

    `exchange` may be repeated: what a worker says replaces what it said before.
    """

    def __init__(self, per_host: int, rate: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_host = per_host
        self._interval_s = 1.0 / rate if rate else 0.0
        self._clock = clock
        self._hosts: dict[str, _Host] = {}
        self._seen: dict[str, float] = {}
        self._rules: dict[str, tuple[float, Rules]] = {}
        self.robots_bytes = 0
        self._fetching: dict[str, tuple[str, float]] = {}
        self._swept = clock()

    def exchange(self, worker: str, said: Said) -> Told:
        """Take what a worker says and tell it what it may do."""
        now = self._clock()
        self._seen[worker] = now
        if now - self._swept > SWEEP_S:
            self._sweep(now)
        for origin, rules in said.found.items():
            self._learn(origin, rules, now)
        for host, seconds in said.pauses.items():
            known = self._hosts.setdefault(host, _Host())
            known.paused_until = max(known.paused_until, now + min(max(seconds, 0.0), MAX_PAUSE_S))
        permits = {host: self._permit(host, worker, Ask(*ask), now) for host, ask in said.asks.items()}
        robots = {origin: answer for origin in said.robots for answer in self._rules_for(origin, worker, now)}
        return Told(permits, robots, max(TICK_S, len(self._seen) / MESSAGES_A_SECOND))

    def __len__(self) -> int:
        """How many hosts are known."""
        return len(self._hosts)

    def _permit(self, name: str, worker: str, ask: Ask, now: float) -> Permit:
        host = self._hosts.setdefault(name, _Host())
        share = host.shares.setdefault(worker, _Share(0, 0, now))
        share.held, share.wanted, share.seen, share.delay_s = ask.held, ask.wanted, now, ask.delay_s
        for other in [other for other, theirs in host.shares.items() if now - theirs.seen > LEASE_S]:
            del host.shares[other]
        if not ask.wanted:
            del host.shares[worker]
            return Permit(0, None, max(host.paused_until - now, 0.0))
        free = self._per_host - sum(theirs.held for theirs in host.shares.values())
        fair = self._fair(host, worker, now)
        if fair > ask.held:
            share.held = allowed = ask.held + max(min(fair - ask.held, free), 0)
        else:
            allowed = fair  # the share stays what it was until the worker has come down to it
        return Permit(allowed, self._starts(host, ask, now), max(host.paused_until - now, 0.0))

    def _fair(self, host: _Host, worker: str, now: float) -> int:
        """A worker's part of the host: the same for all that want as much (max-min fair), in turns where it must be."""
        left, wants = self._per_host, sorted((share.wanted, name) for name, share in host.shares.items())
        level = 0
        for place, (wanted, _) in enumerate(wants):
            level = left // (len(wants) - place)
            if wanted > level:
                wants = wants[place:]
                break
            left -= wanted
        else:
            return host.shares[worker].wanted
        hungry = sorted(name for _, name in wants)
        if worker not in hungry:
            return host.shares[worker].wanted
        turn = (hungry.index(worker) - int(now / SLICE_S)) % len(hungry)
        return level + (turn < left - level * len(hungry))

    def _starts(self, host: _Host, ask: Ask, now: float) -> tuple[float, ...] | None:
        interval_s = max(self._interval_s, host.delay_s)
        if not interval_s:
            return None
        starts: list[float] = []
        host.next_start = max(host.next_start, now, host.paused_until)
        while len(starts) + ask.starts < min(ask.waiting, STARTS_AT_ONCE):
            if host.next_start > now + AHEAD_S and (starts or ask.starts):
                break
            starts.append(host.next_start - now)
            host.next_start += interval_s
        return tuple(starts)

    # -- robots.txt ----------------------------------------------------------------------------------------------------

    def _rules_for(self, origin: str, worker: str, now: float) -> list[Rules | None]:
        """The rules, or None for a worker that is to fetch them; nothing while another one does."""
        until, rules = self._rules.get(origin, (0.0, None))
        if rules is not None and now < until:
            return [rules]
        fetcher, until = self._fetching.get(origin, (worker, 0.0))
        if fetcher != worker and now < until:
            return []
        self._fetching[origin] = (worker, now + ROBOTS_LEASE_S)
        return [None]

    def _learn(self, origin: str, rules: Rules, now: float) -> None:
        self._fetching.pop(origin, None)
        self._forget(origin)
        self.robots_bytes += rules.nbytes
        self._rules[origin] = now + rules.kept_s, rules
        while len(self._rules) > ROBOTS_KEPT or self.robots_bytes > ROBOTS_BYTES:
            self._forget(next(iter(self._rules)))

    def _forget(self, origin: str) -> None:
        if origin in self._rules:
            self.robots_bytes -= self._rules.pop(origin)[1].nbytes

    def _sweep(self, now: float) -> None:
        """Forget the dead, and hosts that nobody asks."""
        self._swept = now
        self._seen = {worker: seen for worker, seen in self._seen.items() if now - seen < LEASE_S}
        for name, host in list(self._hosts.items()):
            for worker in [worker for worker, share in host.shares.items() if now - share.seen > LEASE_S]:
                del host.shares[worker]
            if not host.shares and max(host.paused_until, host.next_start) < now:
                del self._hosts[name]
        self._fetching = {origin: held for origin, held in self._fetching.items() if held[1] > now}
