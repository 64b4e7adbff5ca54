"""Who is really reached: names that resolve to forbidden addresses, rebinding, proxies, TLS."""

import asyncio
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.miniweb import Scripted
from stages.download import addresses, connect
from stages.download.addresses import Guard
from stages.download.connect import Connections, Resolver, system_names
from stages.download.fetch import Fetched
from stages.download.statuses import FetchError
from stages.download.worker import DNS_THREADS
from tests.stages.download.doubles import LIMITS, Fetching, encoded, picture

JPEG = encoded(picture())


class Names:
    """Says of every name what the test says, one answer after another; the last one stays."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def fetch(url: str, guard: Guard, names: Resolver = system_names) -> Fetched:
    async def once() -> Fetched:
        async with Fetching(guard, resolver=names) as fetcher:
            return await fetcher.fetch(url)

    return asyncio.run(once())


def status_of(url: str, guard: Guard, names: Resolver = system_names) -> str:
    with pytest.raises(FetchError) as failed:
        fetch(url, guard, names)
    return failed.value.status


@pytest.mark.fault(10)
def test_a_name_that_resolves_to_loopback_is_never_dialled(
    canary: Scripted, server: Scripted, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "PORTS", frozenset({80, 443, canary.port}))
    names = Names(["127.0.0.1"])
    assert status_of(canary.url("/", host="evil.test"), guard, names) == "blocked_address"
    assert status_of(server.redirect("/to-evil", canary.url("/", host="evil.test")), guard, names) == "blocked_address"
    assert status_of(canary.url("/", host="evil.test"), guard, Names(["8.8.8.8", "127.0.0.1"])) == "blocked_address"
    assert names.asked == ["evil.test", "evil.test"]
    assert canary.connections == 0


@pytest.mark.fault(10)
def test_rebinding_between_check_and_dial_is_seen_at_the_peer(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the first check fooled, the second one still looks at whom the socket reached, before anything is sent."""
    monkeypatch.setattr(addresses, "PORTS", frozenset({80, 443, server.port}))

    async def unchecked(self: Connections, host: str, port: int, deadline: object) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(Connections, "_resolve", unchecked)
    before = server.connections, len(server.requests)
    assert status_of(server.url("/", host="evil.test"), Guard()) == "blocked_address"
    deadline = time.monotonic() + 2
    while server.connections == before[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (server.connections, len(server.requests)) == (before[0] + 1, before[1])


def test_a_rebinding_resolver_is_asked_once_per_connection(server: Scripted) -> None:
    guard = Guard((f"photos.test:{server.port}",))
    server.serve("/bound", JPEG)
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    assert fetch(server.url("/bound", host="photos.test"), guard, names).data == JPEG
    assert names.asked == ["photos.test"]
    assert f"host: photos.test:{server.port}" in server.requests[-1].lower()


def test_proxies_of_the_environment_are_ignored(
    server: Scripted, canary: Scripted, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, canary.url(""))
    assert fetch(server.serve("/direct", JPEG), guard).data == JPEG
    assert canary.connections == 0


def test_cookies_are_neither_kept_nor_sent(server: Scripted, guard: Guard) -> None:
    server.serve("/cookie-b", JPEG)
    url = server.serve("/cookie-a", b"", "Set-Cookie: id=7; Path=/\r\nLocation: /cookie-b\r\n", "302 Found")
    fetch(url, guard)
    assert "cookie:" not in server.requests[-1].lower()
    assert "user-agent: sluice/0.1 (tests)" in server.requests[-1].lower()


def test_a_closed_port_is_a_connection_error() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        assert status_of(f"http://127.0.0.1:{port}/", Guard((f"127.0.0.1:{port}",))) == "connection_error"


def test_a_name_that_does_not_exist_is_a_dns_error() -> None:
    class Unknown(Names):
        def __init__(self, code: int) -> None:
            super().__init__([])
            self.code = code

        async def __call__(self, host: str, port: int) -> list[str]:
            self.asked.append(host)
            raise socket.gaierror(self.code, "no such name")

    for code, asked in ((socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 3)):
        names = Unknown(code)
        assert status_of("http://nowhere.test/x.jpg?secret", Guard(), names) == "dns_error"
        assert len(names.asked) == asked


def test_names_that_nobody_answers_for_take_no_time_from_those_that_wait_behind_them(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connect.LOOKUPS <= DNS_THREADS
    monkeypatch.setattr(connect, "LOOKUPS", 2)
    released = threading.Event()
    system = socket.getaddrinfo
    looked_up: list[str] = []

    def slow(host: str, *rest: Any, **options: Any) -> Any:
        looked_up.append(host)
        if host.startswith("dead"):
            assert released.wait(30)
            raise socket.gaierror(socket.EAI_NONAME, "nobody knows")
        return system("127.0.0.1", *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    url = server.url("/behind", host="photos.test")
    server.serve("/behind", JPEG)

    async def rows() -> list[object]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        guard = Guard((f"photos.test:{server.port}",))
        async with Fetching(guard, replace(LIMITS, timeout_s=0.3)) as fetcher:
            dead = [asyncio.ensure_future(fetcher.fetch(f"http://dead{place}.test/")) for place in range(2)]
            while len(looked_up) < 2:
                await asyncio.sleep(0.01)
            waiting = asyncio.ensure_future(fetcher.fetch(url))
            ended = await asyncio.gather(*dead, return_exceptions=True)
            await asyncio.sleep(0.4)  # the rows are gone, their threads are not
            released.set()
            return [*ended, *await asyncio.gather(waiting, return_exceptions=True)]

    *dead, behind = asyncio.run(rows())
    assert [getattr(failure, "status", None) for failure in dead] == ["timeout", "timeout"]
    assert isinstance(behind, Fetched), behind
    assert looked_up == ["dead0.test", "dead1.test", "photos.test"]


def certificate(folder: Path, host: str, days: int) -> ssl.SSLContext:
    """A server's context with a self-signed certificate that ends in `days` days."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    ends = datetime.now(UTC) + timedelta(days=days)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    certificate = builder.not_valid_before(ends - timedelta(days=30)).not_valid_after(ends).sign(key, hashes.SHA256())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "server.pem").write_bytes(pem)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem")
    return context


@pytest.mark.fault(13)
@pytest.mark.parametrize("days", [-1, 1])
def test_bad_tls_is_an_error_and_never_a_downgrade(tmp_path: Path, days: int) -> None:
    context = certificate(tmp_path, "photos.test", days)
    greeted: list[str] = []
    context.sni_callback = lambda _, name, __: greeted.append(name)
    with Scripted(context) as tls:
        guard = Guard((f"photos.test:{tls.port}",))
        assert status_of(tls.url("/", host="photos.test"), guard, Names(["127.0.0.1"])) == "tls_error"
        assert greeted == ["photos.test"]
        assert not tls.requests


@pytest.mark.fault(13)
def test_plain_http_behind_https_is_a_tls_error() -> None:
    with Scripted(greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n") as plain:
        guard = Guard((f"127.0.0.1:{plain.port}",))
        assert status_of(plain.url("/").replace("http:", "https:"), guard) == "tls_error"
        assert not plain.requests
