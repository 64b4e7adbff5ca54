"""Who is writing to a store: a run leaves a lease while it works, and a killed one leaves it behind."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

from pipeline.errors import SluiceError
from pipeline.store import Store

LEASES = "runs/active"
"""The folder of the leases of runs that write, or that were killed and not resumed."""


@contextmanager
def lease(store: Store) -> Iterator[None]:
    """Says that a run is writing, so that `gc` does not take its uncommitted files.

    A run that ends well also takes back the leases of runs of this machine that were killed.
    """
    path = f"{LEASES}/{uuid4().hex[:12]}.lease"
    store.put(path, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
    try:
        yield
    finally:
        with suppress(OSError):  # a lease that stays keeps `gc` waiting, no more; it must not hide why a run failed
            store.delete(path)
    take_back(store)


def take_back(store: Store) -> None:
    """Delete the leases of runs of this machine that were killed: what they left has been resumed."""
    with suppress(OSError):
        for name in store.names(LEASES):
            if is_dead(json.loads(store.get(f"{LEASES}/{name}"))):
                store.delete(f"{LEASES}/{name}")


def is_dead(lease: dict[str, Any]) -> bool:
    """Whether the process that holds a lease is known to be gone."""
    if lease["host"] != socket.gethostname():
        return False
    try:
        os.kill(lease["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def no_run(store: Store) -> SluiceError:
    """What to tell where no run has ended: perhaps one is at work, or was cut off."""
    with suppress(OSError):  # it may end at this moment
        for name in store.names(LEASES):
            lease = json.loads(store.get(f"{LEASES}/{name}"))
            who = f"process {lease['pid']} on {lease['host']}"
            if is_dead(lease):
                return SluiceError(
                    f"no run of {store.root} has ended: {who} was cut off; `sluice run DAG {store.root}` goes on"
                )
            return SluiceError(f"no run of {store.root} has ended yet: {who} is at one; wait for it")
    return SluiceError(f"{store.root} has no run; `sluice run DAG {store.root}` makes one")
