"""One hostile server and one open stage for all tests here: a stage is made to be kept open."""

from collections.abc import Iterator

import pytest

from infra.miniweb import Scripted
from pipeline.stage import Device
from stages.download import Download, retries
from stages.download.addresses import Guard
from stages.download.worker import Worker


@pytest.fixture(scope="session")
def server() -> Iterator[Scripted]:
    with Scripted() as running:
        yield running


@pytest.fixture(scope="session")
def canary() -> Iterator[Scripted]:
    """A second server that nobody allowed: whoever connects to it has broken out."""
    with Scripted() as running:
        yield running


def opened(server: Scripted, threads: int = 2, **parameters: object) -> Worker:
    defaults: dict[str, object] = {"timeout_s": 10, "max_mb": 1, "concurrency": 16, "robots": False}
    stage = Download(**{"allow_private_hosts": (f"127.0.0.1:{server.port}",), **defaults, **parameters})
    worker = stage.open(Device(threads=threads))
    assert isinstance(worker, Worker)
    return worker


@pytest.fixture(scope="session")
def worker(server: Scripted) -> Iterator[Worker]:
    running = opened(server)
    yield running
    running.close()


@pytest.fixture
def guard(server: Scripted) -> Guard:
    return Guard((f"127.0.0.1:{server.port}",))


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries short enough for tests."""
    monkeypatch.setattr(retries, "BACKOFF_S", 0.01)
