"""Ray: the one file that schedules. Actors that stay warm between nodes, calls that survive their worker.

Every actor has two calls in flight, so that one part is read while the stage works on another. An actor that dies
takes its calls with it: they are tried again, then alone with smaller batches, and then the part is bisected until
the rows that kill it are found and quarantined.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from pipeline.cluster import start_ray
from pipeline.dag import Node
from pipeline.errors import SluiceError
from pipeline.node import NodeFailed
from pipeline.partwork import PartWork, Turn
from pipeline.records import Record
from pipeline.shared import keep
from pipeline.stage import Device
from pipeline.store import Store
from pipeline.worker import Call, Fault, progress_path, work

TRIES = 3
"""How often a part is tried before it is bisected, or given up."""
IN_FLIGHT = 2
PROGRESS_S = 2.0
LOOK_EVERY_S = 5.0
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MIB = 2**20
ROWS_ASKED = 8
"""Rows of a part that failed that are tried alone: where all of them fail, the stage is at fault."""
MAX_POISON = 100
"""Rows of one part that may be quarantined; with more of them the stage is at fault, not the rows."""


class Stopped(SluiceError):
    """The run was asked to stop."""


@ray.remote(max_restarts=0)
class Worker:
    """Does one call at a time; the next one waits beside it, the first images of its part read and decoded."""

    def __init__(self, root: str, device: Device) -> None:
        self._store = Store(root)
        self._device = device
        self._lock = threading.Lock()
        keep_freed_memory()

    def ready(self) -> int:
        return os.getpid()

    def work(self, call: Call) -> Record | Fault | None:
        hints = {**call.task.hints, "device": self._device, "turn": Turn(self._lock)}
        with nullcontext() if isinstance(call.do, PartWork) else self._lock:
            return work(self._store, replace(call, task=replace(call.task, hints=hints)))


def keep_freed_memory() -> None:
    """Let glibc reuse what it freed: by default a decoded image's pages go back to the kernel and come anew each time.

    That costs a tenth of a decoding thread's time. mallopt(3); other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 * MIB)
        mallopt(M_TRIM_THRESHOLD, 256 * MIB)


@dataclass(frozen=True)
class Size:
    """What an actor needs; actors of one size serve every node of that size."""

    cpus: float
    gpus: float


LEADER = Size(0, 0)
"""Of a worker that starts a gang and waits for it."""


@dataclass(eq=False)
class Hand:
    """An actor and what it is doing."""

    actor: ActorHandle[Any]
    size: Size
    starting: Any
    calls: dict[Any, Order] = field(default_factory=dict)
    alone: bool = False


@dataclass(eq=False)
class Order:
    """A call that waits for a worker or is with one."""

    call: Call
    lane: Lane
    alone: bool
    result: Future[Record | Fault | None] = field(default_factory=Future)


@dataclass(eq=False)
class Lane:
    """The calls of one node; lanes take turns."""

    size: Size
    limit: int
    waiting: deque[Order] = field(default_factory=deque)
    flying: int = 0


