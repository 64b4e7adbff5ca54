"""SIGTERM and Ctrl-C: a run leaves within 30 seconds, says so in one line, and is resumed (FAULTS 55)."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from pipeline.errors import SluiceError
from pipeline.leases import LEASES
from pipeline.upkeep import find_garbage
from tests.chaos.drive import check, files, hashes, local, whole
from tests.chaos.driver import send, started, until
from tests.chaos.slow import Slow

pytestmark = pytest.mark.fault(55)


@pytest.mark.parametrize(
    ("number", "code", "batches"),
    [
        pytest.param(signal.SIGTERM, 143, 3, id="SIGTERM-at-work"),
        pytest.param(signal.SIGTERM, 143, 0, id="SIGTERM-while-Ray-starts", marks=pytest.mark.chaos),
        pytest.param(signal.SIGINT, 130, 3, id="SIGINT-at-work", marks=pytest.mark.chaos),
        pytest.param(signal.SIGINT, 130, 0, id="SIGINT-while-Ray-starts", marks=pytest.mark.chaos),
    ],
)
def test_a_run_that_is_asked_to_stop_leaves_only_its_lease_and_is_resumed(
    tmp_path: Path, number: signal.Signals, code: int, batches: int
) -> None:
    slow = Slow(tmp_path, parts=16, seconds=0.3)
    root = tmp_path / "root"
    with started(["run", slow.dag, root]) as driver:
        driver.until(lambda: "never run" in driver.said() and len(slow.batches()) >= batches, "it works")
        asked = time.monotonic()
        send(driver.process.pid, number)
        assert driver.finish() == code
        assert time.monotonic() - asked < 30
        last = driver.said().strip().splitlines()[-1]
        assert last == "error: stopped; the same command resumes where it was"
        assert [line for line in driver.said().splitlines() if "***" in line or "Traceback" in line] == []
        until(lambda: not driver.processes(), "Ray's processes are gone too")
    whole(root)
    with pytest.raises(SluiceError, match="were interrupted"):  # nor may `gc` take what the same run will go on from
        find_garbage(local(root), keep_runs=1)
    assert [path for path in files(root, "*/data/*") if path.name.startswith("spool-")] == []
    committed = local(root).committed("slow")
    assert len(committed) < 16
    done = len(slow.batches())
    slow.resume(str(root))
    assert local(root).names(LEASES) == []
    assert len(slow.batches()) - done == 16 - len(committed), "what was committed is reused"
    assert hashes(root) == slow.calm
    check(root)
