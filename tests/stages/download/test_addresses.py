"""Which URLs may be reached: a table of spellings, and laws over all addresses."""

import contextlib
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from pipeline.errors import SluiceError
from stages.download.addresses import MAX_URL, Guard, denied, literal, redact, redact_all
from stages.download.statuses import FetchError, is_status

SPELLINGS = {
    # loopback in every spelling that a resolver understands
    "http://127.0.0.1/": "blocked_address",
    "http://127.1/": "blocked_address",
    "http://127.0.1/": "blocked_address",
    "http://127.255.255.254/": "blocked_address",
    "http://127.0.0.1./": "blocked_address",
    "http://0x7f000001/": "blocked_address",
    "http://0X7F000001/": "blocked_address",
    "http://0x7f.0.0.1/": "blocked_address",
    "http://0x7f.1/": "blocked_address",
    "http://0177.0.0.1/": "blocked_address",
    "http://0177.0.0.01/": "blocked_address",
    "http://00000177.1/": "blocked_address",
    "http://017700000001/": "blocked_address",
    "http://2130706433/": "blocked_address",
    "http://127.0x1/": "blocked_address",
    "http://１２７.0.0.1/": "blocked_address",
    "http://１２７．０．０．１/": "blocked_address",
    "http://127。0。0。1/": "blocked_address",
    "http://①②⑦.0.0.1/": "blocked_address",
    "http://0/": "blocked_address",
    "http://0.0.0.0/": "blocked_address",
    "http://[::1]/": "blocked_address",
    "http://[0:0:0:0:0:0:0:1]/": "blocked_address",
    "http://[::]/": "blocked_address",
    "http://[::ffff:127.0.0.1]/": "blocked_address",
    "http://[::ffff:7f00:1]/": "blocked_address",
    "http://[::127.0.0.1]/": "blocked_address",
    "http://[64:ff9b::127.0.0.1]/": "blocked_address",
    "http://[64:ff9b:1::10.0.0.1]/": "blocked_address",
    "http://[2002:7f00:1::]/": "blocked_address",
    "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/": "blocked_address",
    # private, special, and where clouds keep their secrets
    "http://10.0.0.1/": "blocked_address",
    "http://10.1/": "blocked_address",
    "http://167772161/": "blocked_address",
    "http://172.16.0.1/": "blocked_address",
    "http://172.31.255.255/": "blocked_address",
    "http://192.168.1.1/": "blocked_address",
    "http://0xc0a80101/": "blocked_address",
    "http://100.64.0.1/": "blocked_address",
    "http://100.100.100.200/latest/meta-data": "blocked_address",
    "http://169.254.169.254/latest/meta-data/": "blocked_address",
    "http://0xA9FEA9FE/": "blocked_address",
    "http://2852039166/": "blocked_address",
    "http://0251.0376.0251.0376/": "blocked_address",
    "http://169.254.43518/": "blocked_address",
    "http://[::ffff:169.254.169.254]/": "blocked_address",
    "http://[fd00:ec2::254]/": "blocked_address",
    "http://[fd20:ce::254]/": "blocked_address",
    "http://168.63.129.16/": "blocked_address",
    "http://192.0.0.192/": "blocked_address",
    "http://192.0.2.1/": "blocked_address",
    "http://198.18.0.1/": "blocked_address",
    "http://203.0.113.7/": "blocked_address",
    "http://224.0.0.1/": "blocked_address",
    "http://239.255.255.250/": "blocked_address",
    "http://255.255.255.255/": "blocked_address",
    "http://[fe80::1]/": "blocked_address",
    "http://[fe80::1%25eth0]/": "blocked_address",
    "http://[fec0::1]/": "blocked_address",
    "http://[fc00::1]/": "blocked_address",
    "http://[ff02::1]/": "blocked_address",
    "http://[2001:db8::1]/": "blocked_address",
    "http://[3fff::1]/": "blocked_address",
    # not a host, not a port, not a scheme
    "http://127.0.0.1%00/": "bad_url",
    "http://%31%32%37.0.0.1/": "bad_url",
    "http://127.0.0.1 .example.org/": "bad_url",
    "http://exa mple.org/": "bad_url",
    "http://example.org\\@127.0.0.1/": "bad_url",
    "http://user@example.org/": "bad_url",
    "http://user:word@example.org/": "bad_url",
    "http://:@example.org/": "bad_url",
    "http://example.org#@127.0.0.1/": "",
    "http://[::1/": "bad_url",
    "http://[zz::1]/": "bad_url",
    "http:///x.jpg": "bad_url",
    "http:x.jpg": "bad_url",
    "//example.org/x.jpg": "bad_url",
    "example.org/x.jpg": "bad_url",
    "": "bad_url",
    "http://a..b/": "bad_url",
    "http://example.org:99999/": "bad_url",
    "http://example.org:80x/": "bad_url",
    # on which the parser fails with errors of its own
    "//b\u00e9_[fe80::1%25eth0]@[fe80::1%25eth0]@@": "bad_url",
    "http://b\u00e9_[fe80::1%25eth0]@[fe80::1%25eth0]@@": "bad_url",
    "//11111111111111111111[fe80::1%25eth0]@[-:0http://": "bad_url",
    "http://11111111111111111111[fe80::1%25eth0]@[-:0http://": "bad_url",
    "http://example.org:0/": "blocked_port",
    "http://example.org:22/": "blocked_port",
    "http://example.org:8080/": "blocked_port",
    "https://example.org:6379/": "blocked_port",
    "file:///etc/passwd": "blocked_scheme",
    "ftp://example.org/x.jpg": "blocked_scheme",
    "gopher://127.0.0.1/": "blocked_scheme",
    "data:image/png;base64,AAAA": "blocked_scheme",
    "javascript:alert(1)": "blocked_scheme",
    # public
    "http://example.org/x.jpg": "",
    "HTTPS://EXAMPLE.ORG:443/x.jpg?a=b": "",
    "http://example.org.:80/": "",
    "http://8.8.8.8/": "",
    "http://0x08080808/": "",
    "http://134744072/": "",
    "http://[2606:4700::1111]/": "",
    "https://münchen.example/ü.jpg": "",
    "http://under_score.example.org/": "",
    " http://example.org/x.jpg\n": "",
}


