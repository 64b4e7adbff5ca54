"""robots.txt as hosts serve it: what is asked, how often, and what is never asked."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import pytest

from infra.miniweb import Scripted
from infra.miniweb.http import Connection
from stages.download import robots
from stages.download.addresses import Guard
from stages.download.hosts import Hosts, Manners
from stages.download.leases import Alone
from stages.download.statuses import RETRYABLE, FetchError
from tests.stages.download.doubles import Fetching

OBEYING = Manners(robots=True)


@pytest.fixture
def host() -> Iterator[Scripted]:
    with Scripted(keep=True) as server:
        server.serve("/open/a.jpg", b"a")
        server.serve("/shut/b.jpg", b"b")
        yield server


def ends(host: Scripted, *paths: str, manners: Manners = OBEYING) -> list[str]:
    """How the rows of these paths end, all at once."""

    async def run() -> list[str]:
        async with Fetching(Guard((f"127.0.0.1:{host.port}",)), manners=manners) as fetching:

            async def one(path: str) -> str:
                try:
                    await fetching.fetch(host.url(path))
                except FetchError as failure:
                    return failure.status
                return "success"

            return await asyncio.gather(*map(one, paths))

    return asyncio.run(run())


def test_what_is_disallowed_is_never_asked_for_and_robots_txt_is_fetched_once(host: Scripted) -> None:
    host.serve(
        "/robots.txt", b"user-agent: *\ndisallow: /\nuser-agent: sluice\ndisallow: /shut/", "X-Robots-Tag: noai\r\n"
    )
    assert ends(host, *["/open/a.jpg", "/shut/b.jpg"] * 20) == ["success", "robots_disallowed"] * 20
    assert (host.hits["/robots.txt"], host.hits["/open/a.jpg"], host.hits["/shut/b.jpg"]) == (1, 20, 0)
    assert "robots_disallowed" not in RETRYABLE


def test_without_obeying_nothing_is_asked(host: Scripted) -> None:
    host.serve("/robots.txt", b"user-agent: *\ndisallow: /")
    assert ends(host, "/shut/b.jpg", manners=Manners(robots=False)) == ["success"]
    assert host.hits["/robots.txt"] == 0


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "410 Gone", "401 Unauthorized"])
def test_without_a_robots_txt_nothing_is_forbidden(host: Scripted, status: str) -> None:
    host.serve("/robots.txt", b"user-agent: *\ndisallow: /", status=status)
    assert ends(host, "/open/a.jpg", "/shut/b.jpg") == ["success", "success"]


@pytest.mark.fault(53)
@pytest.mark.parametrize("status", ["500 Oops", "503 Later", "429 Slow"])
def test_a_robots_txt_that_fails_forbids_everything_for_now(host: Scripted, status: str) -> None:
    host.serve("/robots.txt", b"", status=status)
    assert ends(host, "/open/a.jpg", "/shut/b.jpg") == ["robots_unreachable"] * 2
    assert (host.hits["/robots.txt"], host.hits["/open/a.jpg"]) == (3, 0)
    assert "robots_unreachable" in RETRYABLE


@pytest.mark.fault(53)
def test_a_host_that_hangs_up_on_robots_txt_is_not_asked_for_anything_else(host: Scripted) -> None:
    async def hang_up(writer: Connection) -> None:
        writer.close()

    host.on("/robots.txt", hang_up)
    assert ends(host, *["/open/a.jpg"] * 50) == ["connection_error"] * 50
    assert (host.hits["/robots.txt"], host.hits["/open/a.jpg"]) == (2, 0)


@pytest.mark.parametrize(("hops", "ended"), [(5, "robots_disallowed"), (6, "success")])
def test_five_redirects_are_followed_and_more_mean_that_there_is_none(host: Scripted, hops: int, ended: str) -> None:
    host.redirect("/robots.txt", "/hop/1")
    for hop in range(1, hops):
        host.redirect(f"/hop/{hop}", f"/hop/{hop + 1}")
    host.serve(f"/hop/{hops}", b"user-agent: *\ndisallow: /shut")
    assert ends(host, "/shut/b.jpg") == [ended]
    assert host.hits[f"/hop/{hops}"] == (hops == 5)


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/", "http://inside.test/", "http://8.8.8.8:8080/robots.txt", "file:///etc/passwd"]
)
def test_a_robots_txt_that_leads_where_nobody_may_go_is_unreachable(host: Scripted, target: str) -> None:
    host.redirect("/robots.txt", target)

    async def names(host: str, port: int) -> list[str]:
        return ["10.0.0.1" if host == "inside.test" else host]

    async def run() -> None:
        async with Fetching(Guard((f"127.0.0.1:{host.port}",)), manners=OBEYING, resolver=names) as fetching:
            with pytest.raises(FetchError, match="robots_unreachable"):
                await fetching.fetch(host.url("/open/a.jpg"))

    asyncio.run(run())
    assert host.hits["/open/a.jpg"] == 0


def test_a_host_that_is_blocked_itself_is_called_so() -> None:
    async def names(host: str, port: int) -> list[str]:
        return ["10.0.0.1"]

    async def run() -> None:
        async with Fetching(Guard(()), manners=OBEYING, resolver=names) as fetching:
            with pytest.raises(FetchError, match=r"blocked_address: robots.txt: inside.test \(10.0.0.1\) is"):
                await fetching.fetch("http://inside.test/a.jpg")

    asyncio.run(run())


def test_a_redirect_to_what_is_disallowed_is_not_followed(host: Scripted) -> None:
    host.serve("/robots.txt", b"user-agent: *\ndisallow: /shut/")
    host.redirect("/open/away", "/shut/b.jpg")
    assert ends(host, "/open/away") == ["robots_disallowed"]
    assert host.hits["/shut/b.jpg"] == 0


def test_a_redirect_to_another_host_is_checked_there(host: Scripted) -> None:
    with Scripted() as other:
        other.serve("/robots.txt", b"user-agent: *\ndisallow: /")
        host.redirect("/open/away", other.url("/x"))

        async def run() -> None:
            guard = Guard((f"127.0.0.1:{host.port}", f"127.0.0.1:{other.port}"))
            async with Fetching(guard, manners=OBEYING) as fetching:
                with pytest.raises(FetchError, match="robots_disallowed"):
                    await fetching.fetch(host.url("/open/away"))

        asyncio.run(run())
        assert (other.hits["/robots.txt"], other.hits["/x"]) == (1, 0)


def test_two_workers_of_a_run_fetch_it_once(host: Scripted) -> None:
    host.serve("/robots.txt", b"user-agent: *\ndisallow: /shut")

    async def run() -> None:
        guard, shared = Guard((f"127.0.0.1:{host.port}",)), Alone(Hosts(16))
        async with (
            Fetching(guard, manners=OBEYING, shared=shared) as first,
            Fetching(guard, manners=OBEYING, shared=shared) as second,
        ):
            await asyncio.gather(first.fetch(host.url("/open/a.jpg")), second.fetch(host.url("/open/a.jpg")))

    asyncio.run(run())
    assert (host.hits["/robots.txt"], host.hits["/open/a.jpg"]) == (1, 2)


def test_a_crawl_delay_is_kept(host: Scripted) -> None:
    host.serve("/robots.txt", b"user-agent: *\ncrawl-delay: 0.2")
    asked: list[float] = []

    async def answer(writer: Connection) -> None:
        asked.append(time.monotonic())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")

    host.on("/open/slowly", answer)
    assert ends(host, *["/open/slowly"] * 5) == ["success"] * 5
    assert all(later - earlier > 0.15 for earlier, later in pairwise(asked))


def test_a_crawl_delay_is_told_to_what_the_next_run_shares(host: Scripted) -> None:
    """A worker is kept from run to run, and with it what it knows."""

    class Heard(Alone):
        delays: set[float]

        def call(self, method: str, *arguments: Any) -> Future[Any]:
            self.delays |= {ask.delay_s for ask in arguments[1].asks.values() if ask.waiting}
            return super().call(method, *arguments)

    host.serve("/robots.txt", b"user-agent: *\ncrawl-delay: 0.01")

    async def run() -> None:
        async with Fetching(Guard((f"127.0.0.1:{host.port}",)), manners=OBEYING) as fetching:
            await fetching.fetch(host.url("/open/a.jpg"))
            while len(fetching.gate.leases):
                await asyncio.sleep(0.01)
            fetching.gate.leases.shared = heard = Heard(Hosts(16))
            heard.delays = set()
            await fetching.fetch(host.url("/open/a.jpg"))
            assert heard.delays == {0.01}

    asyncio.run(asyncio.wait_for(run(), 10))
    assert (host.hits["/robots.txt"], host.hits["/open/a.jpg"]) == (1, 2)


def test_a_long_robots_txt_is_read_as_far_as_it_is_parsed(host: Scripted) -> None:
    host.serve("/robots.txt", b"user-agent: *\ndisallow: /shut/\n" + b"#" * robots.MAX_BYTES)
    assert ends(host, "/open/a.jpg", "/shut/b.jpg") == ["success", "robots_disallowed"]
