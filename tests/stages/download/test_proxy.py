"""The way out through an egress proxy: only when configured, and never past the guard."""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from infra.miniweb import Scripted
from pipeline.errors import SluiceError
from pipeline.identity import node_identity
from stages.download import Download
from stages.download.addresses import Guard
from stages.download.proxy import Proxy
from stages.download.statuses import FetchError
from tests.stages.download.doubles import Fetching
from tests.stages.download.test_connect import Names, certificate


class EgressProxy:
    """A proxy that sends everything to one port, and writes down what it was asked."""

    def __init__(self, target: int, refuse: str = "") -> None:
        self.heads: list[str] = []
        self._target = target
        self._refuse = refuse
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as target:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                read = client.recv(65536)
                if not read:
                    return
                head += read
            self.heads.append(head.decode())
            if self._refuse:
                client.sendall(f"HTTP/1.1 {self._refuse}\r\n\r\n".encode())
                return
            if head.startswith(b"CONNECT"):
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                target.sendall(head)
            threading.Thread(target=_pump, args=(client, target), daemon=True).start()
            _pump(target, client)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(server: Scripted) -> Iterator[EgressProxy]:
    running = EgressProxy(server.port)
    yield running
    running.close()


def fetch(url: str, through: EgressProxy, names: Names, environment: dict[str, str] | None = None) -> bytes:
    text = f"http://127.0.0.1:{through.port}"
    if environment:
        text = f"http://${{USER_NAME}}:${{PASS_WORD}}@127.0.0.1:{through.port}"

    async def once() -> bytes:
        chosen = Proxy.of(text, environment or {})
        async with Fetching(Guard(), resolver=names, proxy=chosen) as fetching:
            return (await fetching.fetch(url)).data

    return asyncio.run(once())


class OnlyTheProxyKnows(Names):
    async def __call__(self, host: str, port: int) -> list[str]:
        if host == "127.0.0.1":
            return [host]
        raise socket.gaierror(socket.EAI_NONAME, "no such name")


def test_plain_http_goes_to_the_proxy_by_its_whole_url(server: Scripted, proxy: EgressProxy) -> None:
    server.answers["http://photos.test/a.jpg"] = server.answers[server_path(server)]
    names = Names(["93.184.216.34"])
    assert fetch("http://photos.test/a.jpg?b=c", proxy, ProxyAt(names), {"USER_NAME": "me", "PASS_WORD": "a:b"}) == b"x"
    (head,) = proxy.heads
    assert head.startswith("GET http://photos.test/a.jpg?b=c HTTP/1.1\r\nHost: photos.test\r\n")
    assert "Proxy-Authorization: Basic bWU6YTpi\r\n" in head


def server_path(server: Scripted) -> str:
    server.serve("/x", b"x")
    return "/x"


class ProxyAt(Names):
    """Resolves the proxy's own host; all others as the test says."""

    def __init__(self, others: Names) -> None:
        super().__init__([])
        self.others = others

    async def __call__(self, host: str, port: int) -> list[str]:
        return [host] if host == "127.0.0.1" else await self.others(host, port)


def test_names_that_only_the_proxy_knows_are_its_to_judge(server: Scripted, proxy: EgressProxy) -> None:
    server.answers["http://inside.test/a.jpg"] = server.answers[server_path(server)]
    assert fetch("http://inside.test/a.jpg", proxy, OnlyTheProxyKnows([])) == b"x"


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://169.254.169.254/latest/", "blocked_address"),
        ("http://127.0.0.1/", "blocked_address"),
        ("http://rebound.test/", "blocked_address"),
        ("https://rebound.test/", "blocked_address"),
        ("http://photos.test:22/", "blocked_port"),
        ("ftp://photos.test/", "blocked_scheme"),
    ],
)
def test_the_guard_holds_before_the_proxy_is_asked(proxy: EgressProxy, url: str, status: str) -> None:
    with pytest.raises(FetchError, match=status):
        fetch(url, proxy, ProxyAt(Names(["10.0.0.7"])))
    assert not proxy.heads


def test_https_goes_through_a_tunnel_and_ends_at_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = certificate(tmp_path, "photos.test", 1)
    trusting = ssl.create_default_context(cafile=str(tmp_path / "server.pem"))
    monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
    with Scripted(context) as tls:
        tls.serve("/x", b"x")
        proxy = EgressProxy(tls.port)
        assert fetch("https://photos.test/x", proxy, ProxyAt(Names(["93.184.216.34"]))) == b"x"
        assert proxy.heads[0].startswith("CONNECT photos.test:443 HTTP/1.1\r\nHost: photos.test:443\r\n")
        assert tls.requests[0].startswith("GET /x HTTP/1.1\r\nHost: photos.test\r\n")
        with pytest.raises(FetchError, match="tls_error"):
            fetch("https://other.test/x", proxy, ProxyAt(Names(["93.184.216.34"])))
        proxy.close()


def test_a_tunnel_that_is_refused_says_so(server: Scripted) -> None:
    refusing = EgressProxy(server.port, refuse="403 Forbidden")
    with pytest.raises(FetchError, match="connection_error: the proxy answered 403 to CONNECT"):
        fetch("https://photos.test/x", refusing, ProxyAt(Names(["93.184.216.34"])))
    refusing.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_other_credentials_says_nothing_of_the_host(server: Scripted, scheme: str) -> None:
    refusing = EgressProxy(server.port, refuse="407 Proxy Authentication Required")
    with pytest.raises(FetchError, match=r"connection_error: (robots\.txt: )?the proxy answered 407"):
        fetch(f"{scheme}://photos.test/x", refusing, ProxyAt(Names(["93.184.216.34"])))
    refusing.close()


def test_without_a_proxy_a_407_is_the_hosts_own(server: Scripted, guard: Guard) -> None:
    async def once() -> None:
        async with Fetching(guard) as fetching:
            await fetching.fetch(server.serve("/407", b"", status="407 No"))

    with pytest.raises(FetchError, match="http_407"):
        asyncio.run(once())


@pytest.mark.parametrize(
    "text",
    [
        "http://me:secret@proxy:3128", "http://me@proxy:3128", "http://${USER}:secret@proxy:3128", "socks5://proxy:1080",
        "https://proxy:3128", "proxy:3128", "http://", "http://proxy:99999", "http://proxy:3128/path", "http://[x",
    ],
)  # fmt: skip
def test_a_proxy_is_an_address_and_its_credentials_references(text: str) -> None:
    with pytest.raises((SluiceError, ValidationError)) as error:
        Download(proxy=text)
    assert "secret" not in str(error.value)
    assert "expected http://host:port" in str(error.value)


def test_a_reference_that_is_not_set_is_named() -> None:
    with pytest.raises(SluiceError, match=r"proxy refers to \$\{EGRESS_WORD\}, which is not set"):
        Proxy.of("http://${EGRESS_NAME}:${EGRESS_WORD}@proxy:3128", {"EGRESS_NAME": "me"})


def test_credentials_are_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    stage = Download(proxy="http://${EGRESS_NAME}:${EGRESS_WORD}@proxy:3128")
    with caplog.at_level(logging.DEBUG):
        found = Proxy.of(stage.proxy or "", {"EGRESS_NAME": "me", "EGRESS_WORD": "secret/@:"})
    assert found.where == ("proxy", 3128)
    assert "secret" not in repr(found) + repr(stage) + caplog.text
    assert node_identity([stage], 0) == node_identity([Download()], 0)