@pytest.mark.parametrize(("url", "status"), SPELLINGS.items())
def test_every_spelling_means_what_it_resolves_to(url: str, status: str) -> None:
    if not status:
        assert Guard().check_url(url).scheme in ("http", "https")
        return
    with pytest.raises(FetchError) as refused:
        Guard().check_url(url)
    assert refused.value.status == status
    assert "\n" not in refused.value.message


@given(st.text(), st.sampled_from(["", "http://", "https://[", "http://x:", "http://x/", "//"]))
def test_any_text_is_a_url_or_refused(text: str, before: str) -> None:
    try:
        ended = Guard().check_url(before + text).scheme
    except FetchError as refused:
        ended = refused.status
    assert ended in ("http", "https") or is_status(ended)


def test_no_url_at_all_is_a_bad_url() -> None:
    with pytest.raises(FetchError, match="bad_url"):
        Guard().check_url(None)


def test_a_public_literal_is_dialled_in_its_canonical_spelling() -> None:
    assert str(Guard().check_url("http://0x08.8.2056/a?b#c")) == "http://8.8.8.8/a?b"


@given(st.integers(0, 2**32 - 1))
def test_every_spelling_of_an_ipv4_address_is_that_address(number: int) -> None:
    address = IPv4Address(number)
    a, b, c, d = address.packed
    spellings = (
        f"{a}.{b}.{c}.{d}",
        f"{a}.{b}.{c}.{d}.",
        f"{number}",
        f"{number:#x}",
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a:#x}.{b:#x}.{c << 8 | d:#X}".replace("0X", "0x"),
        f"0{a:o}.{b}.{c:#x}.0{d:o}",
    )
    assert {literal(spelling) for spelling in spellings} == {address}


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_hidden_in_ipv6_is_never_open(number: int) -> None:
    hidden = (number, 0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80)
    assert all(denied(IPv6Address(address)) for address in hidden)


