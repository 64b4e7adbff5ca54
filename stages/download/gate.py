"""Who may send a request now: so many rows of a worker at a time, and of each host's what its lease allows.

A row that has to wait for its host gives its place among the worker's rows to another one; of those that may go, the
earliest row goes first.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Any, Final

from pipeline.stage import Shared
from stages.download.leases import Lease, Leases
from stages.download.statuses import FetchError

LOOKS: Final = 50
"""How often within `wait_s` it is looked who has waited too long."""


class Turn:
    """One row's way through the gate: it holds a place while it works, and a permit while it asks a host.

    `held_back` says whether the row must not go on now, however free the gate is; `parked` is told (+1, -1) when the
    row begins and ends to wait for a host. `waited_s`: how long it was kept from starting.
    """

    def __init__(
        self,
        gate: "Gate",
        order: int,
        held_back: Callable[[], bool] = lambda: False,
        parked: Callable[[int], None] = lambda _: None,
        waited_s: float = 0.0,
    ) -> None:
        self._gate = gate
        self.order = order
        self.held_back = held_back
        self._parked = parked
        self.waited_s = waited_s
        self._placed = False
        self._lease: Lease | None = None

    async def enter(self, host: str) -> None:
        """Wait until a request to `host` may begin. Raises `FetchError` (`host_busy`) after `wait_s` in all."""
        gate = self._gate
        lease = gate.leases.of(host)
        if gate.may_begin(self, lease, self._placed):
            if not self._placed:
                gate.place(1)
            lease.begin()
        else:
            with self.resting():
                await gate.wait(self, lease)
        self._placed = True
        self._lease = lease

    def leave(self) -> None:
        """The request has ended; the place is kept."""
        lease, self._lease = self._lease, None
        if lease is not None:
            self._gate.ended(lease)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Give the place up for as long as the row only waits."""
        self.leave()
        if self._placed:
            self._placed = False
            self._gate.place(-1)
        self._parked(1)
        try:
            yield
        finally:
            self._parked(-1)

    def end(self) -> None:
        """The row has ended."""
        self.leave()
        if self._placed:
            self._placed = False
            self._gate.place(-1)


class _Waiting:
    def __init__(self, turn: Turn, lease: Lease, future: "asyncio.Future[None]", until: float) -> None:
        self.turn, self.lease, self.future, self.until = turn, lease, future, until


