"""Every way to make us connect to where we must not: by the URL itself, by a redirect, by a name that rebinds.

On loopback a canary listens; elsewhere every dial is written down, and none may go to a denied address.
"""

import asyncio
import re
import socket
from ipaddress import IPv4Address, ip_address

import pytest

from infra.miniweb import Scripted
from stages.download import addresses, connect
from stages.download.addresses import Guard, denied, literal
from stages.download.connect import Connections
from stages.download.statuses import FetchError
from tests.stages.download.doubles import Fetching

PUBLIC = "93.184.216.34"
V4 = (
    "0.0.0.0", "10.0.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254",
    "172.31.255.255", "192.0.0.192", "192.168.0.1", "198.18.0.1", "203.0.113.7", "224.0.0.1", "255.255.255.255",
)  # fmt: skip
V6 = (
    "::", "::1", "0:0:0:0:0:0:0:1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "fe80::1%25eth0", "fec0::1",
    "ff02::1", "2001::1", "2001:db8::1", "2001:20::1", "3fff::1", "100::1", "5f00::1", "4000::1",
)  # fmt: skip
TRICKS = (
    "file:///etc/passwd", "file://127.0.0.1/etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1:6379/_INFO",
    "dict://127.0.0.1:11211/", "ldap://127.0.0.1/", "tftp://127.0.0.1/", "jar:http://127.0.0.1!/", "data:image/png,x",
    "javascript:1", "ws://127.0.0.1/", "netdoc:///etc/passwd", "unix:///var/run/docker.sock", "about:blank",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/", "http://user@127.0.0.1/", "http://example.org@127.0.0.1/",
    "http://example.org:80@127.0.0.1/", "http://127.0.0.1@example.org/", "http://:@127.0.0.1/", "http://@127.0.0.1:22/",
    "http://example.org%40127.0.0.1/", "http://127.0.0.1%00.example.org/", "http://127.0.0.1%2eexample.org/",
    "http://%31%32%37.0.0.1/", "http://127.0.0.1%0d%0aHost:x/", "http://127.0.0.1 .example.org/",
    "http://example.org\\@127.0.0.1/", "http://[::1/", "http://::1/", "http://[127.0.0.1]/", "http://[::ffff:127.0.0.1",
    "http://[v1.x]/", "http://127.0.0.1:22/", "http://localhost:6379/", "http://example.org:25/", "http://example.org:0/",
    "http://example.org:65536/", "http://example.org:-80/", "http://example.org:8080/", "https://example.org:2375/",
    "http://127.0.0.1:80:80/", "http:///x", "http://?", "http://#", "http://.", "http://..", "http://a..b/", "//",
    "http://local\u00adhost/",
)  # fmt: skip
NAMES = {
    "localhost": "127.0.0.1", "localhost.": "127.0.0.1", "LOCALHOST": "127.0.0.1", "ip6-localhost": "::1",
    "localtest.me": "127.0.0.1", "127.0.0.1.nip.io": "127.0.0.1", "metadata.google.internal": "169.254.169.254",
    "metadata": "169.254.169.254", "instance-data": "169.254.169.254", "kubernetes.default.svc": "10.96.0.1",
    "host.docker.internal": "192.168.65.2", "gateway.docker.internal": "192.168.65.1", "router.local": "192.168.1.1",
    "ⓛocalhost": "127.0.0.1", "printer": "fe80::1", "mapped.test": "::ffff:10.0.0.1",
    "nat64.test": "64:ff9b::a00:1",
}  # fmt: skip


def spellings(text: str) -> list[str]:
    """The hosts that mean an IPv4 address, in a URL."""
    address = IPv4Address(text)
    number = int(address)
    a, b, c, d = address.packed
    dotted = (
        f"{a}.{b}.{c}.{d}", f"{a}.{b}.{c}.{d}.", f"{number}", f"{number:#x}", f"0{number:o}",
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"{a}.{number & 0xFFFFFF}", f"{a}.{b}.{c << 8 | d:#X}".replace("0X", "0x"),
        f"{a}.{b}.{c}.{d}".translate(str.maketrans("0123456789.", "０１２３４５６７８９。")),
    )  # fmt: skip
    high, low = f"{number >> 16:x}", f"{number & 0xFFFF:x}"
    hidden = (
        f"[::ffff:{high}:{low}]", f"[::ffff:0:{high}:{low}]", f"[::{high}:{low}]", f"[64:ff9b::{high}:{low}]",
        f"[64:ff9b:1::{high}:{low}]", f"[2002:{high}:{low}::1]",
    )  # fmt: skip
    return [*dotted, *hidden]


HOSTS = [host for text in V4 for host in spellings(text)] + [f"[{text}]" for text in V6]


