"""Who is writing to a store: a run has a lease while it works, and leaves it behind where it did not end well."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.errors import SluiceError
from pipeline.store import Store

LEASES = "runs/active"
"""The folder of the leases of runs that write, or that did not end well and were not resumed."""


@contextmanager
def lease(store: Store, dag: str, whole: bool) -> Iterator[None]:
    """Says that a run is writing, so that `gc` does not take what no generation names yet.

    A run that ends well takes it back, and if it was of the `whole` DAG those of earlier runs of it that did not: what
    they left has been resumed. One that fails or is stopped leaves it, marked so.
    """
    path = f"{LEASES}/{uuid4().hex[:12]}.lease"
    holder = {"dag": dag, **this_process()}
    store.put(path, json.dumps(holder).encode())
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it must not hide why a run failed
            store.put(path, json.dumps({**holder, "stopped": True}).encode())
        raise
    with suppress(OSError):  # a lease that stays keeps `gc` waiting, no more
        store.delete(path)
    if whole:
        take_back(store, dag)


def take_back(store: Store, dag: str) -> None:
    """Delete the leases of runs of a DAG that were stopped, or killed on this machine."""
    with suppress(OSError, ValueError):
        for name in store.names(LEASES):
            holder = json.loads(store.get(f"{LEASES}/{name}"))
            if holder.get("dag", dag) == dag and is_dead(holder):
                store.delete(f"{LEASES}/{name}")


def this_process() -> dict[str, Any]:
    """Who holds a lease. The time of its start tells a process from a later one with the same number."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_dead(holder: Mapping[str, Any]) -> bool:
    """Whether who holds a lease is known to write no more."""
    if holder.get("stopped"):
        return True
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is another user's
    return "started" in holder and holder["started"] != _started(holder["pid"])


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the machine did, and which start of the machine; None where /proc is not."""
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{ticks}"
    except OSError:
        return None


def described(holder: Mapping[str, Any]) -> str:
    return f"{holder.get('dag', 'a run')}, process {holder['pid']} on {holder['host']}"


def no_run(store: Store) -> SluiceError:
    """What to tell where no run has ended: perhaps one is at work, or did not end well."""
    holders: list[dict[str, Any]] = []
    with suppress(OSError, ValueError):  # it may end at this moment
        holders = [json.loads(store.get(f"{LEASES}/{name}")) for name in store.names(LEASES)]
    for holder in sorted(holders, key=is_dead):
        if is_dead(holder):
            how = "stopped before its end" if holder.get("stopped") else "was killed"
            return SluiceError(
                f"no run of {store.root} has ended: {described(holder)}, {how}; `sluice run DAG {store.root}` goes on"
            )
        return SluiceError(
            f"no run of {store.root} has ended: {described(holder)}, is at one; wait for it, or run the DAG again if "
            "it is not there any more"
        )
    return SluiceError(f"{store.root} has no run; `sluice run DAG {store.root}` makes one")