class Crew:
    """The actors of a run. `run` may be called from several threads, one per node."""

    def __init__(self, store: Store, address: str | None, report: Callable[[str, int, int, int], None]) -> None:
        self._store = store
        self._report = report
        self._hands: list[Hand] = []
        self._lanes: list[Lane] = []
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._stillborn = 0
        self._looked = 0.0
        start_ray(address)
        self._elastic = address is not None
        self._thread = threading.Thread(target=self._dispatch, name="sluice-dispatch", daemon=True)
        self._thread.start()

    # -- the node's side -----------------------------------------------------------------------------------------------

    def run(self, node: Node, calls: Sequence[Call], total_rows: int, done_rows: int) -> list[Record]:
        """The calls' records, in order.

        Raises `NodeFailed` when some calls could not be done, after the others were, and `Stopped`.
        """
        lane = self._open_lane(node, len(calls))
        self._report(node.name, total_rows or len(calls), done_rows, 0)
        results: dict[str, Record] = {}
        faults: dict[str, Fault] = {}
        shared = keep(getattr(calls[0].do, "stage", None)) if calls else None
        try:
            hints = {"batch_rows": node.workers.batch_rows, "shared": shared, "workers": node.workers}
            calls = [replace(c, task=replace(c.task, hints={**c.task.hints, **hints})) for c in calls]
            tries = {call.work_key: 1 for call in calls}
            by_future = {self._order(lane, call, alone=False).result: call for call in calls}
            lengthy = node.table_stage is not None and node.table_stage.gang
            seen: dict[str, int] = {}
            while by_future:
                done, _ = wait(by_future, timeout=PROGRESS_S if lengthy else None, return_when=FIRST_COMPLETED)
                if lengthy:
                    self._advance(node, by_future.values(), seen)
                for future in done:
                    call = by_future.pop(future)
                    outcome = future.result()
                    if isinstance(outcome, Record):
                        results[call.work_key] = outcome
                        rows = call.task.rows - seen.get(call.work_key, 0) if total_rows else 1
                        self._report(node.name, total_rows or len(calls), rows, 1)
                    elif isinstance(outcome, Fault):
                        again = self._again(call, outcome, tries)
                        if again is not None:
                            by_future[self._order(lane, again, alone=True).result] = again
                        else:
                            faults[call.work_key] = outcome
            records = self._bisect_all(lane, node, calls, faults)
            results.update({record.work_key: record for record in records})
        finally:
            self._close_lane(lane)
            if shared:
                shared.end()
        if faults:
            raise self._failed(node, calls, faults)
        return [results[call.work_key] for call in calls]

    def _advance(self, node: Node, calls: Iterable[Call], seen: dict[str, int]) -> None:
        """Show how far tasks are that take long and say so; `seen`: the rows that were shown of each."""
        for call in calls:
            with suppress(OSError, ValueError):  # it has not begun to say anything
                rows = int(self._store.get(progress_path(call.node, call.work_key)))
                more = min(rows, call.task.rows) - seen.get(call.work_key, 0)
                if more > 0:
                    seen[call.work_key] = seen.get(call.work_key, 0) + more
                    self._report(node.name, 0, more, 1)

    def stop(self) -> None:
        """Kill the actors and fail whatever waits, within a second. Committed work stays."""
        self._stopping.set()
        self._work.set()
        self._thread.join(timeout=10)

    def _again(self, call: Call, fault: Fault, tries: dict[str, int]) -> Call | None:
        """The call once more, alone, with a quarter of the batch after a crash; None when it had its tries."""
        if fault.kind == "refused" or tries[call.work_key] >= TRIES or _disk_full(fault):
            return None
        tries[call.work_key] += 1
        rows = int(call.task.hints["batch_rows"])
        smaller = max(1, rows // 4) if fault.kind == "crash" else rows
        return replace(call, task=replace(call.task, hints={**call.task.hints, "batch_rows": smaller}))

    # -- poison --------------------------------------------------------------------------------------------------------

    def _bisect_all(self, lane: Lane, node: Node, calls: Sequence[Call], faults: dict[str, Fault]) -> list[Record]:
        """Records of the parts that hold once their poison rows are quarantined; those leave `faults`."""
        records = []
        for call in calls:
            fault = faults.get(call.work_key)
            if fault is None or fault.kind not in ("stage", "crash") or not getattr(call.do, "bisectable", False):
                continue
            poison = self._poison(lane, call)
            if poison is None:
                break  # the stage is at fault, not the rows: the other parts would tell the same
            entries = [
                {"row": row, "step": found.step, "error": found.error, "traceback": found.traceback, "attempts": TRIES}
                for row, found in poison.items()
            ]
            healed = replace(
                call, task=replace(call.task, hints={**call.task.hints, "exclude": sorted(poison), "faults": entries})
            )
            outcome = self._order(lane, healed, alone=True).result.result()
            if isinstance(outcome, Record):
                records.append(outcome)
                del faults[call.work_key]
                self._report(node.name, 0, call.task.rows, 1)
            elif isinstance(outcome, Fault):
                faults[call.work_key] = outcome
        return records

    def _poison(self, lane: Lane, call: Call) -> dict[int, Fault] | None:
        """The rows on which the call fails, each tried twice on its own; None when no row is to blame.

        There are none of them where every row holds by now: what killed the workers has passed.
        """
        poison: dict[int, Fault] = {}
        some = random.Random(call.work_key).sample(range(call.task.rows), min(ROWS_ASKED, call.task.rows))
        if len(some) > 2 and all(self._probe(lane, call, range(row, row + 1)) for row in some):
            return None
        ranges = [range(call.task.rows)]
        while ranges:
            rows = ranges.pop()
            outcome = self._probe(lane, call, rows)
            if outcome is None:
                continue
            if outcome.kind not in ("stage", "crash"):
                return None
            if len(rows) == 1:
                confirmed = self._probe(lane, call, rows)
                if confirmed is not None:
                    poison[rows[0]] = confirmed
                if len(poison) > min(MAX_POISON, max(1, call.task.rows // 2)):
                    return None
                continue
            middle = len(rows) // 2
            ranges += [rows[middle:], rows[:middle]]
        return poison

    def _probe(self, lane: Lane, call: Call, rows: range) -> Fault | None:
        task = replace(call.task, hints={**call.task.hints, "rows": list(rows)})
        outcome = self._order(lane, replace(call, task=task, probe=True), alone=True).result.result()
        return outcome if isinstance(outcome, Fault) else None

    def _failed(self, node: Node, calls: Sequence[Call], faults: dict[str, Fault]) -> NodeFailed:
        for call in calls:
            if call.work_key in faults:
                with suppress(OSError):  # the store may be what failed
                    self._store.add_failure(call.node, call.work_key, call.task.part, call.phase, faults[call.work_key])
        first = next(iter(faults.values()))
        if _disk_full(first):
            return NodeFailed(
                f"{node.name}: the disk is full ({first.error}); free space and run the same command, it resumes"
            )
        if first.kind == "refused":
            return NodeFailed(f"{node.name}: {first.error}")
        return NodeFailed(
            f"{node.name}: {len(faults)} of {len(calls)} parts failed, the first with {first.error}; "
            f"see `sluice errors {self._store.root}`"
        )

    # -- the actors' side ----------------------------------------------------------------------------------------------

    def _open_lane(self, node: Node, calls: int) -> Lane:
        workers, gang = node.workers, _gang_of(node)
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        fits = int(total.get("CPU", 1) // workers.cpus)
        if workers.gpus:
            fits = min(fits, int(total.get("GPU", 0) // workers.gpus))
        if fits < max(gang, 1) and not self._elastic:
            count = max(gang, 1)
            several = f"{gang} workers need" if gang > 1 else "a worker needs"
            raise SluiceError(
                f"{several} {count * workers.cpus:g} CPUs and {count * workers.gpus:g} GPUs, this machine has "
                f"{total.get('CPU', 0):g} and {total.get('GPU', 0):g}; lower `workers` or give --address"
            )
        if gang:  # one worker that starts the others and waits, on no CPU of its own
            lane = Lane(LEADER, 1)
        else:
            lane = Lane(Size(workers.cpus, workers.gpus), min(workers.count or max(fits, 1), max(calls, 1)))
        with self._lock:
            self._lanes.append(lane)
        return lane

    def _close_lane(self, lane: Lane) -> None:
        with self._lock:
            self._lanes.remove(lane)

    def _order(self, lane: Lane, call: Call, alone: bool) -> Order:
        order = Order(call, lane, alone)
        with self._lock:  # `_abandon` holds it too: an order is refused, or it is there to be abandoned
            if self._failure is not None:
                raise SluiceError(f"the workers failed: {self._failure}")
            if self._stopping.is_set():
                raise Stopped("stopped")
            lane.waiting.append(order)
        self._work.set()
        return order

    def _dispatch(self) -> None:
        try:
            while not self._stopping.is_set():
                with self._lock:
                    self._hire()
                    self._hand_out()
                    references = [r for hand in self._hands for r in ([hand.starting] if hand.starting else hand.calls)]
                if not references:
                    self._work.wait(timeout=0.5)
                    self._work.clear()
                    continue
                self._check_home()
                done, _ = ray.wait(references, num_returns=1, timeout=0.1)
                more, _ = ray.wait(references, num_returns=len(references), timeout=0) if done else ([], [])
                for reference in {*done, *more}:
                    self._settle(reference)
        except BaseException as error:
            self._failure = error
            self._abandon(error if isinstance(error, SluiceError) else SluiceError(f"{type(error).__name__}: {error}"))
        else:
            self._abandon(Stopped("stopped"))

    def _check_home(self) -> None:
        """Raise where Ray's process on this machine is gone and no worker is left: Ray would wait for ever."""
        if time.monotonic() < self._looked + LOOK_EVERY_S or not all(hand.starting for hand in self._hands):
            return
        self._looked = time.monotonic()
        home = ray.get_runtime_context().get_node_id()
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        if not any(node["Alive"] for node in nodes if node["NodeID"] == home):
            raise SluiceError("Ray's process on this machine died; the same command resumes where it was")

    def _hire(self) -> None:
        """Start actors for the lanes that wait; let idle ones of another size go."""
        if any(lane.size == LEADER and lane.flying for lane in self._lanes):  # its gang waits for their CPUs
            busy = {lane.size for lane in self._lanes if lane.waiting}
            for hand in [h for h in self._hands if h.size not in (*busy, LEADER) and not h.calls and not h.starting]:
                self._dismiss(hand)
        for size in {lane.size for lane in self._lanes if lane.waiting}:
            lanes = [lane for lane in self._lanes if lane.size == size]
            have = [hand for hand in self._hands if hand.size == size]
            wanted = max(lane.limit for lane in lanes)
            if sum(not hand.starting for hand in have) < wanted:
                for hand in [h for h in self._hands if h.size != size and not h.calls and not h.starting]:
                    if not any(lane.waiting for lane in self._lanes if lane.size == hand.size):
                        self._dismiss(hand)
            for _ in range(wanted - len(have)):
                device = Device("cuda" if size.gpus else "cpu", max(1, int(size.cpus)))
                options = {"num_cpus": size.cpus, "num_gpus": size.gpus, "max_concurrency": IN_FLIGHT + 1}
                actor = Worker.options(**options).remote(self._store.root, device)  # type: ignore[attr-defined]
                self._hands.append(Hand(actor, size, actor.ready.remote()))

    def _hand_out(self) -> None:
        """Give waiting orders to actors, one lane after another, a second one ahead only to those that have one."""
        for held in range(IN_FLIGHT):
            for hand in self._hands:
                if hand.starting or hand.alone or len(hand.calls) != held:
                    continue
                order = self._next(hand)
                if order is not None:
                    reference: Any = hand.actor.work.remote(order.call)
                    hand.calls[reference] = order
                    hand.alone = order.alone
                    order.lane.flying += 1

    def _next(self, hand: Hand) -> Order | None:
        lanes = [
            lane
            for lane in self._lanes
            if lane.waiting and lane.size == hand.size and lane.flying < lane.limit * IN_FLIGHT
        ]
        if hand.calls:  # the last ones wait for whoever is free first, and not behind a part that takes minutes
            lanes = [lane for lane in lanes if len(lane.waiting) >= lane.limit and not lane.waiting[0].alone]
        return min(lanes, key=lambda lane: lane.flying).waiting.popleft() if lanes else None

    def _settle(self, reference: Any) -> None:
        hand = next((h for h in self._hands if reference is h.starting or reference in h.calls), None)
        if hand is None:
            return  # its actor died, and the call was settled with it
        try:
            outcome = ray.get(reference)
        except RayActorError as error:
            self._bury(hand, error)
            return
        except RayError as error:
            outcome = Fault("crash", f"{type(error).__name__}: {str(error).splitlines()[0]}")
        if reference is hand.starting:
            hand.starting = None
            self._stillborn = 0
            return
        self._finish(hand, reference, outcome)

    def _finish(self, hand: Hand, reference: Any, outcome: Any) -> None:
        with self._lock:
            order = hand.calls.pop(reference)
            order.lane.flying -= 1
            hand.alone = False
        order.result.set_result(outcome)

    def _bury(self, hand: Hand, error: RayActorError) -> None:
        """The actor is dead: its calls failed with it. One that never started is a fault of the set-up."""
        with self._lock:
            self._hands.remove(hand)
        if hand.starting and "creation task" in str(error):
            raise SluiceError(f"a worker could not start: {str(error).strip().splitlines()[-1]}")
        cause = _cause(error)
        self._stillborn += bool(hand.starting)
        if self._stillborn >= TRIES * max([TRIES, *(lane.limit for lane in self._lanes)]):
            raise SluiceError(f"no worker stays alive until it has started: {cause}; is there memory enough for them?")
        for reference in list(hand.calls):
            self._finish(hand, reference, Fault("crash", f"the worker process died: {cause}", traceback=str(error)))

    def _dismiss(self, hand: Hand) -> None:
        self._hands.remove(hand)
        ray.kill(hand.actor)

    def _abandon(self, error: SluiceError) -> None:
        with self._lock:
            orders = [order for lane in self._lanes for order in lane.waiting]
            for lane in self._lanes:
                lane.waiting.clear()
            for hand in self._hands:
                orders += hand.calls.values()
                ray.kill(hand.actor)
            self._hands = []
        for order in orders:
            if not order.result.done():
                order.result.set_exception(error)


def _gang_of(node: Node) -> int:
    """How many workers a task of the node starts by itself, at least; 0 where it is done in one."""
    if node.table_stage is None or not node.table_stage.gang or (node.workers.count or 1) == 1:
        return 0
    return node.workers.least or node.workers.count or 1


def _cause(error: RayActorError) -> str:
    """What Ray knows about a death, without its advice."""
    found = re.search(r"(?:exit detail|death cause|reason): *(.*?)(?: Some common causes|\n|$)", str(error))
    return found[1].rstrip(".")[:300] if found else type(error).__name__


def _disk_full(fault: Fault) -> bool:
    return any(sign in fault.error for sign in ("[Errno 28]", "[Errno 122]", "No space left"))
