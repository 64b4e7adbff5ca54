"""A Ray cluster of several raylets on loopback, each a machine of its own as far as Ray knows.

with cluster(raylets=3, variables=s3.variables()) as machines:
    subprocess.run(["sluice", "run", dag, root, "--address", machines.address], env=machines.environment)
    os.kill(machines.raylets[2], signal.SIGKILL)   # a machine is gone, and its workers with it

All of it carries a mark in its environment, by which it is found and killed at the end, whatever happened.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

REPOSITORY = Path(__file__).parents[1]
MARK = "SLUICE_TEST_MARK"


@dataclass(frozen=True)
class Machines:
    """A running cluster. The first raylet is the head, where drivers join."""

    address: str
    raylets: Sequence[int]
    """Process ids."""
    environment: Mapping[str, str]
    """For drivers: the cluster's token and mark, and this repository to import from."""

    def processes(self, raylet: int) -> list[int]:
        """All that dies with the machine: the raylet, its agents and its workers."""
        return [raylet, *_children(raylet)]


@contextmanager
def cluster(raylets: int, variables: Mapping[str, str] | None = None) -> Iterator[Machines]:
    """`raylets` raylets of one CPU each, behind a token; nothing of it is left afterwards."""
    folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")  # short: a socket's path has at most 107 characters
    environment = marked({**os.environ, **(variables or {})}) | {
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid4().hex * 2,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "4",
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.cluster", str(raylets)]
    log = Path(folder, "cluster.log")
    with marks_killed(environment[MARK]), log.open("wb") as errors:
        process = subprocess.Popen(
            command, env=environment, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, f"the cluster did not start: {log.read_text()[-2000:]}"
            started = json.loads(line)
            yield Machines(started["address"], started["raylets"], environment)
        finally:
            process.kill()
            process.communicate()
    shutil.rmtree(folder, ignore_errors=True)


def marked(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with a new mark and this repository to import from."""
    search = [str(REPOSITORY), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, MARK: uuid4().hex, "PYTHONPATH": os.pathsep.join(search)}


def processes_with(mark: str) -> dict[int, str]:
    """The processes, daemons included, whose environment carries the mark, and their command lines."""
    needle = f"{MARK}={mark}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if needle in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = _command(int(entry.name))
    return found


@contextmanager
def marks_killed(mark: str) -> Iterator[None]:
    """Every process that carries the mark is gone afterwards."""
    try:
        yield
    finally:
        deadline = time.monotonic() + 20
        while left := processes_with(mark):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, f"{left} cannot be killed"
            time.sleep(0.05)


def _children(parent: int) -> list[int]:
    with suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return []


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def main(raylets: int) -> None:
    """Start the raylets, say where, and stay until our standard input is closed."""
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
    machines = Cluster(initialize_head=True, head_node_args=head)
    nodes: list[Any] = [machines.head_node]
    nodes += [machines.add_node(num_cpus=1, node_ip_address=f"127.0.0.{n}") for n in range(2, raylets + 1)]
    pids = [node.all_processes[ray_constants.PROCESS_TYPE_RAYLET][0].process.pid for node in nodes]
    sys.stdout.write(json.dumps({"address": machines.address, "raylets": pids}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    for pid in processes_with(os.environ[MARK]):  # Ray's own goodbye takes minutes where a raylet was killed
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
