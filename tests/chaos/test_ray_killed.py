"""A real run: its driver killed, its worker asleep during the resume, two drivers at once (FAULTS 34, 42, 43)."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from pipeline.store import Store
from tests.chaos.drive import check, generations, hashes, local, whole
from tests.chaos.driver import is_stopped, send, started, until
from tests.chaos.faulty import Control, Plan
from tests.chaos.slow import Slow
from tests.cluster import cluster


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(tmp_path, parts=16, seconds=0.3)


@pytest.fixture
def control(tmp_path: Path) -> Control:
    control = Control(tmp_path / "faults")
    control.arm(Plan("none"))
    return control


@pytest.mark.fault(34)
def test_a_driver_killed_while_a_worker_commits_is_resumed_and_what_was_committed_is_reused(
    slow: Slow, control: Control
) -> None:
    root = f"faulty://{slow.folder}/root"
    with started(["run", slow.dag, root], control) as driver:
        control.arm(Plan("kill_driver", 5, match=r"^pipe_file .*/slow/commits/", pid=driver.process.pid))
        assert driver.finish() == -signal.SIGKILL
        assert len(control.landed()) == 1
        control.arm(Plan("none"))
        driver.gone()
    committed = local(root).committed("slow")
    assert 4 <= len(committed) < 16
    assert local(root).newest("slow") is None
    whole(root)
    done = len(slow.batches())
    slow.resume(root)
    assert len(slow.batches()) - done == 16 - len(committed), "what was committed is not done again"
    assert hashes(root) == slow.calm
    assert {record.work_key for record in generations(root)["slow"].records} >= committed
    check(root)


@pytest.mark.fault(34)
@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(4))
def test_a_run_whose_driver_is_killed_at_random_moments_converges(slow: Slow, seed: int) -> None:
    moments = random.Random(seed)
    roots = [slow.folder / "root-0"]
    kills = 0
    while kills < 5:
        root = roots[-1]
        with started(["run", slow.dag, root]) as driver:
            driver.until(lambda said=driver.said, runs=root / "runs": "run" in said() or runs.exists(), "it runs")  # type: ignore[misc]
            time.sleep(moments.uniform(0, 9))
            if driver.process.poll() is None:
                driver.kill()
                kills += 1
            else:
                roots.append(slow.folder / f"root-{len(roots)}")
            driver.gone()
        if root.exists():
            whole(root)
    for root in roots:
        with started(["run", slow.dag, root]) as driver:
            assert driver.finish() == 0, driver.said()
        assert hashes(root) == slow.calm
        assert {name: len(Store(str(root)).generation_numbers(name)) for name in slow.calm} == dict.fromkeys(
            slow.calm, 1
        )
        check(root)


@pytest.mark.chaos
def test_a_stopped_worker_does_not_outlive_its_driver(slow: Slow, control: Control) -> None:
    root = f"faulty://{slow.folder}/root"
    with started(["run", slow.dag, root], control) as driver:
        control.arm(Plan("stop", 3, match=r"^pipe_file .*/slow/commits/"))
        driver.until(lambda: [pid for pid in driver.workers() if is_stopped(pid)], "a worker is stopped")
        assert len(control.landed()) == 1
        driver.kill()
        driver.gone()


@pytest.mark.fault(43)
@pytest.mark.chaos
def test_a_machine_that_freezes_before_a_put_and_wakes_up_after_the_run_changes_nothing(
    slow: Slow, control: Control
) -> None:
    root = f"faulty://{slow.folder}/root"
    with cluster(2, control.environment()) as machines:
        command: list[str | Path] = ["run", slow.dag, root, "--address", machines.address]
        with started(command, control, machines.environment) as driver:
            frozen = machines.raylets[1]
            driver.until(lambda: set(machines.processes(frozen)) & set(slow.batches()), "the second machine worked")
            (zombie,) = set(machines.processes(frozen)) & set(slow.batches())
            control.arm(Plan("stop", match=r"^pipe_file .*/slow/commits/", pid=zombie))
            driver.until(lambda: is_stopped(zombie), "its worker is stopped")
            (operation,) = control.landed()
            asleep = machines.processes(frozen)
            for pid in asleep:
                send(pid, signal.SIGSTOP)
            assert driver.finish() == 0, driver.said()
        path = Path(operation.split()[1])
        assert path.exists(), "another did the part"
        before = {path: path.read_bytes() for path in Path(local(root).path).rglob("*.json")}
        control.arm(Plan("none", match=str(path)))
        for pid in asleep:
            send(pid, signal.SIGCONT)
        until(lambda: not Path(f"/proc/{zombie}").exists() or control.operations(), "it dies or puts")
        time.sleep(2)
    assert {path: path.read_bytes() for path in Path(local(root).path).rglob("*.json")} == before
    assert hashes(root) == slow.calm
    check(root)


@pytest.mark.fault(42)
@pytest.mark.chaos
def test_two_drivers_at_once_both_end_well_and_no_part_counts_twice(slow: Slow) -> None:
    root = slow.folder / "root"
    with started(["run", slow.dag, root]) as one, started(["run", slow.dag, root]) as two:
        until(lambda: len(Store(str(root)).names("runs/active")) == 2, "both are writing")
        assert (one.finish(), two.finish()) == (0, 0), one.said() + two.said()
    assert hashes(root) == slow.calm
    assert len(set(slow.batches())) > 2, "workers of both worked"
    assert len(generations(root)["slow"].records) == 16
    check(root)
