"""Indexes that are kept are kept for one test."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def kept_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sluice" / "indexes"
