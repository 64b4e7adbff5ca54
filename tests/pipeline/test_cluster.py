"""Several machines and one bucket: the same hashes, also where a machine is lost or the driver has files of its own.

FAULTS 36. Three raylets on loopback stand for the machines; no worker is given a path of the driver's.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from uuid import uuid4

import pytest

from pipeline import Dag, run
from pipeline.store import Store
from tests import toys
from tests.cluster import MARK, REPOSITORY, Machines, cluster, marked, marks_killed, processes_with
from tests.inline import Inline
from tests.s3 import S3, serving

PATIENCE_S = 100
TEXT = """
dag: toys
nodes:
  urls: {steps: [{tests.toys.Numbers: {rows: 120, parts: 24, captions: 2}}]}
  pool: {from: urls, steps: [{tests.toys.Fetch: {fails: 10}}]}
  slow: {from: urls, steps: [{tests.toys.Slow: {seconds: SECONDS, log: "LOG"}}]}
  scores: {from: [pool, slow], steps: [tests.toys.Times, tests.toys.Label]}
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serving() as server, server.environment():
        yield server


@pytest.fixture(scope="module")
def machines(s3: S3) -> Iterator[Machines]:
    """The last test that uses it kills one of the three."""
    with cluster(3, s3.variables()) as started:
        yield started


@pytest.fixture
def root(s3: S3) -> str:
    return f"{s3.bucket(f'b-{uuid4().hex[:8]}')}/root"


