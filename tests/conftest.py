"""What every test shares: patient property tests, the real data where it lies nearby, and who runs beside whom."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same examples every time, so that what fails in CI fails here; `--hypothesis-profile=search` looks for others.
settings.register_profile("sluice", deadline=None, max_examples=60, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=500)
settings.load_profile("sluice")

PROJECT = Path(__file__).parent.parent
ALONE = (
    "tests/chaos/test_disk_full.py",
    "tests/chaos/test_ray_killed.py",
    "tests/chaos/test_signals.py",
    "tests/chaos/test_training_killed.py",
    "tests/chaos/test_workers_killed.py",
    "tests/pipeline/test_cluster.py",
    "tests/pipeline/test_crew.py",
    "tests/pipeline/test_s3.py",
    "tests/pipeline/test_shared.py",
    "tests/stages/dedup/test_run.py",
    "tests/test_readme.py",
)
"""Tests that start Ray, which takes every core it sees, or need a port of their own: never two of them at a time."""


@pytest.fixture(scope="session", autouse=True)
def _power_never_fails() -> Iterator[None]:
    """No test cuts the power, and thousands of small runs would wait for the disk half of their time (10 ms a file)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real images, tables and malformed files beside the project; the test skips where they are not."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`: one process does all of `ALONE`, any other file is done by whoever is free, its fixtures made once."""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class Files(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "alone" if file in ALONE else file

    config.option.loadscopereorder = False  # by number of tests, the longest ones would come last
    return Files(config, log)
