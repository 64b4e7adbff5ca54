"""SIGKILL of a process that writes, at every step of every commit; then the same command again (FAULTS 34)."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pipeline.leases import LEASES
from tests.chaos.drive import Case, check, hashes, inline, local, run_and_die, whole
from tests.chaos.faulty import WRITES, Do, Plan

pytestmark = pytest.mark.fault(34)

WRITING = rf"^({'|'.join(WRITES)}|rm_file) "


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.chaos, id="every-step"), pytest.param(11, id="some")]
)
@pytest.mark.parametrize("protocol", ["faulty", "faultys3"])
@pytest.mark.parametrize("do", ["kill", "kill_after", "torn"])
def test_a_run_killed_at_any_step_of_any_write_is_resumed_to_the_same_hashes(
    case: Case, do: Do, protocol: str, step: int
) -> None:
    match = WRITING if do != "torn" else "^pipe_file "
    half_written = 0
    for at in range(1, len(case.operations(protocol, match)) + 1, step):
        root = f"{protocol}://{case.folder}/{at}"
        case.control.arm(Plan(do, at, match=match))
        assert run_and_die(case, root) == -signal.SIGKILL
        assert len(case.control.landed()) == 1
        half_written += len(list(Path(local(root).path).rglob("*.torn")))
        whole(root)
        case.converges(root)
        assert local(root).names(LEASES) == [], "the dead run's lease is taken back"
    assert half_written == 0 or do == "torn"
    assert half_written or do != "torn"


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.chaos, id="every-step"), pytest.param(7, id="some")]
)
def test_a_retry_of_failed_rows_killed_at_any_write_is_resumed_without_a_row_twice(case: Case, step: int) -> None:
    calm = f"{case.folder}/calm"
    inline(case.dag, calm)
    (case.folder / "answers").touch()
    inline(case.dag, calm, retry=["pool"])
    (case.folder / "answers").unlink()
    at = 0
    while True:
        at += step
        root = f"faulty://{case.folder}/{at}"
        inline(case.dag, root)
        (case.folder / "answers").touch()
        case.control.arm(Plan("kill_after", at, match=WRITING))
        code = run_and_die(case, root, retry=("pool",))
        landed = case.control.landed()
        case.control.arm(Plan("none"))
        inline(case.dag, root, retry=["pool"])
        (case.folder / "answers").unlink()
        check(root)
        assert hashes(root) == hashes(calm)
        if not landed:
            assert code == 0
            break
        assert code == -signal.SIGKILL
    assert at > 3 * step
