"""The server says what it was told to, byte for byte, and counts who asked."""

import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from infra.miniweb import Answer, CannotListen, Raw, Scripted, Server, serve
from infra.miniweb.http import MAX_HEAD, Connection
from tests.infra.asking import ask, get, raw


def test_any_function_can_be_served() -> None:
    with serve(lambda path: Answer(path.encode(), "text/plain", 418)) as base:
        assert get(base, "/a%20b", "/c?d=e") == [(418, "text/plain", b"/a b"), (418, "text/plain", b"/c")]
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(base)


def test_a_handler_that_fails_is_a_500_and_the_server_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    def handler(path: str) -> Answer:
        if path == "/bad":
            raise ValueError("no such thing")
        return Answer(b"fine")

    with serve(handler) as base:
        assert [status for status, _, _ in get(base, "/bad", "/good")] == [500, 200]
    assert "no such thing" in caplog.text


def test_head_has_the_headers_alone_and_other_methods_are_refused() -> None:
    with Server(lambda request: Answer(b"four")) as server:
        assert get(server.base, "/", method="HEAD") == [(200, "image/jpeg", b"")]
        assert get(server.base, "/", method="POST")[0][0] == 405


def test_requests_that_come_together_are_answered_in_order() -> None:
    def slow_first(path: str) -> Answer:
        time.sleep(0.1 if path == "/1" else 0)
        return Answer(path.encode())

    with serve(slow_first) as base:
        received = raw(base, ask("/1") + ask("/2") + ask("/3").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert [received.index(path) for path in (b"\r\n\r\n/1", b"\r\n\r\n/2", b"\r\n\r\n/3")] == sorted(
        received.index(path) for path in (b"\r\n\r\n/1", b"\r\n\r\n/2", b"\r\n\r\n/3")
    )


def test_a_request_in_pieces_is_one_request() -> None:
    with Server(lambda request: Answer(request.path.encode())) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            for byte in ask("/slowly").replace(b"1.1", b"1.0"):
                connection.sendall(bytes([byte]))
            assert connection.makefile("rb").read().endswith(b"/slowly")
        assert server.hits == {"/slowly": 1}


def test_a_head_without_end_is_refused() -> None:
    with Server(lambda request: Answer()) as server:
        assert raw(server.base, b"GET / HTTP/1.1\r\n".ljust(MAX_HEAD + 1, b"x")).startswith(b"HTTP/1.1 431")


def test_every_request_is_counted_once_however_many_come() -> None:
    with Server(lambda request: Answer(str(request.hit).encode())) as server:
        with ThreadPoolExecutor(20) as threads:
            rounds = list(threads.map(lambda _: get(server.base, *["/x"] * 50), range(20)))
        assert server.hits["/x"] == 1000
        assert server.connections == 20
    assert sorted(int(body) for replies in rounds for _, _, body in replies) == list(range(1, 1001))


def test_raw_bytes_come_as_they_are_and_the_connection_closes() -> None:
    with Scripted() as server:
        url = server.raw("/odd", b"HTTP/9 nonsense\r\n", b"\0\1\2")
        assert url == f"{server.base}/odd"
        assert raw(server.base, ask("/odd")) == b"HTTP/9 nonsense\r\n\0\1\2"
        assert raw(server.base, ask("/other")[:-2] + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 404")
        assert (server.hits["/odd"], server.hits["/other"]) == (1, 1)
        assert server.requests[0].startswith("GET /odd HTTP/1.1\r\nHost:")


def test_an_endless_answer_waits_for_its_reader_and_ends_with_it() -> None:
    given, gone = [0], threading.Event()

    def pieces():  # type: ignore[no-untyped-def]
        try:
            while True:
                given[0] += 1 << 16
                yield bytes(1 << 16)
        finally:
            gone.set()

    with Scripted() as server:
        server.on("/endless", Raw(pieces))
        received = raw(server.base, ask("/endless"), most=1 << 20)
        assert len(received) >= 1 << 20
        assert gone.wait(5)
    assert given[0] < 64 << 20


def test_a_script_writes_what_it_likes() -> None:
    async def answer(connection: Connection) -> None:
        connection.write(b"one ")
        await connection.drain()
        connection.write(b"two")

    with Scripted(greeting=b"hello ") as server:
        server.on("/", answer)
        assert raw(server.base, ask("/")) == b"hello one two"


def test_a_kept_connection_serves_raw_bytes_again_and_again() -> None:
    with Scripted(keep=True) as server:
        server.serve("/a", b"one")
        server.serve("/b", b"two")
        assert [body for _, _, body in get(server.base, "/a", "/b", "/a")] == [b"one", b"two", b"one"]
        assert server.connections == 1
    with Scripted() as server:
        server.serve("/a", b"one")
        assert raw(server.base, ask("/a") * 2).count(b"200 OK") == 1


def test_plain_answers_and_redirects_can_be_scripted() -> None:
    with Scripted() as server:
        server.serve("/gone", b"body", "X-Robots-Tag: noai\r\n", "410 Gone")
        server.redirect("/away", "file:///etc/passwd")
        assert get(server.base, "/gone") == [(410, None, b"body")]
        assert b"302 Found\r\nContent-Length: 0\r\nLocation: file:///etc/passwd\r\n" in raw(server.base, ask("/away"))


def test_the_requests_host_is_known() -> None:
    with Server(lambda request: Answer(request.host.encode())) as server:
        for host, known in (("localhost:18080", b"localhost"), ("a.example", b"a.example"), ("[::1]:8", b"[::1]")):
            assert get(server.base, "/", host=host)[0][2] == known


def test_a_tls_client_is_not_answered_and_the_server_lives_on() -> None:
    context = ssl.create_default_context()
    with Server(lambda request: Answer()) as server:
        with pytest.raises(ssl.SSLError), socket.create_connection(("127.0.0.1", server.port), timeout=2) as plain:
            context.wrap_socket(plain, server_hostname="127.0.0.1")
        assert get(server.base, "/")[0][0] == 200


def test_a_taken_port_is_one_line_with_the_port_and_the_remedy() -> None:
    with Server(lambda request: Answer()) as first:
        second = Server(lambda request: Answer(), first.port)
        with pytest.raises(CannotListen, match=rf"port {first.port} .*address already in use.*--port"):
            second.__enter__()


def test_a_server_has_no_address_before_it_serves() -> None:
    with pytest.raises(RuntimeError, match="enter it with `with`"):
        _ = Scripted().base
