"""One call in one process: find it committed, or do it and commit it. Runs inside a Ray actor, or inline in tests."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.partwork import StageFault
from pipeline.records import SECONDS, Record
from pipeline.stage import Task
from pipeline.store import Store


@dataclass(frozen=True)
class Call:
    """A task on its way to a worker. `probe`: only try it, on the rows that the task names, and commit nothing."""

    node: str
    phase: str
    task: Task
    work_key: str
    do: Callable[[Task, Attempt], None]
    probe: bool = False


@dataclass(frozen=True)
class Fault:
    """Why a call did not end in a record.

    `kind`: `stage` (the stage's own code), `refused` (an error with a remedy), `store` (input or output), `crash`.
    """

    kind: str
    error: str
    step: str = ""
    traceback: str = ""


def progress_path(node: str, work_key: str) -> str:
    """Where a task that takes long may say, as a number in a file, how many of its rows are done."""
    return f"{node}/progress/{work_key}"


def work(store: Store, call: Call) -> Record | Fault | None:
    """The record of the call (its own, or the one of whoever was first), or why there is none; None for a probe."""
    if not call.probe:
        done = store.record(call.node, call.work_key)
        if done is not None:
            return done
    try:
        with Attempt(store, call.node, call.phase, call.task, call.work_key) as attempt:
            if call.probe:
                probe: Any = call.do
                probe.probe(call.task, attempt)
                return None
            start = time.perf_counter()
            call.do(call.task, attempt)
            turn = call.task.hints.get("turn")
            attempt.note(**{SECONDS: round(time.perf_counter() - start - (turn.waited_s if turn else 0), 3)})
            return attempt.commit()
    except StageFault as fault:
        return Fault("stage", fault.cause, fault.step, fault.trace)
    except SluiceError as error:
        return Fault("refused", str(error), traceback=traceback.format_exc())
    except OSError as error:
        return Fault("store", f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    except Exception as error:
        return Fault("stage", f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
