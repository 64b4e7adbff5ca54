"""How often a row is tried: the table, and what hosts see of it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.miniweb import Scripted
from infra.miniweb.http import Connection, Script
from stages.download import retries
from stages.download.hosts import MAX_PAUSE_S
from stages.download.retries import TRIES, backoff_s, tries_of
from stages.download.statuses import FIXED, FetchError, is_status, passing
from stages.download.worker import Worker
from tests.stages.download.conftest import opened
from tests.stages.download.doubles import encoded, fetch_one, picture

STATUSES = st.sampled_from(sorted(FIXED)) | st.integers(100, 599).map(lambda code: f"http_{code}")


@given(STATUSES, st.booleans(), st.integers(1, 10))
def test_a_row_is_tried_at_least_once_and_at_most_as_often_as_it_may_be(status: str, again: bool, tries: int) -> None:
    wanted = tries_of(FetchError(status, "", again), tries)
    assert 1 <= wanted <= tries
    assert again or wanted == 1


@given(st.integers(1, 10))
def test_what_is_settled_is_never_tried_again(tries: int) -> None:
    for status in ("http_404", "http_410", "opted_out", "blocked_address", "hash_mismatch", "robots_disallowed"):
        assert tries_of(FetchError(status, "", again=passing(404)), tries) == 1
    assert tries_of(FetchError("http_501", "", again=passing(501)), tries) == 1


def test_every_class_of_the_table_is_a_status() -> None:
    assert all(name == "http" or is_status(name) for name in TRIES)


@given(st.integers(1, 50))
def test_a_pause_doubles_is_half_chance_and_has_an_end(tried: int) -> None:
    middle = retries.BACKOFF_S * 2.0 ** (tried - 1)
    assert min(middle / 2, MAX_PAUSE_S) <= backoff_s(tried) <= min(middle * 1.5, MAX_PAUSE_S)


def test_pauses_differ() -> None:
    assert len({backoff_s(1) for _ in range(100)}) > 90


async def reset(writer: Connection) -> None:
    writer.transport.abort()


async def cut(writer: Connection) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")


async def no_http(writer: Connection) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


async def down(writer: Connection) -> None:
    writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")


async def unable(writer: Connection) -> None:
    writer.write(b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.fault(3)
@pytest.mark.parametrize(
    ("answer", "status", "asked"),
    [
        (reset, "connection_error", 2),
        (cut, "truncated_body", 3),
        (no_http, "connection_error", 1),
        (down, "http_502", 3),
        (unable, "http_501", 1),
    ],
)
def test_a_host_sees_as_many_tries_as_the_table_says(
    server: Scripted, worker: Worker, answer: Script, status: str, asked: int
) -> None:
    path = f"/tries/{answer.__name__}"
    assert fetch_one(worker, server.on(path, answer))["status"] == status
    assert server.hits[path] == asked


def test_a_timeout_is_not_tried_again(server: Scripted) -> None:
    async def hang(writer: Connection) -> None:
        await asyncio.sleep(1)

    impatient = opened(server, threads=1, timeout_s=0.2)
    assert fetch_one(impatient, server.on("/tries/hang", hang))["status"] == "timeout"
    impatient.close()
    assert server.hits["/tries/hang"] == 1


def test_more_tries_than_the_default_may_be_asked_for(server: Scripted) -> None:
    async def sixth(writer: Connection) -> None:
        if server.hits["/tries/sixth"] < 6:
            await down(writer)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + encoded(picture()))

    patient = opened(server, threads=1, tries=6)
    assert fetch_one(patient, server.on("/tries/sixth", sixth))["status"] == "success"
    patient.close()