@given(st.integers(0, 2**32 - 1))
def test_whatever_python_calls_private_is_denied(number: int) -> None:
    address = IPv4Address(number)
    if not address.is_global or address.is_multicast:
        assert denied(address)


@pytest.mark.parametrize("addresses", [["8.8.8.8", "127.0.0.1"], ["10.0.0.1"], ["2606:4700::1111", "::1"], ["x"]])
def test_one_denied_address_refuses_the_host(addresses: list[str]) -> None:
    with pytest.raises(FetchError, match="blocked_address"):
        Guard().check_addresses("example.org", 80, addresses)


def test_an_allowed_host_is_reached_by_any_spelling_but_on_no_other_port() -> None:
    guard = Guard(("127.0.0.1:8000", "images.internal:9000", "[::1]:81"))
    for url in ("http://127.0.0.1:8000/", "http://127.1:8000/", "http://IMAGES.internal:9000/", "http://[::1]:81/"):
        assert guard.check_url(url)
    guard.check_addresses("images.internal", 9000, ["10.0.0.7"])
    for url in (
        "http://127.0.0.1:8001/",
        "http://127.0.0.1/",
        "http://127.0.0.2:8000/",
        "http://images.internal:8000/",
    ):
        with pytest.raises(FetchError, match="blocked"):
            guard.check_url(url)
    with pytest.raises(FetchError, match="blocked_address"):
        guard.check_addresses("images.internal", 80, ["10.0.0.7"])


@pytest.mark.parametrize(
    "entry", ["", "127.0.0.1", "http://127.0.0.1:80", "10.0.0.0/8:80", "x:0", "x:99999", "*:80", "a b:80"]
)
def test_an_entry_that_is_no_host_and_port_is_refused_in_one_line_with_an_example(entry: str) -> None:
    with pytest.raises(SluiceError) as error:
        Guard((entry,))
    assert repr(entry) in str(error.value)
    assert "127.0.0.1:8000" in str(error.value)
    assert "\n" not in str(error.value)


def test_messages_carry_neither_credentials_nor_queries() -> None:
    assert redact("https://me:secret@example.org/a/b.jpg?token=secret#secret") == "https://example.org/a/b.jpg"
    assert "secret" not in redact_all("no answer from https://me:secret@example.org/a?key=secret, and http://x?secret")
    assert redact_all("two\nlines\x00") == "two lines "


PIECES = st.sampled_from(
    ["http:", "//", "@", "[", "]", ":", "fe80::1", "%25eth0", "-", "1" * 20, "b\u00e9_", "/", "?", "#"]
)


@example("//11111111111111111111[fe80::1%25eth0]@[-:0http://")
@given(st.lists(PIECES, max_size=10).map("".join))
def test_whatever_a_table_or_a_redirect_says_is_a_url_or_ends_the_row_alone(text: str) -> None:
    base = URL("http://example.org/a")
    for check in (Guard().check_url, lambda location: Guard().check_target(base, location)):
        with contextlib.suppress(FetchError):
            assert check(text).raw_host


def test_a_url_longer_than_servers_take_is_bad() -> None:
    base = URL("http://example.org/")
    longest = "http://example.org/" + "x" * (MAX_URL - len("http://example.org/"))
    assert Guard().check_url(longest) == Guard().check_target(base, longest) == URL(longest)
    for text in (longest + "x", longest[:-1] + "\u00e9"):  # the second one is too long once it is escaped
        with pytest.raises(FetchError, match=f"has more than {MAX_URL} characters"):
            Guard().check_url(text)
        with pytest.raises(FetchError, match=f"has more than {MAX_URL} characters"):
            Guard().check_target(base, text)
