"""A real `sluice run` in a process of its own, with Ray and its workers: to be killed, stopped and asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.faulty import Control
from tests.cluster import MARK, REPOSITORY, marked, marks_killed, processes_with

PATIENCE_S = 150
"""Two cores are shared by many; what takes longer is stuck."""


@dataclass(frozen=True)
class Driver:
    """A running `sluice run`."""

    process: subprocess.Popen[bytes]
    log: Path
    mark: str

    def said(self) -> str:
        return self.log.read_text()

    def processes(self) -> dict[int, str]:
        """All that lives of it: the driver, Ray's own processes and the workers, with their command lines."""
        return processes_with(self.mark)

    def workers(self) -> list[int]:
        """The actors that do the work."""
        return [pid for pid, command in self.processes().items() if command.startswith("ray::Worker")]

    def until(self, true: Callable[[], object], what: str) -> None:
        """Wait while the driver runs."""
        until(lambda: true() or self.process.poll() is not None, what)
        assert true(), f"ended before {what}: {self.said()}"

    def finish(self) -> int:
        """The exit code, once it ended by itself."""
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def gone(self) -> None:
        """Wait until nothing of it lives that could write. Ray's agents outlive a killed raylet by a minute."""

        def writers() -> list[str]:
            # A process that is about to be reaped has no command any more.
            return [command for command in self.processes().values() if command and "Agent" not in command.split()[0]]

        until(lambda: not writers(), "all of the run is dead")


@contextmanager
def started(
    arguments: Sequence[str | Path], control: Control | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[Driver]:
    """`sluice` with these arguments; nothing of it is left afterwards. `control` brings its faults."""
    environment = marked({**os.environ, **(variables or {})})
    if control is not None:
        environment |= control.environment()
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    log = Path(os.environ.get("TMPDIR", "/tmp"), f"sluice-{environment[MARK]}.log")
    with marks_killed(environment[MARK]), log.open("wb") as sink:
        process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=sink, stderr=subprocess.STDOUT)
        try:
            yield Driver(process, log, environment[MARK])
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
            log.unlink()


def sluice(*arguments: str | Path, control: Control | None = None) -> tuple[int, str]:
    """Run to its end: exit code, and what it said."""
    with started(arguments, control) as driver:
        return driver.finish(), driver.said()


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has reached the process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


def send(pid: int, number: signal.Signals) -> None:
    os.kill(pid, number)
