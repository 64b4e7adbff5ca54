"""Which URLs and which addresses may be reached: only public ones, unless a host and port are allowed by name.

`ipaddress.is_global` is not enough: it is True for NAT64 (64:ff9b::/96), 6to4 (2002::/16), `::127.0.0.1`, site-local
addresses (fec0::/10), multicast and Azure's 168.63.129.16. So IPv4 has a list of its own here (IANA's special-purpose
registry and what clouds added to it), and of IPv6 only 2000::/3 is open, less what is special inside it.
"""

import functools
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from yarl import URL

from pipeline.errors import SluiceError
from stages.download.statuses import FetchError

Address = IPv4Address | IPv6Address

DENIED_IPV4 = tuple(
    (ip_network(network), what)
    for network, what in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT, and Alibaba's metadata"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "Azure's host"),
        ("169.254.0.0/16", "link-local, and the clouds' metadata"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignments, and Oracle's metadata"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "AS112"),
        ("192.52.193.0/24", "AMT"),
        ("192.88.99.0/24", "6to4 relays"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "AS112"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
OPEN_IPV6 = ip_network("2000::/3")
DENIED_IPV6 = tuple(
    (ip_network(network), what)
    for network, what in (
        ("2001::/23", "protocol assignments, Teredo among them"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("3fff::/20", "documentation"),
    )
)
PORTS = frozenset({80, 443})
MAX_URL = 8 << 10
"""Characters, escaped: more than servers take, and what robots.txt may have to be matched against."""
UNPARSABLE = (ValueError, IndexError)
"""What yarl raises for what is no URL; some of it only when a part of the URL is looked at."""
NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")
"""A host name after IDNA. Underscores are no letters of a host name, but buckets and blogs have them."""

NUMERIC = re.compile(r"[0-9a-fA-FxX.]+")
ENTRY = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9_.-]+)):([0-9]{1,5})")


@functools.lru_cache(4096)
def denied(address: Address) -> str | None:
    """Why an address must not be reached; None when it is public."""
    if isinstance(address, IPv4Address):
        return next((what for network, what in DENIED_IPV4 if address in network), None)
    if address not in OPEN_IPV6:
        return "not global unicast"
    return next((what for network, what in DENIED_IPV6 if address in network), None)


@functools.lru_cache(4096)
def literal(host: str) -> Address | None:
    """The address that a host spells in any way that a resolver understands (`127.1`, `0x7f000001`, octal, decimal)."""
    if ":" in host:
        try:
            return ip_address(host.replace("%25", "%"))
        except ValueError:
            raise FetchError("bad_url", f"[{host}] is not an IPv6 address") from None
    bare = host.removesuffix(".")
    if not NUMERIC.fullmatch(bare):  # inet_aton stops at white space and takes what came before it
        return None
    try:
        return IPv4Address(socket.inet_aton(bare))
    except OSError:
        return None


def redact(url: str) -> str:
    """A URL fit for messages: no credentials, no query, no fragment, at most 200 characters."""
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    scheme, slashes, rest = bare.partition("//")
    authority, slash, path = rest.partition("/")
    return one_line(f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}" if slashes else bare)


def redact_all(text: str) -> str:
    """A message in one line, every URL in it redacted, at most 200 characters."""
    return one_line(re.sub(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>]+", lambda found: redact(found[0]), text))


def one_line(text: str) -> str:
    """Printable characters only (no line breaks, no lone surrogates), at most 200."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if len(shown) <= 200 else f"{shown[:199]}…"


def lane_of(url: str | None) -> str:
    """What stands where the host of a URL does: cheap, and good enough to tell hosts apart."""
    return (url or "").partition("//")[2].partition("/")[0].lower()


@dataclass(frozen=True)
class Guard:
    """The rules for one stage. `allow`: "host:port" entries that may be reached although they are private."""

    allow: tuple[str, ...] = ()
    _allowed: frozenset[tuple[str, int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_allowed", frozenset(_entry(text) for text in self.allow))

    def check_url(self, text: str | None) -> URL:
        """The URL to fetch, its host in canonical form; raises `FetchError` where it must not be."""
        return self._checked(_parsed(text or ""))

    def check_target(self, url: URL, location: str) -> URL:
        """As `check_url`, for where a redirect from `url` points."""
        try:
            target = url.join(_parsed(location))
        except UNPARSABLE as error:
            raise FetchError("bad_url", f"{redact(location)!r}: {redact_all(str(error))}") from None
        return self._checked(target)

    def _checked(self, url: URL) -> URL:
        try:
            return self._of_public(url)
        except UNPARSABLE as error:
            raise FetchError("bad_url", redact_all(str(error))) from None

    def _of_public(self, url: URL) -> URL:
        if len(str(url)) > MAX_URL:
            raise FetchError("bad_url", f"{redact(str(url))!r} has more than {MAX_URL} characters")
        if not url.scheme:
            raise FetchError("bad_url", f"{redact(str(url))!r} has no scheme; expected http:// or https://")
        if url.scheme not in ("http", "https"):
            raise FetchError("blocked_scheme", f"{url.scheme[:20]}: is neither http nor https")
        if url.user is not None or url.password is not None:
            raise FetchError("bad_url", f"{redact(str(url))} carries credentials, which are never sent")
        if not url.raw_host or url.port is None:
            raise FetchError("bad_url", f"{redact(str(url))!r} has no host")
        address = literal(url.raw_host)
        if address is None and not NAME.fullmatch(url.raw_host):
            raise FetchError("bad_url", f"{redact(url.raw_host)!r} is not a host name")
        host = url.raw_host if address is None else str(address)
        if url.port not in PORTS and not self.allows(host, url.port):
            raise FetchError("blocked_port", f"port {url.port} of {host} is neither 80 nor 443")
        if address is not None:
            self.check_addresses(host, url.port, [host])
            url = url.with_host(host)
        return url.with_fragment(None)

    def allows(self, host: str, port: int) -> bool:
        """Whether `allow` names this host and port."""
        return (_canonical(host), port) in self._allowed

    def check_addresses(self, host: str, port: int, addresses: Iterable[str]) -> None:
        """Raise `FetchError` when any of a host's addresses is denied: a mix is how rebinding begins."""
        if self.allows(host, port):
            return
        for address in addresses:
            try:
                why = denied(ip_address(address))
            except ValueError:
                why = "not an address"
            if why:
                shown = address if address == host else f"{host} ({address})"
                raise FetchError("blocked_address", f"{shown} is not public: {why}")


def _parsed(text: str) -> URL:
    """Raises `FetchError` for what is no URL, before the parser spends its time on what is too long for one."""
    bare = text.strip()
    if len(bare) > MAX_URL:
        raise FetchError("bad_url", f"{redact(bare)!r} has more than {MAX_URL} characters")
    try:
        return URL(bare)
    except UNPARSABLE as error:
        raise FetchError("bad_url", redact_all(str(error))) from None


def _canonical(host: str) -> str:
    address = literal(host)
    return str(address) if address is not None else host.lower().removesuffix(".")


def _entry(text: str) -> tuple[str, int]:
    """(host, port) of an entry such as `127.0.0.1:8000`, `[::1]:8000` or `images.internal:80`."""
    found = ENTRY.fullmatch(text)
    if found and 1 <= int(found[3]) <= 65535:
        try:
            return _canonical(found[1] or found[2]), int(found[3])
        except FetchError:
            pass
    raise SluiceError(f"allow_private_hosts has {text!r}; expected host:port, such as '127.0.0.1:8000'")
