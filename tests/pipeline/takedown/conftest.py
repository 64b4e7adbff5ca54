"""A finished run to take down from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.takedowns import go


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; copied, never changed."""
    folder = tmp_path_factory.mktemp("calm")
    go(folder / "root")
    return folder / "root"


@pytest.fixture
def root(tmp_path: Path, calm: Path) -> Path:
    return Path(shutil.copytree(calm, tmp_path / "root"))
