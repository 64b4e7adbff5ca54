"""The tiny models, saved once."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.models.towers import tiny


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where the tiny model of a kind lies."""
    return cache(lambda kind: tiny.save(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """More do not help with towers of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