class Gate:
    """All turns of one worker, in one event loop. `hungry` are called when there is room for more rows."""

    def __init__(self, shared: Shared, concurrency: int, wait_s: float) -> None:
        self.leases = Leases(shared, self._offer)
        self.concurrency = concurrency
        self.hungry: set[Callable[[], None]] = set()
        self._wait_s = wait_s
        self._loop = asyncio.get_running_loop()
        self._placed = 0
        self._numbers = count()
        self._queues: dict[str, list[tuple[int, int, _Waiting]]] = {}
        self._ready: list[tuple[int, str]] = []
        self._offered: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._held_back: list[_Waiting] = []
        self._idle_s, self._idle_since = 0.0, self._loop.time()
        self._looking: asyncio.TimerHandle | None = None
        self._pumping = False

    @property
    def free(self) -> int:
        """How many more rows may work."""
        return self.concurrency - self._placed

    def idle_s(self) -> float:
        """How long this worker has had room for more rows than it could start: a clock for what waits for hosts."""
        return self._idle_s + (self._loop.time() - self._idle_since if self._placed < self.concurrency else 0.0)

    def may_begin(self, turn: Turn, lease: Lease, placed: bool) -> bool:
        """Whether a turn need not wait at all."""
        if not placed and (self._placed >= self.concurrency or self._ready or turn.held_back()):
            return False
        if lease.host in self._queues:
            return False
        now = self._loop.time()
        at = lease.ready_at(now)
        return at is not None and at <= now

    async def wait(self, turn: Turn, lease: Lease) -> None:
        """Wait for a place and a permit; both are the caller's then."""
        if turn.waited_s >= self._wait_s:
            await asyncio.sleep(0)  # thousands may end like this, one after another
            raise self._busy(lease)
        began = self.idle_s()
        future: asyncio.Future[None] = self._loop.create_future()
        waiting = _Waiting(turn, lease, future, began + self._wait_s - turn.waited_s)
        lease.waiting += 1
        if lease.waiting == 1:
            self.leases.speak(lease)
        self._enqueue(waiting)
        if self._looking is None:
            self._look()
        self.pump()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.ended(lease)  # both were given, and will not be used
                self.place(-1)
            raise
        finally:
            turn.waited_s += self.idle_s() - began
            if not future.done() or future.cancelled() or future.exception() is not None:
                self._gone(lease)

    def place(self, change: int) -> None:
        """A row takes a place, or gives it back."""
        if change < 0 and self._placed == self.concurrency:
            self._idle_since = self._loop.time()
        self._placed += change
        if change > 0 and self._placed == self.concurrency:
            self._idle_s += self._loop.time() - self._idle_since
        if change < 0:
            self.pump()

    def ended(self, lease: Lease) -> None:
        """A request has ended, and another one may begin in its stead."""
        lease.used -= 1
        if lease.host in self._queues:
            self._offer(lease)
        elif not lease.used and not lease.waiting:
            self.leases.linger(lease)

    def release_held_back(self) -> None:
        """Look again at the rows that were held back."""
        again, self._held_back = self._held_back, []
        for waiting in again:
            self._enqueue(waiting)
        self.pump()

    def close(self) -> None:
        self.leases.close()
        for timer in (*self._timers.values(), *([self._looking] if self._looking else [])):
            timer.cancel()

    # -- queues --------------------------------------------------------------------------------------------------------

    def _enqueue(self, waiting: _Waiting) -> None:
        queue = self._queues.setdefault(waiting.lease.host, [])
        heappush(queue, (waiting.turn.order, next(self._numbers), waiting))
        self._add_ready(waiting.lease)

    def _offer(self, lease: Lease) -> None:
        """A lease has changed: whoever waits for it may go now, or at a time that is known."""
        self._add_ready(lease)
        self.pump()

    def _add_ready(self, lease: Lease) -> None:
        queue = self._queues.get(lease.host)
        if not queue or lease.host in self._offered:
            return
        now = self._loop.time()
        at = lease.ready_at(now)
        if at is None:
            return
        if at <= now:
            self._offered.add(lease.host)
            heappush(self._ready, (queue[0][0], lease.host))
        elif lease.host not in self._timers:
            self._timers[lease.host] = self._loop.call_at(at, self._come, lease)

    def _come(self, lease: Lease) -> None:
        self._timers.pop(lease.host, None)
        self._offer(lease)

    def pump(self) -> None:
        """Let go whoever may; then say whether there is room for more rows."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._ready and self._placed < self.concurrency:
                self._let_one_go()
        finally:
            self._pumping = False
        if self._placed < self.concurrency:
            for feed in tuple(self.hungry):
                feed()

    def _let_one_go(self) -> None:
        order, host = self._ready[0]
        queue = self._queues[host]
        if queue[0][0] != order:
            heapreplace(self._ready, (queue[0][0], host))
            return
        heappop(self._ready)
        self._offered.discard(host)
        waiting = queue[0][2]
        lease = waiting.lease
        now = self._loop.time()
        at = lease.ready_at(now)
        if at is None or at > now:
            self._add_ready(lease)
            return
        heappop(queue)
        if not queue:
            del self._queues[host]
        if waiting.future.done():  # cancelled
            pass
        elif waiting.turn.held_back():
            self._held_back.append(waiting)
        else:
            lease.waiting -= 1
            lease.begin()
            self.place(1)
            waiting.future.set_result(None)
        self._add_ready(lease)

    def _gone(self, lease: Lease) -> None:
        """Somebody has stopped to wait."""
        lease.waiting -= 1
        queue = self._queues.get(lease.host)
        while queue and queue[0][2].future.done():
            heappop(queue)
        if queue is not None and not queue:
            del self._queues[lease.host]
            if lease.host in self._offered:
                self._offered.discard(lease.host)
                self._ready = sorted(entry for entry in self._ready if entry[1] != lease.host)
        if not lease.used and not lease.waiting:
            self.leases.speak(lease)

    def _look(self) -> None:
        """End the wait of those who have waited too long."""
        idle_s = self.idle_s()
        for queue in list(self._queues.values()):
            for _, _, waiting in queue:
                if not waiting.future.done() and idle_s > waiting.until:
                    waiting.future.set_exception(self._busy(waiting.lease))
        self._looking = self._loop.call_later(self._wait_s / LOOKS, self._look) if self._queues else None

    def _busy(self, lease: Lease) -> Any:
        return FetchError("host_busy", f"{lease.host} was not to be asked for wait_s = {self._wait_s:g} seconds")
