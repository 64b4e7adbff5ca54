"""One thread for the toy, as its child processes have: sums on several differ in their last bit. And a far store."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
import torch

from tests.s3 import S3, serving


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serving() as server, server.environment():
        yield server


@pytest.fixture
def bucket(s3: S3) -> str:
    """A new one's address."""
    return s3.bucket(f"b-{uuid4().hex[:8]}")
