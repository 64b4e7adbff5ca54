"""Workers that are killed, and rows that kill their workers (FAULTS 35, 38), on Ray."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests import toys
from tests.chaos.drive import check, generations, hashes, values
from tests.chaos.driver import Driver, send, sluice, started, until
from tests.chaos.faulty import FOREVER, Control, Plan
from tests.chaos.slow import Slow


@pytest.mark.fault(35)
@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.chaos)])
def test_workers_killed_at_random_are_replaced_and_their_parts_done_once(tmp_path: Path, kills: int) -> None:
    slow = Slow(tmp_path, parts=24, seconds=0.3)
    root = tmp_path / "root"
    with started(["run", slow.dag, root]) as driver:
        killed = [kill_a_worker_that_has_worked(driver, slow, number) for number in range(kills)]
        assert driver.finish() == 0, driver.said()
    assert len(set(killed)) == kills
    assert set(killed) < set(slow.batches()), "those killed had worked, and others took over"
    assert hashes(root) == slow.calm
    check(root)
    assert generations(root)["slow"].statuses == {"ok": 96}


def kill_a_worker_that_has_worked(driver: Driver, slow: Slow, before: int) -> int:
    """The process id, once it is dead. Kills are spread over the parts."""
    victims: list[int] = []

    def found() -> bool:
        victims[:] = sorted(set(driver.workers()) & set(slow.batches()))
        return bool(victims) and len(slow.batches()) > 2 * before

    driver.until(found, "a worker worked")
    victim = random.choice(victims)
    send(victim, signal.SIGKILL)
    until(lambda: victim not in driver.processes(), "the worker is dead")
    return victim


POISON = """
dag: poison
nodes:
  numbers: {steps: [{tests.toys.Numbers: {rows: 32, parts: 4}}]}
  raising: {from: numbers, steps: [{tests.toys.Poison: {bad: [3, 7, 17, 22], how: raise}}]}
  killing: {from: numbers, steps: [{tests.toys.Poison: {bad: [6], how: kill}}]}
  times: {from: numbers, steps: [tests.toys.Times]}
"""


@pytest.mark.fault(38)
@pytest.mark.parametrize("killers", ["[6]", pytest.param("[6, 9, 13, 30]", marks=pytest.mark.chaos)])
def test_exactly_the_poison_rows_are_quarantined(tmp_path: Path, killers: str) -> None:
    dag = tmp_path / "poison.yaml"
    dag.write_text(POISON)
    code, said = sluice("run", dag, tmp_path / "root", "--set", f"killing.bad={killers}")
    assert code == 0, said
    poison = {"raising": [3, 7, 17, 22], "killing": [int(n) for n in killers.strip("[]").split(",")]}
    for node, bad in poison.items():
        generation = generations(tmp_path / "root")[node]
        assert generation.statuses == {"ok": 32 - len(bad), "quarantined": len(bad)}
        found = dict(values(tmp_path / "root", node, ["uid", "m"]))
        assert found == {toys.uid_of(n): None if n in bad else n for n in range(32)}
    assert len(values(tmp_path / "root", "times", ["product"])) == 32
    check(tmp_path / "root")
    code, said = sluice("errors", tmp_path / "root", "--traceback")
    assert code == 0
    for n in [*poison["raising"], *poison["killing"]]:
        assert toys.uid_of(n) in said
    for n in poison["raising"]:
        assert f"ValueError: cannot bear {n}" in said
    assert "Traceback (most recent call last)" in said
    assert "the worker process died" in " ".join(said.split())


def test_a_part_that_fails_wholly_fails_its_node_in_one_line_and_is_done_once_mended(tmp_path: Path) -> None:
    dag = tmp_path / "poison.yaml"
    dag.write_text(POISON)
    root = tmp_path / "root"
    every_second = "[" + ",".join(str(n) for n in range(1, 32, 4)) + "]"
    harmless = ["--set", "killing.bad=[]"]
    code, said = sluice("run", dag, root, *harmless, "--set", f"raising.bad={every_second}")
    assert code == 2
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert "raising: 1 of 4 parts failed, the first with ValueError: cannot bear 1; see `sluice errors" in line
    assert "Traceback" not in said
    code, said = sluice("errors", root)
    assert "raising part 000-00001 failed: ValueError: cannot bear 1" in said
    code, said = sluice("plan", dag, root, *harmless, "--set", f"raising.bad={every_second}", "--parts")
    assert said.count("reuse") >= 3, said
    code, said = sluice("run", dag, root, *harmless, "--set", "raising.bad=[]")
    assert code == 0, said
    assert "worked on: raising" in said
    assert generations(root)["raising"].statuses == {"ok": 32}
    check(root)


FAINTS = """
dag: faints
nodes:
  numbers: {{steps: [{{tests.toys.Numbers: {{rows: 8, parts: 1}}}}]}}
  faints: {{from: numbers, steps: [{{tests.chaos.stages.Faints: {{times: 3, log: "{folder}/log"}}}}]}}
"""


@pytest.mark.fault(35)
@pytest.mark.chaos
def test_a_part_whose_workers_were_killed_three_times_by_others_is_done_and_nothing_is_quarantined(
    tmp_path: Path,
) -> None:
    dag = tmp_path / "faints.yaml"
    dag.write_text(FAINTS.format(folder=tmp_path))
    code, said = sluice("run", dag, tmp_path / "root")
    assert len(set((tmp_path / "log").read_text().split())) == 3, "three workers died"
    assert code == 0, said
    assert generations(tmp_path / "root")["faints"].statuses == {"ok": 8}


@pytest.mark.chaos
def test_workers_that_all_die_before_they_start_end_the_run(tmp_path: Path) -> None:
    dag = tmp_path / "poison.yaml"
    dag.write_text(POISON)
    control = Control(tmp_path / "faults")
    control.arm(Plan("kill", times=FOREVER, match="^connect ", who="default_worker"))
    code, said = sluice("run", dag, f"faulty://{tmp_path}/root", control=control)
    assert len(control.landed()) >= 3, said
    assert code == 2
    assert "error: no worker stays alive until it has started" in said
