"""Connections that serve again: how many are opened, and that no answer is made of bytes that came too early."""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from yarl import URL

from infra.miniweb import Scripted
from infra.miniweb.http import Connection
from stages.download import connect
from stages.download.addresses import Guard
from stages.download.body import Body
from stages.download.fetch import Fetched
from stages.download.statuses import FetchError
from tests.stages.download.doubles import LIMITS, Fetching
from tests.stages.download.test_connect import certificate

SMUGGLED = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsmuggle"
BODY = b"an honest body"
AFTER = b"another honest body"
HEAD = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()


@pytest.fixture
def kept() -> Iterator[Scripted]:
    with Scripted(keep=True) as server:
        yield server


def run(server: Scripted, script: Callable[[Fetching], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with Fetching(Guard((f"127.0.0.1:{server.port}",)), replace(LIMITS, tries=1)) as fetcher:
            await script(fetcher)

    asyncio.run(whole())


def test_many_requests_to_a_host_use_few_connections(kept: Scripted) -> None:
    urls = [kept.serve(f"/{place}", f"body {place}".encode()) for place in range(200)]

    async def script(fetcher: Fetching) -> None:
        free = asyncio.Semaphore(8)

        async def one(url: str) -> Fetched:
            async with free:
                return await fetcher.fetch(url)

        bodies = [fetched.data for fetched in await asyncio.gather(*map(one, urls))]
        assert bodies == [f"body {place}".encode() for place in range(200)]

    run(kept, script)
    assert len(kept.requests) == 200
    assert kept.connections <= 8


def test_small_errors_and_redirects_do_not_cost_a_connection(kept: Scripted) -> None:
    kept.serve("/end", BODY)
    kept.serve("/gone", b"x" * 3000, status="410 Gone")
    url = kept.redirect("/a", "/b")
    kept.redirect("/b", "/end")

    async def script(fetcher: Fetching) -> None:
        for _ in range(5):
            assert (await fetcher.fetch(url)).data == BODY
            with pytest.raises(FetchError, match="http_410"):
                await fetcher.fetch(kept.url("/gone"))

    run(kept, script)
    assert len(kept.requests) == 20
    assert kept.connections == 1


def test_a_chunked_answer_leaves_its_connection_usable(kept: Scripted) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    url = kept.raw("/chunks", chunked + b"5;x=y\r\nabc", b"de\r\n3\r\nfgh\r\n0\r\nTrailer: 1\r\n\r\n")

    async def script(fetcher: Fetching) -> None:
        for _ in range(3):
            assert (await fetcher.fetch(url)).data == b"abcdefgh"

    run(kept, script)
    assert kept.connections == 1


@pytest.mark.fault(12)
@pytest.mark.parametrize("pause_s", [None, 0.0, 0.1], ids=["same packet", "next packet", "late packet"])
@pytest.mark.parametrize("smuggled", [SMUGGLED, SMUGGLED[:20], b"\r\n", b"\0"], ids=["answer", "half", "line", "byte"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_bytes_beyond_an_answer_are_never_the_next_answer(
    kept: Scripted, pause_s: float | None, smuggled: bytes, framing: str
) -> None:
    whole = HEAD + BODY
    if framing == "chunks":
        whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n" + BODY + b"\r\n0\r\n\r\n"

    sent = threading.Event()

    async def answer(writer: Connection) -> None:
        writer.write(whole + (smuggled if pause_s is None else b""))
        if pause_s is not None:
            await writer.drain()
            await asyncio.sleep(pause_s)
            writer.write(smuggled)
        await writer.drain()
        sent.set()

    url, after = kept.on("/first", answer), kept.serve("/after", BODY)

    async def script(fetcher: Fetching) -> None:
        assert (await fetcher.fetch(url)).data == BODY
        assert await asyncio.to_thread(sent.wait, 10)  # what came after the next request could be its answer
        assert (await fetcher.fetch(after)).data == BODY

    run(kept, script)
    assert kept.connections == 2
    assert kept.hits["/after"] == 1


@pytest.mark.fault(12)
def test_bytes_that_wait_in_the_socket_unread_are_seen_before_it_is_used_again(kept: Scripted) -> None:
    """The loop had no chance to read them: it was busy while they came."""
    sent = 0

    async def answer(writer: Connection) -> None:
        nonlocal sent
        writer.write(HEAD + BODY)
        await asyncio.sleep(0.1)
        writer.write(SMUGGLED)
        await writer.drain()
        sent += 1

    url, after = kept.on("/first", answer), kept.serve("/after", BODY)

    async def script(fetcher: Fetching) -> None:
        await fetcher.fetch(url)
        deadline = time.monotonic() + 5
        while not sent and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert (await fetcher.fetch(after)).data == BODY

    run(kept, script)
    assert (sent, kept.connections) == (1, 2)


@pytest.mark.fault(12)
@pytest.mark.parametrize("smuggled", [SMUGGLED, b"\0"], ids=["answer", "byte"])
def test_bytes_beyond_an_answer_that_tls_has_decrypted_already_are_never_the_next_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smuggled: bytes
) -> None:
    """They are in no socket: only a read shows them. The other row takes the connection at the first moment."""
    context = certificate(tmp_path, "photos.test", 1)
    trusting = ssl.create_default_context(cafile=str(tmp_path / "server.pem"))
    trusting.check_hostname = False
    monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)

    async def answer(writer: Connection) -> None:
        writer.write(HEAD)
        await writer.drain()
        await asyncio.sleep(0.1)  # so that the body is read into its own place
        writer.write(BODY + smuggled)

    async def script(fetcher: Fetching) -> None:
        first = asyncio.ensure_future(fetcher.fetch(tls.on("/first", answer)))
        while not first.done() and not fetcher.connections._idle:
            await asyncio.sleep(0)
        body = Body("", 100)
        await fetcher.connections.get(URL(tls.serve("/after", AFTER)), "", lambda head: body)
        assert (body.finish(), (await first).data) == (AFTER, BODY)

    with Scripted(context, keep=True) as tls:
        run(tls, script)
        assert (tls.connections, tls.hits["/after"]) == (2, 1)


def test_an_answer_that_was_given_up_takes_its_connection_with_it(kept: Scripted) -> None:
    async def slow(writer: Connection) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.3)
        writer.write(b"x" * 100)

    url, after = kept.on("/slow", slow), kept.serve("/after", BODY)

    async def script(fetcher: Fetching) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await fetcher.fetch(url)
        assert (await fetcher.fetch(after)).data == BODY

    run(kept, script)
    assert kept.connections == 2


def test_a_connection_that_its_host_closed_is_not_a_failure(kept: Scripted) -> None:
    async def answer_and_close(writer: Connection) -> None:
        writer.write(HEAD + BODY)
        await writer.drain()
        writer.close()

    url = kept.on("/short", answer_and_close)

    async def script(fetcher: Fetching) -> None:
        for pause_s in (0.0, 0.05, 0.0):
            assert (await fetcher.fetch(url)).data == BODY
            await asyncio.sleep(pause_s)

    run(kept, script)
    assert kept.hits["/short"] == 3


def test_a_host_that_closes_as_it_is_asked_again_is_asked_on_another_connection(kept: Scripted) -> None:
    """Nothing was answered, so it counts as no try: with one try in all the row still succeeds."""

    async def hang_up_on_the_second(writer: Connection) -> None:
        if kept.hits["/moody"] == 2:
            writer.close()
        else:
            writer.write(HEAD + BODY)

    url = kept.on("/moody", hang_up_on_the_second)

    async def script(fetcher: Fetching) -> None:
        assert (await fetcher.fetch(url)).data == BODY
        assert (await fetcher.fetch(url)).data == BODY

    run(kept, script)
    assert (kept.hits["/moody"], kept.connections) == (3, 2)


def test_idle_connections_are_bounded_in_number_and_time(kept: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "IDLE_PER_HOST", 3)
    monkeypatch.setattr(connect, "IDLE_S", 0.2)

    async def answer(writer: Connection) -> None:
        await asyncio.sleep(0.05)
        writer.write(HEAD + BODY)

    url = kept.on("/idle", answer)

    async def script(fetcher: Fetching) -> None:
        await asyncio.gather(*(fetcher.fetch(url) for _ in range(10)))
        assert len(fetcher.connections) == 3
        await asyncio.sleep(0.5)
        assert len(fetcher.connections) == 0

    run(kept, script)
    assert kept.connections == 10


def test_the_peer_of_a_connection_is_checked_again_before_it_serves_again(
    kept: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = kept.serve("/x", BODY)

    async def script(fetcher: Fetching) -> None:
        await fetcher.fetch(url)
        monkeypatch.setattr(Guard, "allows", lambda self, host, port: False)
        with pytest.raises(FetchError, match="blocked"):
            await fetcher.connections.get(URL(url), "", lambda head: None)

    run(kept, script)
    assert kept.hits["/x"] == 1


@pytest.mark.fault(12)
def test_an_answer_that_gives_its_end_in_two_ways_is_the_last_of_its_connection(kept: Scripted) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    url, after = kept.raw("/both", head + b"5\r\nabcde\r\n0\r\n\r\n"), kept.serve("/after", BODY)

    async def script(fetcher: Fetching) -> None:
        assert (await fetcher.fetch(url)).data == b"abcde"
        assert (await fetcher.fetch(after)).data == BODY

    run(kept, script)
    assert kept.connections == 2


def test_a_host_that_hangs_up_at_once_is_not_dialled_again_and_again() -> None:
    accepted = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            nonlocal accepted
            with contextlib.suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    accepted += 1
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        port = listener.getsockname()[1]

        async def whole() -> None:
            async with Fetching(Guard((f"127.0.0.1:{port}",)), replace(LIMITS, tries=1)) as fetching:
                for _ in range(10):
                    with pytest.raises(FetchError, match="connection_error"):
                        await fetching.fetch(f"http://127.0.0.1:{port}/")

        asyncio.run(whole())
        listener.shutdown(socket.SHUT_RDWR)
    assert accepted == 10
