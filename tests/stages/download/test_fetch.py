"""A hostile host: what a row ends as, how often the host was asked, and who was never asked."""

import asyncio
import gzip
import random
import time
import zlib
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from infra.miniweb import Scripted
from infra.miniweb.http import Connection
from stages.download import hosts, retries
from stages.download.addresses import Guard
from stages.download.fetch import Limits
from stages.download.statuses import FetchError, is_status
from stages.download.worker import Worker
from tests.stages.download.conftest import opened
from tests.stages.download.doubles import Fetching, encoded, fetch_one, part_of, picture

JPEG = encoded(picture())


@pytest.mark.fault(1)
@pytest.mark.parametrize("code", [404, 410, 403, 204, 206, 304, 416])
def test_an_answer_other_than_200_is_its_code_and_is_not_asked_again(
    server: Scripted, worker: Worker, code: int
) -> None:
    url = server.raw(f"/code{code}", f"HTTP/1.1 {code} So\r\nContent-Length: 0\r\n\r\n".encode())
    assert fetch_one(worker, url)["status"] == f"http_{code}"
    assert server.hits[f"/code{code}"] == 1


@pytest.mark.fault(2)
def test_429_pauses_the_host_for_as_long_as_it_asks(server: Scripted, worker: Worker) -> None:
    asked: list[float] = []

    async def answer(writer: Connection) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            writer.write(b"HTTP/1.1 429 Slow\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(JPEG)}\r\n\r\n".encode() + JPEG)

    assert fetch_one(worker, server.on("/429", answer))["status"] == "success"
    assert len(asked) == 2
    assert asked[1] - asked[0] >= 0.95


@pytest.mark.fault(2)
def test_all_rows_of_a_paused_host_wait(server: Scripted, guard: Guard) -> None:
    server.raw("/busy", b"HTTP/1.1 429 Slow\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
    server.serve("/idle", JPEG)

    async def both() -> float:
        async with Fetching(guard, Limits(10, 10**6, 1, "a")) as fetcher:
            with pytest.raises(FetchError, match="http_429"):
                await fetcher.fetch(server.url("/busy"))
            started = time.monotonic()
            await fetcher.fetch(server.url("/idle"))
            return time.monotonic() - started

    assert asyncio.run(both()) >= 0.9


def test_retry_after_is_read_as_seconds_or_as_a_date_and_capped() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=10)
    assert retries.retry_after_s("3") == 3
    assert retries.retry_after_s("86400") == hosts.MAX_PAUSE_S
    assert 8 < (retries.retry_after_s(soon.strftime("%a, %d %b %Y %H:%M:%S GMT")) or 0) <= 10
    assert retries.retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retries.retry_after_s("soon") is None
    assert retries.retry_after_s("Mon, 01 Jan 99999999999999999999 00:00:00 GMT") is None
    assert retries.retry_after_s(None) is None


@pytest.mark.fault(3)
@pytest.mark.parametrize(("failing", "status", "asked"), [(2, "success", 3), (9, "http_503", 3)])
def test_a_flapping_host_is_asked_three_times_at_most(
    server: Scripted, worker: Worker, failing: int, status: str, asked: int
) -> None:
    path = f"/flap{failing}"

    async def answer(writer: Connection) -> None:
        down = server.hits[path] <= failing
        writer.write(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n" if down else b"HTTP/1.1 200 OK\r\n\r\n" + JPEG)

    assert fetch_one(worker, server.on(path, answer))["status"] == status
    assert server.hits[path] == asked


@pytest.mark.fault(4)
def test_a_slow_loris_ends_at_the_deadline(server: Scripted) -> None:
    async def answer(writer: Connection) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.1)

    impatient = opened(server, threads=1, timeout_s=0.5)
    started = time.monotonic()
    assert fetch_one(impatient, server.on("/loris", answer))["status"] == "timeout"
    assert 0.5 <= time.monotonic() - started < 5
    impatient.close()
    assert server.hits["/loris"] == 1


