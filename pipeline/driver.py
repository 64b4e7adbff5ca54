"""Run a DAG: what is committed is reused, the rest goes to the workers, independent nodes at the same time.

from pipeline import Dag, run
result = run(Dag.load("quickstart"), "runs/demo")
"""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from rich.console import Console

from pipeline.dag import Dag
from pipeline.errors import SluiceError, did_you_mean
from pipeline.leases import lease, take_back
from pipeline.node import Executor, NodeFailed, NodeWork, prepare, seal
from pipeline.plan import NodePlan, plan_node, survey
from pipeline.progress import Board
from pipeline.records import Generation, Run
from pipeline.ship import ship
from pipeline.store import Store
from pipeline.takedown.records import withheld
from pipeline.takedown.tombstones import check_finished


@dataclass(frozen=True)
class Result:
    """What a run left."""

    run: Run
    generations: dict[str, Generation]
    worked: list[str] = field(default_factory=list)
    """The nodes that did anything."""


class RunFailed(SluiceError):
    """Some nodes could not be finished; the others were."""


class RunStopped(SluiceError):
    """Stopped by a signal. `code` is the exit status that a shell expects."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def run(
    dag: Dag,
    root: str,
    *,
    until: str | None = None,
    retry: Collection[str] = (),
    address: str | None = None,
    console: Console | None = None,
    executor: Executor | None = None,
) -> Result:
    """Bring every node of `dag` to a sealed generation under `root`.

    `until` stops after a node, `retry` names pool nodes whose failed rows are tried again, `address` joins a Ray
    cluster, `console` shows progress there. `executor` replaces Ray, for tests.

    Raises `SluiceError` before anything starts, `RunFailed` when nodes failed, `RunStopped` on SIGTERM and Ctrl-C.
    """
    whole = dag
    dag = dag.until(until) if until else dag
    for name in retry:
        if name not in dag.nodes or dag.nodes[name].pool_stage is None:
            pools = [node.name for node in dag.nodes.values() if node.pool_stage]
            raise SluiceError(f"{name!r} is no pool whose rows could be tried again{did_you_mean(name, pools)}")
    dag.check()
    store = Store(root)
    with _reaching(root):
        check_finished(store)
        plans = survey(dag, store, retry)
        board = Board(console or Console(quiet=True), shown=console is not None)
        if all(plan.generation is not None for plan in plans.values()):
            generations = {name: plan.generation for name, plan in plans.items() if plan.generation is not None}
            if until is None:
                take_back(store, dag.name)
            return Result(_remember(store, whole, generations), generations)
        store.probe()
        with lease(store, dag.name, whole=until is None), board, _Signals() as signals:
            check_finished(store)  # one that began meanwhile has not seen our lease
            runner = _Runner(dag, store, plans, set(retry), board, signals, address, executor)
            try:
                generations = runner.run()
            except SluiceError:
                if runner.sealed:  # what was done can be asked: why nothing was left is seen in the funnel
                    _remember(store, whole, runner.sealed)
                raise
            finally:
                runner.close()
            return Result(_remember(store, whole, generations), generations, runner.worked)


@contextmanager
def _reaching(root: str) -> Iterator[None]:
    """A root that is not there, not for us, full or out of order is something that the user can mend."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free space and run the same command, it resumes"
        elif error.errno == errno.EIO:
            remedy = "the store failed several times in a row; try the same command later, it resumes"
        else:
            remedy = "check its name, your rights and credentials"
        raise SluiceError(f"{root} cannot be used: {error}; {remedy}") from error


def _remember(store: Store, dag: Dag, generations: dict[str, Generation]) -> Run:
    numbers = {name: generation.number for name, generation in generations.items()}
    return store.add_run(Run(id="", dag=dag.name, text=dag.text, generations=numbers))


