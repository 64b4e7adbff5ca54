"""A worker's side of hosts.py: what it may ask of each host, and the messages that keep that true.

Lives in one event loop. A worker sends one message at a time, no sooner than a tick after the last one, and it carries
everything that there is to say about all hosts.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from pipeline.stage import Shared
from stages.download.hosts import BLOCKED_S, LEASE_S, RENEW_S, TICK_S, Ask, Hosts, Said, Told
from stages.download.robots import Rules

log = logging.getLogger(__name__)

OWN_LEASE_S: Final = LEASE_S / 2
"""A worker stops to begin requests this long after the last message that was answered: well before others may."""
LINGER_S: Final = 0.05
"""How long a lease is kept that nothing uses: an image follows its robots.txt, a redirect its answer."""
PAUSED_S: Final = 1.0
"""How often it asks about a host that is paused."""


class Alone:
    """A `Shared` for a worker without an engine: the object lives here."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(getattr(self._hosts, method)(*arguments))
        return future


@dataclass
class Lease:
    """What this worker may ask of one host. Times are the loop's."""

    host: str
    held: int = 0
    used: int = 0
    waiting: int = 0
    starts: deque[float] | None = None
    """When requests may begin; None where there is no rate."""
    delays: dict[str, float] = field(default_factory=dict)
    """By origin, the Crawl-delay in seconds of its robots.txt, where it has one."""
    paused_until: float = 0.0
    until: float = 0.0
    """When what it holds ends, unless it is renewed."""
    speak_at: float = 0.0
    """When there is something to say about it again."""
    stirred: bool = True
    """Whether there is something to say that was not there at the last message."""

    @property
    def delay_s(self) -> float:
        """The longest: http and https of a host have a robots.txt each."""
        return max(self.delays.values(), default=0.0)

    def ready_at(self, now: float) -> float | None:
        """When a request may begin: not after `now` for at once, None where that is not known yet."""
        if self.used >= self.held or now >= self.until:
            return None
        if self.starts is None:
            return self.paused_until
        return max(self.paused_until, self.starts[0]) if self.starts else None

    def begin(self) -> None:
        """One request begins."""
        self.used += 1
        if self.starts is not None:
            self.starts.popleft()


