"""A client that takes what it gets: plain requests over one connection, and raw bytes."""

import http.client
import socket
from contextlib import closing
from urllib.parse import urlsplit

Reply = tuple[int, str | None, bytes]


def get(base: str, *paths: str, method: str = "GET", host: str | None = None) -> list[Reply]:
    """The replies to requests over one connection."""
    with closing(http.client.HTTPConnection(urlsplit(base).netloc, timeout=30)) as connection:
        replies = []
        for path in paths:
            connection.request(method, path, headers={} if host is None else {"Host": host})
            answer = connection.getresponse()
            replies.append((answer.status, answer.headers["Content-Type"], answer.read()))
        return replies


def headers(base: str, path: str) -> dict[str, str]:
    """The headers of one reply, their names in lower case."""
    with closing(http.client.HTTPConnection(urlsplit(base).netloc, timeout=30)) as connection:
        connection.request("GET", path)
        return {name.lower(): value for name, value in connection.getresponse().getheaders()}


def raw(base: str, request: bytes, most: int = 1 << 20, timeout_s: float = 5.0) -> bytes:
    """The bytes that come back until the server closes, `most` have come, or nothing comes for a while."""
    place = urlsplit(base)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=timeout_s) as connection:
        connection.sendall(request)
        received = b""
        try:
            while len(received) < most and (data := connection.recv(65536)):
                received += data
        except TimeoutError:
            pass
        return received


def ask(path: str) -> bytes:
    """A request for a path, as bytes."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
