"""Peak memory of the processes of a command, by their role: the kernel keeps the highest that there ever was."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.cluster import MARK, marked, marks_killed, processes_with

LOOK_EVERY_S = 0.2


def peaks(command: Sequence[str], role: Callable[[int, str], str | None], said: Path) -> dict[str, float]:
    """MiB of resident memory by role, of the largest process of it, while a command runs; its output goes to `said`.

    `role` names a process by its id and its command line; None leaves it out.
    """
    found: dict[str, float] = {}
    environment = marked(os.environ)
    with marks_killed(environment[MARK]):
        with said.open("w") as sink:
            driver = subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT)
        while driver.poll() is None:
            for pid, process in with_children(processes_with(environment[MARK])).items():
                name = role(pid, process)
                if name is not None:
                    found[name] = max(found.get(name, 0.0), peak_of(pid))
            time.sleep(LOOK_EVERY_S)
        assert driver.returncode == 0, said.read_text()
    return found


def with_children(processes: Mapping[int, str]) -> dict[int, str]:
    """The processes and their children, which may have been started without their environment."""
    found = dict(processes)
    for pid in processes:
        with suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():  # each has the children that it started itself
                for child in (thread / "children").read_text().split():
                    command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                    found.setdefault(int(child), b" ".join(command).decode(errors="replace").strip())
    return found


def peak_of(pid: int) -> float:
    """MiB; 0 where the process just ended."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0
    return 0.0