class Leases:
    """The leases of one worker; `changed` is called for every host whose lease has changed."""

    def __init__(self, shared: Shared, changed: Callable[[Lease], None]) -> None:
        self.shared = shared
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._me = uuid4().hex
        self._leases: dict[str, Lease] = {}
        self._pauses: dict[str, float] = {}
        self._wanted_rules: dict[str, asyncio.Future[Rules | None]] = {}
        self._found: dict[str, Rules] = {}
        self._tick_s = 0.0
        self._sent = -TICK_S
        self._in_flight = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._leases)

    def of(self, host: str) -> Lease:
        lease = self._leases.get(host)
        if lease is None:
            lease = self._leases[host] = Lease(host)
        return lease

    def speak(self, lease: Lease) -> None:
        """There is something to say about a host: more is wanted, or nothing any more."""
        lease.speak_at, lease.stirred = 0.0, True
        self._schedule(0.0)

    def linger(self, lease: Lease) -> None:
        """Nothing more is wanted of a host for now: it is given up unless something is soon."""
        lease.speak_at = self._loop.time() + LINGER_S
        self._schedule(lease.speak_at)

    def pause(self, host: str, seconds: float) -> None:
        """A host asked us to wait. It holds here at once."""
        lease = self.of(host)
        lease.paused_until = max(lease.paused_until, self._loop.time() + seconds)
        self._pauses[host] = max(seconds, self._pauses.get(host, 0.0))
        self.speak(lease)

    async def rules(self, origin: str) -> Rules | None:
        """What is known of an origin's robots.txt; None: the caller is the one to fetch it and to say so (`found`)."""
        future = self._wanted_rules.get(origin)
        if future is None:
            future = self._wanted_rules[origin] = self._loop.create_future()
            self._schedule(0.0)
        return await asyncio.shield(future)

    def found(self, origin: str, rules: Rules) -> None:
        """What an origin's robots.txt says."""
        self._found[origin] = rules
        self._schedule(0.0)

    def pace(self, origin: str, rules: Rules) -> None:
        """Before each request that `rules` allow: where they ask for a delay, it begins only when a start was given.

        What is shared is told of it with the lease: it may have been made anew since it last heard of these rules.
        """
        if rules.delay_s:
            lease = self.of(rules.host)
            lease.delays[origin] = rules.delay_s
            if lease.starts is None:
                lease.starts = deque()
        elif rules.host in self._leases:
            self._leases[rules.host].delays.pop(origin, None)

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    # -- messages ------------------------------------------------------------------------------------------------------

    def _schedule(self, at: float) -> None:
        """Speak at a time of the loop, or as soon after it as the tick allows."""
        if self._in_flight or self._closed:
            return
        at = max(at, self._sent + self._tick_s)
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._send)

    def _send(self) -> None:
        self._timer = None
        self._in_flight = True
        self._sent = now = self._loop.time()
        asks = {}
        for lease in self._leases.values():
            if lease.speak_at <= now:
                lease.stirred = False
                lease.held = max(lease.used, min(lease.held, lease.used + lease.waiting))
                asks[lease.host] = Ask(lease.held, lease.used, lease.waiting, len(lease.starts or ()), lease.delay_s)
        said = Said(asks, self._pauses, tuple(self._wanted_rules), self._found)
        self._pauses, self._found = {}, {}

        def answered(done: Future[Told]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._answered, now, said, done)

        try:
            told = self.shared.call("exchange", self._me, said)
        except Exception as error:
            told = Future()
            told.set_exception(error)
        told.add_done_callback(answered)

    def _answered(self, sent: float, said: Said, done: Future[Told]) -> None:
        self._in_flight = False
        if self._closed:
            return
        error = done.exception()
        if error is not None:
            self._unheard(said, error)
            return
        told = done.result()
        self._tick_s = 0.0 if isinstance(self.shared, Alone) else told.tick_s
        for origin, rules in told.robots.items():
            waiting = self._wanted_rules.pop(origin, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(rules)
        now = self._loop.time()
        for host, permit in told.permits.items():
            lease = self._leases[host]
            lease.held = permit.held
            lease.until = sent + OWN_LEASE_S
            if permit.pause_s:
                lease.paused_until = max(lease.paused_until, now + permit.pause_s)
            if permit.starts is None:
                lease.starts = deque() if lease.delay_s else None  # said before the delay was known
            else:
                lease.starts = deque(sorted([*(lease.starts or ()), *(now + start for start in permit.starts)]))
            lease.speak_at = 0.0 if lease.stirred else self._speak_at(lease, now)
            self._changed(lease)
            if not lease.used and not lease.waiting and not said.asks[host].wanted:
                del self._leases[host]
        self._schedule(self._next())

    def _unheard(self, said: Said, error: BaseException) -> None:
        """Say it again later, where it matters to anybody: leases end by themselves."""
        if not self._wanted_rules and not any(lease.used or lease.waiting for lease in self._leases.values()):
            self._leases.clear()  # the run has ended, and what it shared with it
            return
        log.warning("what the workers share did not answer: %s", error)
        self._pauses = {**said.pauses, **self._pauses}
        self._found = {**said.found, **self._found}
        self._schedule(self._sent + OWN_LEASE_S)

    def _speak_at(self, lease: Lease, now: float) -> float:
        if lease.paused_until > now:
            return min(lease.paused_until, now + PAUSED_S)
        if lease.waiting and lease.held <= lease.used:
            return now + BLOCKED_S
        if lease.waiting and lease.starts is not None and not lease.starts:
            return now + BLOCKED_S
        return now + RENEW_S

    def _next(self) -> float:
        """When there is something to say; what it waits for does not come sooner for being asked."""
        if self._pauses or self._found:
            return 0.0
        soonest = min((lease.speak_at for lease in self._leases.values()), default=float("inf"))
        return min(soonest, self._sent + RENEW_S) if self._wanted_rules else soonest
