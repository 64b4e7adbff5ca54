"""What changes under a run: its parameters, its input files, its clock (FAULTS 41, 47, 48)."""

from __future__ import annotations

import os
import time

import pytest

from pipeline import Dag, SluiceError
from pipeline.plan import survey
from pipeline.runs import generations_of
from tests import toys
from tests.chaos.drive import Case, check, files, generations, hashes, inline, local, tiny, values
from tests.chaos.faulty import FOREVER, Plan

DAY_S = 86_400


@pytest.mark.fault(41)
@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_is_a_day_off_has_no_effect(case: Case, days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's clock and all file times; libfaketime, which would reach C++ as well, is not there."""
    root = f"faulty://{case.folder}/root"
    case.control.arm(Plan("error", 90, FOREVER))
    with pytest.raises(SluiceError):
        inline(case.dag, root)
    now, now_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: now() + days * DAY_S)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + days * DAY_S * 10**9)
    for path in files(root, "**/*"):
        os.utime(path, (time.time() + days * DAY_S,) * 2)
    case.converges(root)
    before = {path: path.stat().st_mtime for path in files(root, "**/*")}
    inline(case.dag, root)
    assert {path: path.stat().st_mtime for path in files(root, "**/*")} == before, "nothing is done again"


@pytest.mark.fault(47)
def test_a_plan_names_the_parameter_that_changed_and_only_what_follows_from_it(case: Case) -> None:
    root = f"{case.folder}/root"
    inline(case.dag, root)
    old = generations(root)["scores"]
    changed = tiny(case.folder, "scores.factor=3")
    plans = survey(changed, local(root))
    assert plans["scores"].reasons == ["factor: 2 → 3"]
    assert {name: plan.state for name, plan in plans.items()} == {
        "numbers": "reuse", "pool": "reuse", "scores": "run", "listed": "wait", "shards": "wait"
    }  # fmt: skip
    inline(changed, root)
    new = generations(root)["scores"]
    assert new.number == 2
    assert not {record.work_key for record in old.records} & {record.work_key for record in new.records}
    assert sorted(values(root, "scores", ["product"])) == sorted((3 * n,) for n in range(24))


@pytest.mark.fault(47)
def test_a_plan_names_the_revision_that_was_raised(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    root = f"{case.folder}/root"
    inline(case.dag, root)
    monkeypatch.setattr(toys.Times, "revision", 2)
    plans = survey(case.dag, local(root))
    assert plans["scores"].reasons == ["Times revision: 1 → 2"]
    inline(case.dag, root)
    assert generations(root)["scores"].number == 2


@pytest.mark.fault(48)
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.chaos, id="every-operation"), 9])
def test_an_input_file_that_changes_in_the_middle_of_a_run_never_ends_up_under_its_old_key(
    case: Case, step: int
) -> None:
    listed, other = case.folder / "listed.txt", case.folder / "other.txt"
    operations = len(case.operations("faulty"))
    old = listed.read_text()
    other.write_text("1\n2\n")
    expected = {old: calm_with(case, old), other.read_text(): calm_with(case, other.read_text())}
    named = 0
    for at in range(1, operations + 1, step):
        listed.write_text(old)
        root = f"faulty://{case.folder}/{at}"
        case.control.arm(Plan("swap", at, source=str(other), target=str(listed)))
        said = outcome(case.dag, root)
        assert len(case.control.landed()) == 1
        assert not said or f"{listed} changed while the run began; run again" in said
        named += bool(said)
        case.control.arm(Plan("none"))
        for text in (other.read_text(), old):
            listed.write_text(text)
            inline(case.dag, root)
            assert hashes(root) == expected[text]
        check(root)
    assert named or step > 1, "at some operation the change is noticed"


def calm_with(case: Case, text: str) -> dict[str, str]:
    (case.folder / "listed.txt").write_text(text)
    inline(case.dag, f"{case.folder}/calm-{len(text)}")
    return hashes(f"{case.folder}/calm-{len(text)}")


def outcome(dag: Dag, root: str) -> str:
    """What a run said when it failed."""
    try:
        inline(dag, root)
    except SluiceError as error:
        return str(error)
    return ""


def test_an_older_run_is_still_what_it_was_after_its_parameters_changed(case: Case) -> None:
    root = f"{case.folder}/root"
    inline(case.dag, root)
    inline(tiny(case.folder, "scores.factor=3"), root)
    newest, oldest = local(root).runs()
    assert (newest.id, oldest.id) == ("0002", "0001")
    found = generations_of(local(root), oldest)
    assert {name: generation.content_hash for name, generation in found.items()} == case.calm
