"""Cases for the chaos tests; see `drive`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import pipeline.store
from tests.chaos import drive
from tests.chaos.faulty import FAULTS, Plan

drive.register()


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The content hashes of an undisturbed run, by node."""
    folder = tmp_path_factory.mktemp("calm")
    drive.inline(drive.tiny(folder), str(folder / "root"))
    drive.check(folder / "root")
    return drive.hashes(folder / "root")


@pytest.fixture
def case(tmp_path: Path, calm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> drive.Case:
    """Faulty stores in this process; nobody waits between tries."""
    found = drive.Case(tmp_path, calm)
    found.control.arm(Plan("none"))
    monkeypatch.setenv(FAULTS, str(found.control.folder))
    monkeypatch.setattr(pipeline.store, "time", SimpleNamespace(sleep=lambda _: None))
    return found