class Recorder:
    """Stands where sockets are opened: the hostile server may be dialled, and everything is written down."""

    def __init__(self, server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dialled: list[str] = []
        original = Connections._dial_one

        async def dial(connections: Connections, address: str, port: int) -> socket.socket:
            if (address, port) == ("127.0.0.1", server.port):
                return await original(connections, address, port)
            self.dialled.append(address)
            raise ConnectionRefusedError(111, "nobody listens")

        monkeypatch.setattr(Connections, "_dial_one", dial)
        self.server = server

    def fetch(self, url: str, answers: list[str]) -> str:
        """How a URL ends whose names resolve to these addresses, one after another, the last one for ever."""

        async def names(host: str, port: int) -> list[str]:
            return [answers.pop(0) if len(answers) > 1 else answers[0]]

        async def once() -> None:
            async with Fetching(Guard((f"127.0.0.1:{self.server.port}",)), resolver=names) as fetching:
                await fetching.fetch(url)

        try:
            asyncio.run(once())
        except FetchError as failure:
            return failure.status
        return "success"


@pytest.fixture
def recorder(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(connect, "NAMES_S", -1.0)  # names are asked for at every connection
    return Recorder(server, monkeypatch)


def test_there_are_more_than_two_hundred_of_them_and_all_differ() -> None:
    assert len(set(HOSTS)) == len(HOSTS) > 200
    assert len({*HOSTS, *TRICKS, *NAMES}) == len(HOSTS) + len(TRICKS) + len(NAMES)


@pytest.mark.fault(8, 10)
@pytest.mark.parametrize("host", HOSTS)
def test_an_address_in_any_spelling_is_never_dialled(recorder: Recorder, host: str) -> None:
    direct = recorder.fetch(f"http://{host}/", [PUBLIC])
    redirected = recorder.fetch(recorder.server.redirect("/ssrf", f"https://{host}/"), [PUBLIC])
    assert (direct, redirected) == ("blocked_address", "blocked_address")
    assert recorder.dialled == []
    bare = host.removeprefix("[").removesuffix("]").partition("%")[0]
    meant = literal(bare.translate(str.maketrans("０１２３４５６７８９。", "0123456789.")))
    assert meant is not None
    assert recorder.fetch("http://rebinding.test/", [PUBLIC, str(meant)]) == "blocked_address"
    assert recorder.dialled == [PUBLIC]


@pytest.mark.fault(9)
@pytest.mark.parametrize("url", TRICKS)
def test_a_url_that_plays_tricks_is_refused(recorder: Recorder, url: str) -> None:
    refused = {"blocked_address", "blocked_scheme", "blocked_port", "bad_url"}
    assert recorder.fetch(url, ["127.0.0.1"]) in refused
    if not re.fullmatch(r"(http:)?//([/?#].*)?", url):  # what has no host is our own when it is a redirect
        assert recorder.fetch(recorder.server.redirect("/ssrf", url), ["127.0.0.1"]) in refused
    assert recorder.dialled == []


@pytest.mark.fault(8, 10)
@pytest.mark.parametrize(("name", "address"), NAMES.items())
def test_a_name_of_what_is_private_is_never_dialled(recorder: Recorder, name: str, address: str) -> None:
    assert denied(ip_address(address))
    assert recorder.fetch(f"http://{name}/", [address]) == "blocked_address"
    assert recorder.fetch(recorder.server.redirect("/ssrf", f"http://{name}/"), [address]) == "blocked_address"
    assert recorder.dialled == []
    assert recorder.fetch(f"http://{name}/", [PUBLIC, address]) == "blocked_address"
    assert recorder.dialled == [PUBLIC]


@pytest.mark.fault(8)
@pytest.mark.parametrize("host", [*spellings("127.0.0.1")[:10], "canary.test"])
def test_the_canary_is_hit_only_where_it_is_allowed(
    server: Scripted, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Only the addresses stand between us and it: its port is open here."""
    with Scripted() as canary:
        monkeypatch.setattr(addresses, "PORTS", frozenset({80, 443, canary.port}))
        url = canary.url("/secret", host)
        away = server.redirect("/ssrf-canary", url)

        def fetch(url: str, *allow: str) -> str:
            async def names(host: str, port: int) -> list[str]:
                return ["127.0.0.1"]

            async def once() -> None:
                async with Fetching(Guard((f"127.0.0.1:{server.port}", *allow)), resolver=names) as fetching:
                    await fetching.fetch(url)

            with pytest.raises(FetchError) as failed:
                asyncio.run(once())
            return failed.value.status

        assert (fetch(url), fetch(away)) == ("blocked_address", "blocked_address")
        assert canary.connections == 0
        allow = f"{'canary.test' if host == 'canary.test' else '127.0.0.1'}:{canary.port}"
        assert (fetch(url, allow), fetch(away, allow)) == ("http_404", "http_404")
        assert canary.hits["/secret"] == 2
