"""A store that throttles, loses replies, lists too little, breaks or is full, at any operation (FAULTS 33, 44-46)."""

from __future__ import annotations

import pytest

from pipeline import SluiceError
from pipeline.leases import LEASES
from tests.chaos.drive import Case, inline, local, whole
from tests.chaos.faulty import FOREVER, Do, Plan

EVERY = [pytest.param(1, marks=pytest.mark.chaos, id="every-operation"), pytest.param(29, id="every-29th")]


@pytest.mark.fault(44, 45)
@pytest.mark.parametrize("step", EVERY)
@pytest.mark.parametrize("protocol", ["faulty", "faultys3"])
@pytest.mark.parametrize(
    ("do", "times"), [("error", 1), ("error", 5), ("lost", 1)], ids=["a-503", "five-503s", "a-lost-reply"]
)
def test_a_passing_fault_at_any_operation_changes_nothing(
    case: Case, do: Do, times: int, protocol: str, step: int
) -> None:
    for at in range(1, len(case.operations(protocol)) + 1, step):
        root = f"{protocol}://{case.folder}/{at}"
        case.control.arm(Plan(do, at, times))
        inline(case.dag, root)
        assert len(case.control.landed()) >= 1, at
        case.converges(root)


@pytest.mark.fault(46)
@pytest.mark.parametrize("step", EVERY)
@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "ever-after"])
def test_a_listing_that_does_not_know_the_newest_files_changes_nothing(case: Case, times: int, step: int) -> None:
    listings = case.operations("faulty", "^ls ")
    for at in range(1, len(listings) + 1, max(1, step // 7)):
        root = f"faulty://{case.folder}/{at}"
        case.control.arm(Plan("stale", at, times, match="^ls "))
        inline(case.dag, root)
        assert case.control.landed()
        case.converges(root)


@pytest.mark.fault(46)
@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "ever-after"])
def test_a_rerun_that_cannot_list_what_is_there_does_not_do_it_twice(case: Case, times: int) -> None:
    root = f"faulty://{case.folder}/root"
    inline(case.dag, root)
    for at in range(1, 30):
        case.control.arm(Plan("stale", at, times, match="^ls "))
        inline(case.dag, root)
        if not case.control.landed():
            break
        case.converges(root)
    else:
        pytest.fail("a rerun lists more than 29 times")
    assert at > 5, "the fault came in no run"
    assert [run.id for run in local(root).runs()] == ["0001"]


@pytest.mark.fault(33, 44)
@pytest.mark.parametrize("step", EVERY)
@pytest.mark.parametrize("protocol", ["faulty", "faultys3"])
@pytest.mark.parametrize(("do", "said"), [("error", "503 SlowDown"), ("full", "No space left")], ids=["down", "full"])
def test_a_store_that_stays_broken_ends_the_run_in_one_line_and_the_rerun_converges(
    case: Case, do: Do, said: str, protocol: str, step: int
) -> None:
    stopped = 0
    for at in range(1, len(case.operations(protocol)) + 1, step):
        root = f"{protocol}://{case.folder}/{at}"
        case.control.arm(Plan(do, at, FOREVER))
        error = _error_of(case, root)
        if error is None:
            assert all(LEASES in operation for operation in case.control.landed()), "only the lease may fail unseen"
        else:
            stopped += 1
            assert case.control.landed()
            assert said in str(error)
            assert "\n" not in str(error)
        whole(root)
        case.converges(root)
    assert stopped >= 4


def _error_of(case: Case, root: str) -> SluiceError | None:
    try:
        inline(case.dag, root)
    except SluiceError as error:
        return error
    return None
