"""A response body, read piece by piece, its decoded bytes counted: a gzip bomb ends at the limit, not in memory."""

import zlib

from stages.download.statuses import FetchError


class Body:
    """Collects at most `limit` decoded bytes of a response with the given Content-Encoding.

    We ask for `identity`; some servers send gzip all the same.
    """

    def __init__(self, encoding: str, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0
        self._beyond = 0
        self._encoding = encoding.strip().lower()
        self._fresh = True
        if self._encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise FetchError(
                "bad_encoding", f"Content-Encoding {encoding[:40]!r} was not asked for; we accept identity"
            )
        self._inflater = None if self._encoding in ("", "identity") else zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def feed(self, chunk: bytes) -> None:
        """Add what the network gave. Raises `FetchError`: `too_large` past the limit, `bad_encoding` if broken."""
        piece = chunk if self._inflater is None else self._inflate(chunk)
        if piece:
            self._pieces.append(piece)
        self._size += len(piece)
        if self._size + self._beyond > self._limit:
            raise too_large(self._limit)

    def finish(self) -> bytes:
        """The whole decoded body. Raises `FetchError` when it is empty or the compressed stream has no end."""
        if self._inflater is not None and not self._inflater.eof and not self._fresh:
            raise FetchError("truncated_body", f"the {self._encoding} stream ends early", again=True)
        if not self._size:
            raise FetchError("empty", "the body has 0 bytes")
        return b"".join(self._pieces)  # a body that came whole is not copied

    def _inflate(self, chunk: bytes) -> bytes:
        assert self._inflater is not None
        if self._inflater.eof:  # zlib would keep it all
            self._beyond += len(chunk)
            return b""
        if self._fresh and chunk and self._encoding == "deflate" and chunk[0] & 0x0F != 8:
            # Many servers send raw deflate, without the head that RFC 9110 asks for.
            self._inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        self._fresh = self._fresh and not chunk
        try:
            return self._inflater.decompress(chunk, self._limit + 1 - self._size)
        except zlib.error as error:
            raise FetchError("bad_encoding", f"the {self._encoding} stream is broken: {error}") from None


def too_large(limit: int) -> FetchError:
    return FetchError("too_large", f"the body has more than max_mb = {limit / 1e6:g} megabytes")