def test_headers_that_never_end_are_given_up(server: Scripted, worker: Worker) -> None:
    async def answer(writer: Connection) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-More: " + b"y" * 4000 + b"\r\n")
            await writer.drain()

    assert fetch_one(worker, server.on("/headers", answer))["status"] == "connection_error"


@pytest.mark.fault(5)
def test_an_endless_body_is_cut_at_max_mb(server: Scripted, worker: Worker) -> None:
    sent = 0

    async def answer(writer: Connection) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
            await writer.drain()
            sent += 65536

    assert fetch_one(worker, server.on("/endless", answer))["status"] == "too_large"
    assert 1_000_000 < sent < 32_000_000


def test_a_body_that_says_it_is_too_large_is_not_read(server: Scripted, worker: Worker) -> None:
    url = server.raw("/large", b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
    assert fetch_one(worker, url)["status"] == "too_large"


@pytest.mark.fault(6)
@pytest.mark.parametrize("name", ["gzip", "deflate", "raw-deflate"])
def test_a_compression_bomb_is_counted_on_its_decoded_bytes(server: Scripted, worker: Worker, name: str) -> None:
    """10 GB of zeros in 10 MB, sent without saying how much there is of it."""
    packer = zlib.compressobj(9, wbits={"gzip": 31, "deflate": 15, "raw-deflate": -15}[name])
    first, block = (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    assert 10_240 * len(block) < 16_000_000  # every block stands alone: any number of them may follow
    sent = 0

    async def answer(writer: Connection) -> None:
        nonlocal sent
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Encoding: {name.removeprefix('raw-')}\r\n\r\n".encode() + first)
        for _ in range(10_240):
            writer.write(block)
            await writer.drain()
            sent += 1

    assert fetch_one(worker, server.on(f"/bomb-{name}", answer))["status"] == "too_large"
    assert server.hits[f"/bomb-{name}"] == 1
    assert sent < 10_240
    assert all("accept-encoding: identity" in request.lower() for request in server.requests)


def test_gzip_that_nobody_asked_for_is_still_understood(server: Scripted, worker: Worker) -> None:
    whole = gzip.compress(JPEG)
    assert fetch_one(worker, server.serve("/gz", whole, "Content-Encoding: gzip\r\n"))["status"] == "success"
    cut = server.serve("/gz-cut", whole[:-20], "Content-Encoding: gzip\r\n")
    assert fetch_one(worker, cut)["status"] == "truncated_body"
    broken = server.serve("/gz-broken", b"\x1f\x8b" + b"nonsense" * 9, "Content-Encoding: gzip\r\n")
    assert fetch_one(worker, broken)["status"] == "bad_encoding"
    twice = server.serve("/gz-twice", whole, "Content-Encoding: gzip, gzip\r\n")
    assert fetch_one(worker, twice)["status"] == "bad_encoding"


def test_a_redirect_is_followed_and_the_last_url_is_recorded(server: Scripted, worker: Worker) -> None:
    server.serve("/there/b.jpg", JPEG)
    row = fetch_one(worker, server.redirect("/here", "there/b.jpg#part"))
    assert (row["status"], row["final_url"]) == ("success", server.url("/there/b.jpg"))


@pytest.mark.fault(7)
def test_a_redirect_loop_ends_after_five(server: Scripted, worker: Worker) -> None:
    assert fetch_one(worker, server.redirect("/loop", "/loop"))["status"] == "too_many_redirects"
    assert server.hits["/loop"] == 6


@pytest.mark.fault(8, 9)
@pytest.mark.parametrize(
    ("location", "status"),
    [
        ("http://169.254.169.254/latest/meta-data/", "blocked_address"),
        ("//169.254.169.254/", "blocked_address"),
        ("http://[::ffff:127.0.0.1]/", "blocked_address"),
        ("http://0x7f.1/", "blocked_address"),
        ("file:///etc/passwd", "blocked_scheme"),
        ("ftp://example.org/x", "blocked_scheme"),
        ("http://me:secret@example.org/", "bad_url"),
        ("http://[::1", "bad_url"),
        ("http://example.org:22/", "blocked_port"),
        ("CANARY", "blocked_port"),
    ],
)
def test_a_redirect_is_checked_like_any_url(
    server: Scripted, canary: Scripted, worker: Worker, location: str, status: str
) -> None:
    target = canary.url("/secret") if location == "CANARY" else location
    before = server.hits["/away"]
    row = fetch_one(worker, server.redirect("/away", target))
    assert row["status"] == status
    assert server.hits["/away"] == before + 1
    assert "secret" not in row["error_message"].replace("/secret", "")
    assert canary.connections == 0


@pytest.mark.fault(11)
def test_a_body_shorter_than_its_content_length_is_truncated(server: Scripted, worker: Worker) -> None:
    url = server.raw("/short", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + JPEG[:100])
    assert fetch_one(worker, url)["status"] == "truncated_body"
    assert server.hits["/short"] == 3
    chunked = server.raw("/chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n" + JPEG[:50])
    assert fetch_one(worker, chunked)["status"] == "truncated_body"


def test_bytes_past_the_content_length_never_become_the_next_answer(server: Scripted, worker: Worker) -> None:
    smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsmuggle"
    head = f"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: {len(JPEG)}\r\n\r\n".encode()
    url = server.raw("/smuggle", head + JPEG + smuggled)
    after = server.serve("/after", JPEG)
    connections = server.connections
    rows = worker(part_of([url, after])).to_pylist()
    assert [row["status"] for row in rows] == ["success", "success"]
    assert rows[0]["sha256"] == rows[1]["sha256"]
    assert server.connections == connections + 2


@pytest.mark.fault(12)
@pytest.mark.parametrize("extra", [b"GARBAGE", b"\r\n", bytes(100), b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"])
@pytest.mark.parametrize("kept", ["keep-alive", "close"])
def test_extra_bytes_are_dropped_however_the_packets_fall(
    server: Scripted, worker: Worker, extra: bytes, kept: str
) -> None:
    head = f"HTTP/1.1 200 OK\r\nConnection: {kept}\r\nContent-Length: {len(JPEG)}\r\n\r\n".encode()
    urls: list[str | None] = []
    for place, pieces in enumerate(([head + JPEG + extra], [head, JPEG + extra], [head + JPEG, extra])):

        async def answer(writer: Connection, pieces: list[bytes] = pieces) -> None:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.05)

        urls.append(server.on(f"/extra/{place}", answer))
    assert worker(part_of(urls)).column("status").to_pylist() == ["success"] * 3


def test_chunks_that_are_none_end_at_once(server: Scripted, worker: Worker) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n"
    started = time.monotonic()
    for pieces in ([head + b"nonsense\r\n"], [head, b"nonsense\r\n"]):

        async def answer(writer: Connection, pieces: list[bytes] = pieces) -> None:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.05)

        assert fetch_one(worker, server.on("/nonsense", answer))["status"] == "connection_error"
    assert time.monotonic() - started < 5


ANSWERS = (
    f"HTTP/1.1 200 OK\r\nContent-Length: {len(JPEG)}\r\nContent-Type: image/jpeg\r\n\r\n".encode() + JPEG,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n4\r\nabcd\r\n0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: /next\r\nSet-Cookie: a=b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nX-Robots-Tag: noai\r\n\r\n" + gzip.compress(b"abc"),
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nabc",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nabc",
)
INSERTED = (
    b"\r\n",
    b"\0",
    b": ",
    b"\xff\xfe",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"-1",
    b"9" * 30,
)


def test_whatever_a_host_answers_ends_with_a_known_status(server: Scripted) -> None:
    chance = random.Random(5)
    urls: list[str | None] = []
    for place in range(400):
        answer = bytearray(chance.choice(ANSWERS))
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(min(len(answer), 120))
            answer[at : at + chance.randrange(3)] = chance.choice([*INSERTED, chance.randbytes(2)])
        urls.append(server.raw(f"/fuzz/{place}", bytes(answer)))
    hardened = opened(server, threads=1, tries=1, timeout_s=1)
    statuses = Counter(hardened(part_of(urls)).column("status").to_pylist())
    hardened.close()
    assert all(is_status(status) for status in statuses)
    assert len(statuses) > 5


def test_a_claimed_type_that_is_no_text_is_kept_as_far_as_it_can_be_printed(server: Scripted, worker: Worker) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(JPEG)}\r\nContent-Type: ".encode()
    row = fetch_one(worker, server.raw("/type", head + b"image/\xff\xfe" + b"x" * 500 + b"\r\n\r\n" + JPEG))
    assert row["status"] == "success"
    assert row["content_type"].startswith("image/  xxx")
    assert len(row["content_type"]) == 200


@pytest.mark.fault(14, 15)
@pytest.mark.parametrize(("body", "status"), [(b"", "empty"), (b"<!DOCTYPE html><svg></svg>", "not_an_image")])
def test_what_is_no_image_says_so(server: Scripted, worker: Worker, body: bytes, status: str) -> None:
    row = fetch_one(worker, server.serve("/lie.jpg", body, "Content-Type: image/jpeg\r\n"))
    assert row["status"] == status


@pytest.mark.parametrize("answer", [b"", b"\x00\x01\x02", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 abc OK\r\n\r\n"])
def test_what_is_no_http_is_a_connection_error(server: Scripted, worker: Worker, answer: bytes) -> None:
    assert fetch_one(worker, server.raw("/nohttp", answer))["status"] == "connection_error"


@pytest.mark.fault(54)
@pytest.mark.parametrize(
    ("headers", "reserved"),
    [
        ("X-Robots-Tag: noai\r\n", True),
        ("x-robots-tag: NoImageAI, nofollow\r\n", True),
        ("X-Robots-Tag: noindex\r\n", True),
        ("X-Robots-Tag: nofollow\r\nX-Robots-Tag: noimageindex\r\n", True),
        ("X-Robots-Tag: noml\r\n", True),
        ("X-Robots-Tag: none\r\n", True),
        ("X-Robots-Tag: sluice: noai\r\n", True),
        ("X-Robots-Tag: *: noai\r\n", True),
        ("X-Robots-Tag: googlebot: nofollow, sluice: noindex\r\n", True),
        ("X-Robots-Tag: unavailable_after: 25 Jun 2010 15:00:00 PST, noindex\r\n", True),
        ("X-Robots-Tag: max-image-preview: large, noai\r\n", True),
        ("tdm-reservation: 1\r\n", True),
        ("X-Robots-Tag: googlebot: noindex, noai\r\n", False),
        ("X-Robots-Tag: nofollow, noarchive, max-image-preview: none\r\n", False),
        ("X-Robots-Tag: all\r\n", False),
        ("tdm-reservation: 0\r\n", False),
    ],
)
def test_an_opt_out_in_the_headers_is_honoured_and_its_body_is_not_read(
    server: Scripted, worker: Worker, headers: str, reserved: bool
) -> None:
    row = fetch_one(worker, server.serve("/reserved", JPEG, headers))
    assert row["status"] == ("opted_out" if reserved else "success")
    assert (row["sha256"] is None) == reserved


@pytest.mark.fault(54)
def test_a_reserved_image_is_left_before_its_body_is_read(server: Scripted, worker: Worker) -> None:
    sent = 0

    async def answer(writer: Connection) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nX-Robots-Tag: noai\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    part = part_of([server.on("/reserved-endless", answer)])
    (row,) = worker(part).to_pylist()
    assert (row["status"], row["sha256"], part.members()) == ("opted_out", None, [])
    assert server.hits["/reserved-endless"] == 1
    assert sent < 32_000_000


def test_tries_can_be_one(server: Scripted) -> None:
    url = server.serve("/down", b"", status="500 Down")
    single = opened(server, threads=1, tries=1)
    assert fetch_one(single, url)["status"] == "http_500"
    single.close()
    assert server.hits["/down"] == 1
