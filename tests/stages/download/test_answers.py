"""HTTP answers: what a head says, and that an answer's end does not depend on how the packets fall."""

import asyncio
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.download.answers import MAX_HEAD, SMALL_CHUNKS, Chunks, parse_head
from stages.download.connection import SCRATCH_BYTES, Connection
from stages.download.statuses import FetchError


class Pipe(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self

    def fileno(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True


class Whole:
    """Keeps a body."""

    def __init__(self) -> None:
        self.body = b""

    def feed(self, chunk: bytes) -> None:
        self.body += chunk


def answered(pieces: list[bytes], ends: bool) -> tuple[bytes, bool]:
    """The body of an answer that comes in these pieces, and whether its connection may serve again."""

    async def run() -> tuple[bytes, bool]:
        idle: list[Connection] = []
        connection = Connection("", bytearray(SCRATCH_BYTES), idle.append, lambda _: None)
        pipe, sink = Pipe(), Whole()
        connection.connection_made(pipe)
        asking = asyncio.ensure_future(connection.ask(b"", lambda head: sink))
        await asyncio.sleep(0)
        for piece in pieces:
            left = piece
            while left and not pipe.closed:
                buffer = connection.get_buffer(-1)
                count = min(len(buffer), len(left))
                buffer[:count] = left[:count]
                connection.buffer_updated(count)
                left = left[count:]
        if ends and not pipe.closed:
            connection.eof_received()
        await asking
        return sink.body, bool(idle) and not pipe.closed

    return asyncio.run(run())


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes, str]:
    """(the bytes of an answer, its body, how its end is known)."""
    body = draw(st.binary(min_size=1, max_size=300))
    framing = draw(st.sampled_from(["length", "chunks", "end"]))
    line = draw(st.sampled_from(["\r\n", "\n"]))
    head = f"HTTP/1.1 200 OK{line}X-Thing: a: b{line}".encode()
    if framing == "length":
        return head + f"content-LENGTH: {len(body)}{line}{line}".encode() + body, body, framing
    if framing == "end":
        return head + line.encode() + body, body, framing
    cuts = sorted({0, len(body), *draw(st.lists(st.integers(0, len(body)), max_size=5))})
    chunks = [body[start:end] for start, end in pairwise(cuts)]
    coded = b"".join(f"{len(chunk):x};a=b\r\n".encode() + chunk + b"\r\n" for chunk in chunks)
    return head + f"Transfer-Encoding: chunked{line}{line}".encode() + coded + b"0\r\n\r\n", body, framing


@given(answers(), st.lists(st.integers(0, 700), max_size=8), st.binary(max_size=20), st.booleans())
def test_an_answers_end_does_not_depend_on_how_the_packets_fall(
    answer: tuple[bytes, bytes, str], cuts: list[int], extra: bytes, interim: bool
) -> None:
    whole, body, framing = answer
    if framing == "end":
        extra = b""  # whatever comes is its body
    sent = (b"HTTP/1.1 100 Continue\r\n\r\n" if interim else b"") + whole + extra
    places = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    pieces = [sent[start:end] for start, end in pairwise(places)]
    assert answered(pieces, ends=framing == "end") == (body, framing != "end" and not extra)


def test_a_connection_serves_again_only_after_a_turn_in_which_it_may_be_given_more() -> None:
    """TLS asks for such a turn before it hands over what filled the buffer."""

    async def run(more: bytes) -> int:
        idle: list[Connection] = []
        connection = Connection("", bytearray(SCRATCH_BYTES), idle.append, lambda _: None)
        connection.connection_made(Pipe())
        asking = asyncio.ensure_future(connection.ask(b"", lambda head: Whole()))
        await asyncio.sleep(0)

        def given(data: bytes) -> None:
            connection.get_buffer(-1)[: len(data)] = data
            connection.buffer_updated(len(data))

        if more:
            asyncio.get_running_loop().call_soon(given, more)
        given(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n.")
        assert not idle
        assert (await asking).code == 200
        return len(idle)

    assert asyncio.run(run(b"")) == 1
    assert asyncio.run(run(b"HTTP/1.1 200 OK\r\n")) == 0


@pytest.mark.parametrize(
    ("lines", "code", "lasting"),
    [
        (("HTTP/1.1 200 OK",), 200, True),
        (("HTTP/1.1 200",), 200, True),
        (("HTTP/1.1 404 ", "Connection: Close"), 404, False),
        (("HTTP/1.1 200 OK", "Connection: upgrade, close"), 200, False),
        (("HTTP/1.0 200 OK",), 200, False),
        (("HTTP/1.0 200 OK", "connection: Keep-Alive"), 200, True),
    ],
)
def test_a_head_says_its_code_and_whether_the_connection_lasts(lines: tuple[str], code: int, lasting: bool) -> None:
    head = parse_head("\r\n".join(lines).encode())
    assert (head.code, head.lasting) == (code, lasting)


@pytest.mark.parametrize(
    "head",
    [
        b"", b"\r", b"HTTP/2 200 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"ICY 200 OK", b"http/1.1 200 OK",
        b"HTTP/1.1 200 OK\r\nContent-Length : 5", b"HTTP/1.1 200 OK\r\nno colon", b"HTTP/1.1 200 OK\r\n: x",
        b"HTTP/1.1 200 OK\r\n folded", b"HTTP/1.1 200 OK\r\nX: a\x00b", b"HTTP/1.1 200 OK\r\nX\xff: a",
    ],
)  # fmt: skip
def test_what_is_no_head_is_refused(head: bytes) -> None:
    with pytest.raises(FetchError, match="connection_error: not an HTTP answer"):
        parse_head(head)


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 5, 6", b"Content-Length: -5",
        b"Content-Length: +5", b"Content-Length: 0x5", b"Content-Length: ", b"Content-Length: 5 5",
        b"Content-Length: \xd9\xa5",
        b"Content-Length: 9999999999999999999", b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: identity",
    ],
)  # fmt: skip
def test_a_length_that_is_in_doubt_is_refused(fields: bytes) -> None:
    head = parse_head(b"HTTP/1.1 200 OK\r\n" + fields)
    with pytest.raises(FetchError, match="connection_error: not an HTTP answer"):
        assert head.length