class _Runner:
    """The nodes of one run, each in a thread of its own once its inputs are there."""

    def __init__(
        self,
        dag: Dag,
        store: Store,
        plans: dict[str, NodePlan],
        retry: set[str],
        board: Board,
        signals: _Signals,
        address: str | None,
        executor: Executor | None,
    ) -> None:
        self._dag, self._store, self._plans, self._retry = dag, store, plans, retry
        self._board, self._signals, self._address = board, signals, address
        self._executor = executor
        self._crew: Any = None
        self._crew_lock = threading.Lock()
        self.worked: list[str] = []
        self.sealed: dict[str, Generation] = {}

    def run(self) -> dict[str, Generation]:
        generations: dict[str, Generation] = {}
        errors: dict[str, BaseException] = {}
        with ThreadPoolExecutor(max_workers=max(1, len(self._dag.nodes))) as threads:
            running: dict[Future[Generation], str] = {}
            started: set[str] = set()
            while True:
                for name, node in self._dag.nodes.items():
                    if name not in started and node.depends_on <= set(generations) and not self._signals.stopped:
                        started.add(name)
                        running[threads.submit(self._node, name, dict(generations))] = name
                if not running:
                    break
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    name = running.pop(future)
                    error = future.exception()
                    if error is None:
                        generations[name] = future.result()
                    else:
                        errors[name] = error
                if self._signals.stopped:
                    self.close()
        self.sealed = {name: generations[name] for name in self._dag.nodes if name in generations}  # not as they ended
        self._raise(errors, self.sealed)
        return self.sealed

    def close(self) -> None:
        if self._crew is not None:
            self._crew.stop()

    def _node(self, name: str, generations: dict[str, Generation]) -> Generation:
        plan = self._plans[name]
        if plan.state == "wait":
            prepared = prepare(self._dag, name, self._store, generations)
            plan = plan_node(prepared, self._store, self._store.newest(name), name in self._retry)
        if plan.generation is not None:
            return plan.generation
        assert plan.prepared is not None
        if plan.records is None:
            self._board.say(f"{name}: {'; '.join(plan.reasons)}")
            self.worked.append(name)
        shipped = ship(plan.prepared, self._store)
        work = NodeWork(shipped, self._store, plan.previous, _Late(self._workers), name in self._retry)
        records = work.assemble()
        if not plan.prepared.node.inputs:  # the input may still have words for what was taken down
            known = {record.work_key for record in plan.previous.records} if plan.previous else set()
            records = withheld(self._store, records, known)
        return seal(plan.prepared, self._store, records)

    def _workers(self) -> Executor:
        """Ray is started by the first node that needs it."""
        if self._executor is not None:
            return self._executor
        with self._crew_lock:
            if self._crew is None:
                from pipeline.crew import Crew  # Ray takes seconds to import: only when there is work

                self._crew = Crew(self._store, self._address, self._board.report)
            crew: Executor = self._crew
            return crew

    def _raise(self, errors: dict[str, BaseException], generations: dict[str, Generation]) -> None:
        if self._signals.stopped:
            raise RunStopped("stopped; the same command resumes where it was", 128 + self._signals.stopped)
        for error in errors.values():
            if not isinstance(error, SluiceError):
                raise error
        if errors:
            missing = [name for name in self._dag.nodes if name not in generations and name not in errors]
            first = next(iter(errors.values()))
            also = [str(error) for error in errors.values()][1:]
            skipped = f" (not run because of it: {', '.join(missing)})" if missing else ""
            kind = RunFailed if any(isinstance(error, NodeFailed) for error in errors.values()) else SluiceError
            raise kind("; ".join([str(first), *also]) + skipped)


@dataclass
class _Late:
    """An executor that exists once it is used."""

    make: Callable[[], Executor]

    def run(self, *arguments: Any) -> Any:
        return self.make().run(*arguments)


# -- signals -----------------------------------------------------------------------------------------------------------


class _Signals:
    """SIGTERM and the first Ctrl-C ask the run to stop; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.stopped = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped = number
