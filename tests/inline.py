"""Runs calls in this process, in order: what the engine does, without Ray."""

from collections.abc import Sequence

from pipeline.dag import Node
from pipeline.node import NodeFailed
from pipeline.records import Record
from pipeline.store import Store
from pipeline.worker import Call, Fault, work


class Inline:
    """An `Executor` for tests; `calls` counts what was really done, by node."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.calls: dict[str, list[str]] = {}

    def run(self, node: Node, calls: Sequence[Call], total_rows: int, done_rows: int) -> list[Record]:
        records = []
        for call in calls:
            self.calls.setdefault(node.name, []).append(call.task.part)
            outcome = work(self.store, call)
            if isinstance(outcome, Fault):
                raise NodeFailed(f"{outcome.error}\n{outcome.traceback}")
            assert outcome is not None
            records.append(outcome)
        return records