def test_a_length_that_is_said_twice_is_that_length() -> None:
    assert parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5").length == 5
    assert parse_head(b"HTTP/1.1 204 No\r\nContent-Length: 5").length == 0
    assert parse_head(b"HTTP/1.1 200 OK").length is None


def test_a_folded_header_is_one_value_and_repeated_ones_are_several() -> None:
    head = parse_head(b"HTTP/1.1 200 OK\r\nX: a\r\n\tb\r\nx: c")
    assert head.all("x") == ["a b", "c"]
    assert (head.get("x"), head.get("y")) == ("a b", None)


@pytest.mark.parametrize(
    "field",
    [
        b"a:" + b" " * 1_000 + b"\0",
        b"a:x" + b" " * 20_000 + b"y",
        b"a: b" + b"\n c" * 20_000,
    ],
    ids=["refused", "spaces", "folded"],
)
def test_a_head_is_parsed_in_linear_time(field: bytes) -> None:
    """It happens in the event loop, where no deadline holds: 3 seconds to one hostile line would stop every row."""
    assert len(field) < MAX_HEAD
    began = time.thread_time()
    try:
        parse_head(b"HTTP/1.1 200 OK\r\n" + field)
    except FetchError:
        assert b"\0" in field
    assert time.thread_time() - began < 0.2


def test_chunks_are_passed_on_together() -> None:
    """A feed for every chunk of two bytes would hold twenty times the body."""
    pieces: list[bytes] = []
    data = b"2\r\nab\r\n" * 1_000 + b"0\r\n\r\n"
    assert Chunks(pieces.append).take(data) == len(data)
    assert pieces == [b"ab" * 1_000]


def test_a_body_of_nothing_but_small_chunks_is_given_up() -> None:
    pieces: list[bytes] = []
    chunks = Chunks(pieces.append)
    assert chunks.take(b"1\r\na\r\n" * SMALL_CHUNKS) is None
    assert chunks.take(b"40\r\n" + b"b" * 64 + b"\r\n") is None
    with pytest.raises(FetchError, match="not an HTTP answer: more than 4096 chunks"):
        chunks.take(b"1\r\na\r\n")
    assert b"".join(pieces) == b"a" * SMALL_CHUNKS + b"b" * 64
