"""The tiny models, saved once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.models.towers import tiny


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where the tiny model of a kind lies."""
    return cache(lambda kind: tiny.save(kind, tmp_path_factory.mktemp(kind)))
