"""CPU-seconds of a command and of everything that it starts, daemons included, seen in /proc."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
LOOK_S = 0.1
SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Cost:
    cpu_s: float
    wall_s: float
    by_name: Mapping[str, float]
    """CPU-seconds by the name of the program or thread group."""


def cost_of(command: Sequence[str], env: Mapping[str, str] | None = None) -> Cost:
    """Run it to its end; raises `RuntimeError` with its last words when that is not 0.

    What a process used after the last look at it is not counted: at most 0.1 s for each.
    """
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans become ours and stay within sight
    before = set(children(os.getpid()))
    seen: dict[int, tuple[str, float]] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_S):
            look(seen, before)

    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        thread = threading.Thread(target=watch)
        thread.start()
        code = process.wait()
        wall_s = time.perf_counter() - started
        look(seen, before)
        ended.set()
        thread.join()
        said.seek(0)
        if code:
            raise RuntimeError(f"{' '.join(command)[:200]} ended with {code}: {said.read().decode()[-2000:]}")
    by_name: dict[str, float] = {}
    for name, seconds in seen.values():
        by_name[name] = by_name.get(name, 0) + seconds
    return Cost(sum(by_name.values()), wall_s, by_name)


def look(seen: dict[int, tuple[str, float]], others: set[int]) -> None:
    """Note the CPU-seconds of every descendant of this process but `others`."""
    parents: dict[int, int] = {}
    states: dict[int, tuple[str, float]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields = rest.split()
        pid = int(folder.name)
        parents[pid] = int(fields[1])
        states[pid] = (name, (int(fields[11]) + int(fields[12])) * TICK_S)
    ours = {os.getpid()}
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in ours and pid not in ours and pid not in others}
        grown = bool(more)
        ours |= more
    for pid in ours - {os.getpid()}:
        seen[pid] = states[pid]


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]
