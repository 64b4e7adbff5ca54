"""Two drivers at once, and a zombie that wakes up after the work was done by others (FAULTS 42, 43)."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pipeline.upkeep import find_garbage
from tests.chaos.drive import Case, beside, check, files, generations, hashes, local
from tests.chaos.driver import is_stopped, send, until
from tests.chaos.faulty import WRITES, Plan

WRITING = rf"^({'|'.join(WRITES)}) "
COMMITTING = "^pipe_file .*/(commits|generations|runs)/.*json"


@pytest.mark.fault(43)
@pytest.mark.parametrize(
    ("match", "step"), [pytest.param(WRITING, 1, marks=pytest.mark.chaos, id="every-write"), (COMMITTING, 3)]
)
def test_a_zombie_that_wakes_up_after_the_work_was_done_by_others_loses_its_puts(
    case: Case, match: str, step: int
) -> None:
    lost = 0
    for at in range(1, len(case.operations("faulty", match)) + 1, step):
        root = f"faulty://{case.folder}/{at}"
        case.control.arm(Plan("stop", at, match=match))
        with beside(case, root) as zombie:
            assert zombie.pid is not None
            until(lambda pid=zombie.pid: is_stopped(pid), "the zombie is stopped")  # type: ignore[misc]
            (operation,) = case.control.landed()
            case.converges(root)
            before = sealed(root)
            case.control.arm(Plan("none"))
            send(zombie.pid, signal.SIGCONT)
            zombie.join(60)
            assert zombie.exitcode == 0
        lost += "/commits/" in operation and f"cat_file {operation.split()[1]}" in case.control.operations()
        assert sealed(root) == before
        assert hashes(root) == case.calm
        check(root)
        garbage_is_exactly_what_nobody_names(root)
    assert lost >= 3, "a zombie reads the winner's record where it wanted to put its own"


@pytest.mark.fault(42)
@pytest.mark.parametrize("times", [pytest.param(25, marks=pytest.mark.chaos), 3])
def test_drivers_that_race_converge_and_do_no_part_twice(case: Case, times: int) -> None:
    both_wrote = 0
    for number in range(times):
        root = f"faulty://{case.folder}/race-{number}"
        with beside(case, root) as one, beside(case, root) as two:
            for driver in (one, two):
                driver.join(60)
                assert driver.exitcode == 0
        case.converges(root)
        both_wrote += len(files(root, "*/data/*.parquet")) > sum(
            file.path.endswith(".parquet") for g in generations(root).values() for r in g.records for file in r.files
        )
        garbage_is_exactly_what_nobody_names(root)
    assert both_wrote, "the two never met"


def sealed(root: str) -> dict[str, bytes]:
    """Every record, generation and run as it stands."""
    folder = Path(local(root).path)
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*.json"))}


def garbage_is_exactly_what_nobody_names(root: str) -> None:
    store = local(root)
    named = {"sluice.json", "runs/0001.json"}
    for node, generation in generations(root).items():
        named.add(f"{node}/generations/{generation.number:04d}.json")
        for record in generation.records:
            named.add(f"{node}/commits/{record.work_key}.json")
            named |= {store.place(record, file) for file in record.files}
    there = {str(path.relative_to(store.path)) for path in files(root, "**/*")}
    resources = {path for path in there if path.startswith("resources/")}
    assert named <= there
    assert set(find_garbage(store, 1).paths) == there - named - resources
