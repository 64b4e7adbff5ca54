"""HTTP/1.1 answers (RFC 9112): the head, and where the body ends.

Strict where a mistake would move the end of an answer (lengths, chunks, names of headers), and lenient elsewhere
(bare line feeds, a missing reason phrase), as browsers are.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from stages.download.statuses import FetchError

MAX_HEAD: Final = 64 << 10
"""Bytes of a head, or of the trailers behind the last chunk."""
MAX_LINE: Final = 8 << 10
"""Bytes of the line before a chunk; its extensions are no use to us."""
SMALL_CHUNK: Final = 64
"""Bytes; a chunk below costs more to find than to copy."""
SMALL_CHUNKS: Final = 4_096
"""Such chunks in one body. Hosts flush small pieces now and then; only one that means harm sends nothing else."""
HEAD_END = re.compile(rb"\n\r?\n")
STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\x00\r]*)?")
FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
LENGTH = re.compile(r"[0-9]{1,18}")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?", re.DOTALL)
BODYLESS = frozenset({204, 304})


@dataclass(frozen=True)
class Head:
    """Status line and headers, as UTF-8; bytes that are none are lone surrogates."""

    code: int
    lasting: bool
    """Whether the host says that the connection may serve another request."""
    fields: tuple[tuple[str, str], ...]
    """(name in lower case, value)."""

    def all(self, name: str) -> list[str]:
        """Every value of a header, in order; `name` in lower case."""
        return [value for known, value in self.fields if known == name]

    def get(self, name: str) -> str | None:
        """The first value of a header; None where there is none."""
        return next((value for known, value in self.fields if known == name), None)

    @property
    def chunked(self) -> bool:
        """Whether the body comes in chunks. Raises `FetchError` for other transfer codings."""
        codings = ",".join(self.all("transfer-encoding")).strip().lower()
        if codings and codings != "chunked":
            raise broken(f"Transfer-Encoding {codings[:40]!r}; we know chunked")
        return bool(codings)

    @property
    def length(self) -> int | None:
        """Bytes of the body where the head says so; None where chunks or the connection's end do.

        Raises `FetchError` where lengths differ or are none.
        """
        if self.code in BODYLESS:
            return 0
        if self.chunked:
            return None
        lengths = {part.strip() for value in self.all("content-length") for part in value.split(",")}
        if not lengths:
            return None
        text = lengths.pop()
        if lengths or not LENGTH.fullmatch(text):
            raise broken(f"Content-Length {text[:40]!r}")
        return int(text)


def parse_head(data: bytes) -> Head:
    """The head without the empty line that ends it. Raises `FetchError` where it is none."""
    first, *lines = data.decode("utf-8", "surrogateescape").split("\n")
    start = STATUS_LINE.fullmatch(first.removesuffix("\r"))
    if start is None:
        raise broken(f"it begins with {first[:40]!r}")
    found: list[tuple[str, list[str]]] = []
    for ended in lines:
        line = ended.removesuffix("\r")
        folded = line[:1] in (" ", "\t") and bool(found)  # obsolete, and still sent
        name, colon, value = ("", ":", line) if folded else line.partition(":")
        if not colon or not (folded or FIELD_NAME.fullmatch(name)) or "\0" in value or "\r" in value:
            raise broken(f"a header line is {line[:40]!r}")
        if folded:
            found[-1][1].append(value.strip(" \t"))
        else:
            found.append((name.lower(), [value.strip(" \t")]))
    fields = tuple((name, " ".join(values)) for name, values in found)
    said = {part.strip().lower() for name, value in fields if name == "connection" for part in value.split(",")}
    lasting = "close" not in said and (start[1] == "1" or "keep-alive" in said)
    return Head(int(start[2]), lasting, fields)


class Chunks:
    """Takes a chunked body apart; `feed` gets its bytes."""

    def __init__(self, feed: Callable[[bytes], None]) -> None:
        self._feed = feed
        self._line = b""
        self._left = 0
        self._expected = "size"
        self._small = 0
        self._trailers = 0

    def take(self, data: bytes) -> int | None:
        """Eat `data`: None while the body goes on, else how many of the bytes belonged to it. Raises `FetchError`."""
        body = bytearray()  # of all chunks in `data`: what is kept piece by piece takes many times its size
        end = self._take(data, body)
        if body:
            self._feed(bytes(body))
        return end

    def _take(self, data: bytes, body: bytearray) -> int | None:
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                body += piece
                self._left -= len(piece)
                at += len(piece)
                continue
            end = data.find(b"\n", at) + 1
            self._line += data[at : end or len(data)]
            if len(self._line) > MAX_LINE:
                raise broken("the line before a chunk never ends")
            if not end:
                return None
            at = end
            line, self._line = self._line[:-1].removesuffix(b"\r"), b""
            if self._ended(line):
                return at
        return None

    def _ended(self, line: bytes) -> bool:
        """Whether this line ends the body."""
        if self._expected == "size":
            size = CHUNK_SIZE.fullmatch(line)
            if size is None:
                raise broken(f"a chunk begins with {line[:40]!r}")
            self._left = int(size[1], 16)
            self._small += self._left < SMALL_CHUNK
            if self._small > SMALL_CHUNKS:
                raise broken(f"more than {SMALL_CHUNKS} chunks of less than {SMALL_CHUNK} bytes")
            self._expected = "end" if self._left else "trailer"
            return False
        if self._expected == "end":
            if line:
                raise broken("a chunk is longer than it said")
            self._expected = "size"
            return False
        self._trailers += len(line)
        if self._trailers > MAX_HEAD:
            raise broken("the trailers never end")
        return not line


def broken(what: str) -> FetchError:
    """The error for what does not follow HTTP."""
    return FetchError("connection_error", f"not an HTTP answer: {what}")
