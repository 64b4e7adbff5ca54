"""An egress proxy, where one is configured; the environment's proxies never count.

Plain http goes to the proxy by its whole URL, https through a tunnel (`CONNECT`), in which TLS ends at the real host.
The guard checks URLs and, where names resolve here, their addresses, as without a proxy. What it cannot check: the
names that only the proxy knows, and which address the proxy then dials. A proxy has to keep private addresses from
its users itself.
"""

import asyncio
import base64
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote

from yarl import URL

from pipeline.errors import SluiceError
from stages.download.answers import HEAD_END, parse_head
from stages.download.statuses import FetchError

REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
USERINFO = re.compile(r"(\$\{[A-Za-z_][A-Za-z0-9_]*\}:?)+")
EXPECTED = "expected http://host:port; credentials only as references, http://${NAME}:${WORD}@host:port"
MAX_REPLY: Final = 16 << 10


def check_proxy(text: str) -> None:
    """Raise `SluiceError` unless `text` names a proxy and holds no credentials itself."""
    userinfo, at, _ = text.removeprefix("http://").rpartition("@")
    if at and not USERINFO.fullmatch(userinfo):
        raise SluiceError(f"proxy has credentials in it; {EXPECTED}")
    try:
        url = URL(REFERENCE.sub("x", text))
        good = url.scheme == "http" and bool(url.raw_host) and url.path_qs == "/" and not url.raw_fragment
    except ValueError:
        good = False
    if not good:
        raise SluiceError(f"proxy is {text!r}; {EXPECTED}")


@dataclass(frozen=True)
class Proxy:
    """Where it listens, and the value of `Proxy-Authorization` (which is shown nowhere)."""

    where: tuple[str, int]
    authorization: str = field(default="", repr=False)

    @classmethod
    def of(cls, text: str, environment: Mapping[str, str] = os.environ) -> "Proxy":
        """The proxy that `text` names, its references looked up. Raises `SluiceError` where one is not set."""
        check_proxy(text)
        for name in REFERENCE.findall(text):
            if name not in environment:
                raise SluiceError(f"proxy refers to ${{{name}}}, which is not set where the worker runs; export it")
        url = URL(REFERENCE.sub(lambda found: quote(environment[found[1]], safe=""), text))
        assert url.raw_host is not None
        assert url.port is not None
        if url.raw_user is None:
            return cls((url.raw_host, url.port))
        words = f"{unquote(url.raw_user)}:{unquote(url.raw_password or '')}"
        return cls((url.raw_host, url.port), "Basic " + base64.b64encode(words.encode()).decode())

    @property
    def headers(self) -> str:
        """The header lines that tell the proxy who asks."""
        return f"Proxy-Authorization: {self.authorization}\r\n" if self.authorization else ""

    async def open_tunnel(self, dialled: socket.socket, host: str, port: int) -> None:
        """Ask for a tunnel on a fresh socket. Raises `FetchError` where the proxy refuses."""
        loop = asyncio.get_running_loop()
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        request = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{self.headers}\r\n"
        await loop.sock_sendall(dialled, request.encode("ascii"))
        reply = b""
        while (end := HEAD_END.search(reply)) is None:
            read = await loop.sock_recv(dialled, 4096)
            reply += read
            if not read or len(reply) > MAX_REPLY:
                raise FetchError("connection_error", "the proxy gave no whole answer to CONNECT", again=True)
        head = parse_head(reply[: end.start()].removesuffix(b"\r"))
        if not 200 <= head.code < 300 or end.end() < len(reply):
            again = 500 <= head.code <= 599
            raise FetchError("connection_error", f"the proxy answered {head.code} to CONNECT", again=again)