class Case:
    """A DAG whose `slow` node says in a log which process worked."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.log = folder / "log"
        self.dag = folder / "toys.yaml"
        self.text = TEXT.replace("LOG", str(self.log)).replace("SECONDS", str(seconds))
        self.dag.write_text(self.text)
        result = run(Dag.parse(self.text, ["slow.seconds=0"]), str(folder), executor=Inline(Store(str(folder))))
        self.hashes = {name: generation.content_hash for name, generation in result.generations.items()}
        self.log.unlink()

    def worked(self) -> list[int]:
        """The process of every batch, in order."""
        return [int(line.split()[0]) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def hashes_in(self, root: str) -> dict[str, str]:
        store = Store(root)
        return {name: newest.content_hash for name in self.hashes if (newest := store.newest(name))}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *arguments]


@contextmanager
def running(arguments: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A driver, dead afterwards."""
    process = subprocess.Popen(
        arguments, env=dict(environment), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def finish(driver: subprocess.Popen[str]) -> str:
    said, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, said
    return said


def until(true: Callable[[], object], what: str, driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert driver.poll() is None, f"ended before {what}: {driver.communicate()[0]}"
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


def lose(machines: Machines, raylet: int) -> list[int]:
    """Kill everything on a machine at once; it is dead on return."""
    victims = machines.processes(raylet)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in victims):
        assert time.monotonic() < deadline, "the machine would not die"
        time.sleep(0.01)
    return victims


def alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_three_machines_give_the_hashes_of_one_and_all_of_them_work(
    machines: Machines, root: str, tmp_path: Path
) -> None:
    case = Case(tmp_path, 0.2)
    with running(command("run", str(case.dag), root, "--address", machines.address), machines.environment) as driver:
        until(lambda: len(set(case.worked())) == 3, "all three machines worked", driver)
        owners = {pid: place for place, raylet in enumerate(machines.raylets) for pid in machines.processes(raylet)}
        assert {owners[pid] for pid in case.worked()} == {0, 1, 2}
        finish(driver)
    assert case.hashes_in(root) == case.hashes


def test_no_worker_needs_a_file_or_folder_that_only_the_driver_has(
    machines: Machines, root: str, tmp_path: Path
) -> None:
    """DAG, resource and current folder of the driver lie on a file system that only its own mount namespace has."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets us make no mount namespace")
    private = tmp_path / "private"
    private.mkdir()
    dag = f"""
dag: d
nodes:
  urls: {{steps: [{{tests.toys.Numbers: {{rows: 40}}}}]}}
  listed: {{from: urls, steps: [{{tests.toys.Listed: {{numbers: {private}/numbers.txt}}}}]}}
"""
    script = """
mount -t tmpfs tmpfs "$0" && cd "$0" && printf %s "$1" > d.yaml && printf '3\\n7\\n' > numbers.txt && shift && exec "$@"
"""
    arguments = command("run", "d.yaml", root, "--address", machines.address)
    with running(["unshare", "--mount", "sh", "-c", script, str(private), dag, *arguments], machines.environment) as d:
        finish(d)
    assert list(private.iterdir()) == [], "the file system was not private"
    store = Store(root)
    listed = store.newest("listed")
    assert listed is not None
    rows = [row for record in listed.records for row in store.read_table(record, "image").to_pylist()]
    assert {row["uid"] for row in rows if row["listed"]} == {toys.uid_of(3), toys.uid_of(7)}


def test_a_driver_without_the_token_is_turned_away(machines: Machines, root: str, tmp_path: Path) -> None:
    case = Case(tmp_path, 0)
    stranger = {**machines.environment, "RAY_AUTH_TOKEN": "0" * 64, "RAY_NUM_REDIS_GET_RETRIES": "1"}
    with running(command("run", str(case.dag), root, "--address", machines.address), stranger) as driver:
        said, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 2
    assert "InvalidAuthToken" in said
    assert "RAY_AUTH_TOKEN" in said.splitlines()[-1]
    assert case.worked() == []


def test_an_address_where_nothing_listens_is_said_at_once(root: str, tmp_path: Path) -> None:
    case = Case(tmp_path, 0)
    with running(command("run", str(case.dag), root, "--address", "127.0.0.1:1"), marked(os.environ)) as driver:
        said, _ = driver.communicate(timeout=PATIENCE_S)  # Ray alone goes on trying for minutes
    assert driver.returncode == 2
    assert "no Ray cluster answers at '127.0.0.1:1': [Errno 111] Connection refused" in said


def test_a_local_run_listens_on_loopback_only_and_joins_no_other_cluster(tmp_path: Path) -> None:
    case = Case(tmp_path, 0.2)
    environment = {**marked(os.environ), "RAY_ADDRESS": "192.0.2.1:6379"}
    with marks_killed(environment[MARK]):
        with running(command("run", str(case.dag), str(tmp_path / "root")), environment) as driver:
            until(lambda: len(case.worked()) > 2, "the workers worked", driver)
            listening = listeners([*processes_with(environment[MARK])])
            finish(driver)
        until_gone = time.monotonic() + 20
        while processes_with(environment[MARK]) and time.monotonic() < until_gone:
            time.sleep(0.1)
        assert processes_with(environment[MARK]) == {}, "a process outlived the run"
    assert len(listening) >= 4, "Ray's own processes listen"
    assert [address for address in listening if not address.is_loopback] == []
    assert case.hashes_in(str(tmp_path / "root")) == case.hashes


@pytest.mark.fault(36)
def test_a_run_outlives_a_machine(machines: Machines, root: str, tmp_path: Path) -> None:
    case = Case(tmp_path, 0.3)
    lost = machines.raylets[-1]
    with running(command("run", str(case.dag), root, "--address", machines.address), machines.environment) as driver:
        until(lambda: set(case.worked()) & set(machines.processes(lost)), "the machine worked", driver)
        victims = lose(machines, lost)
        before = case.worked()
        assert len(before) < 24, "the machine was lost too late to matter"
        finish(driver)
    assert set(before) & set(victims)
    assert not set(case.worked()[len(before) :]) & set(victims)
    assert case.hashes_in(root) == case.hashes


@pytest.mark.fault(36)
@pytest.mark.chaos
def test_a_run_outlives_all_machines_but_one_and_resumes_on_a_new_cluster(s3: S3, root: str, tmp_path: Path) -> None:
    """The last machine is the driver's: with it the run ends, and the same command resumes elsewhere."""
    case = Case(tmp_path, 1.0)
    with cluster(3, s3.variables()) as first:
        arguments = command("run", str(case.dag), root, "--address", first.address)
        with running(arguments, first.environment) as driver:
            for place in (2, 1, 0):
                count = len(case.worked())
                until(lambda count=count: len(case.worked()) > count + 1, "work goes on", driver)  # type: ignore[misc]
                lose(first, first.raylets[place])
            said, _ = driver.communicate(timeout=PATIENCE_S)
            assert driver.returncode != 0, said
    done = len(Store(root).committed("slow"))
    assert 0 < done < 24
    with cluster(2, s3.variables()) as second:
        before = len(case.worked())
        arguments = command("run", str(case.dag), root, "--address", second.address)
        with running(arguments, second.environment) as driver:
            finish(driver)
    assert len(case.worked()) - before == 24 - done, "committed parts were done again"
    assert case.hashes_in(root) == case.hashes


def listeners(pids: list[int]) -> list[IPv4Address | IPv6Address]:
    """The addresses at which the processes listen."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                inodes.add(os.readlink(descriptor))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.append(_address(fields[1].partition(":")[0]))
    return found


def _address(kernel: str) -> IPv4Address | IPv6Address:
    """The kernel writes addresses as hexadecimal words in the machine's byte order."""
    address = ip_address(b"".join(bytes.fromhex(kernel[at : at + 8])[::-1] for at in range(0, len(kernel), 8)))
    return getattr(address, "ipv4_mapped", None) or address
