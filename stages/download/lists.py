"""Lists of what must not be fetched and what must not be kept: text files, an entry a line, `#` begins a comment.

An opt-out list names domains (which cover their subdomains) and single URLs:

    example.org
    https://photos.example.com/private/7.jpg

A list of blocked content names SHA-256 digests of files as they are served, and 64-bit perceptual hashes
(perceptual_hash.py) with the number of bits, 0 unless it says so, in which a picture may differ and is still meant:

    e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
    8f0e17d1a4b2c3d9 4
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import fsspec
import numpy as np
from yarl import URL

from pipeline.errors import SluiceError
from pipeline.identity import expand
from stages.download.addresses import NAME, literal
from stages.download.statuses import FetchError

SHA256 = re.compile(r"[0-9a-f]{64}")
PERCEPTUAL = re.compile(r"([0-9a-f]{16})(?:[ \t]+([0-9]|1[0-6]))?")
A_URL = "'example.org' or 'https://example.org/x.jpg'"
A_HASH = "64 hex digits of a SHA-256, or 16 of a perceptual hash and perhaps up to how many bits (16 at most)"


class OptOuts:
    """Domains and URLs whose owners, or we, want them left alone."""

    def __init__(self, path: str) -> None:
        """Raises `SluiceError` for a line that is neither."""
        self._domains: set[str] = set()
        self._urls: set[str] = set()
        for number, text in _lines(path, "opt_out"):
            try:
                self._add(text)
            except (ValueError, FetchError):
                raise _malformed(path, number, text, A_URL) from None

    def covers(self, url: URL) -> str | None:
        """The entry that covers a URL in canonical form; None where there is none."""
        name = (url.raw_host or "").removesuffix(".")
        address = _bare(url)
        if address in self._urls:
            return "its URL"
        while name:
            if name in self._domains:
                return name
            name = "" if ":" in name or literal(name) is not None else name.partition(".")[2]
        return None

    def _add(self, text: str) -> None:
        if "://" in text:
            url = URL(text)
            if url.scheme not in ("http", "https") or not url.raw_host or url.raw_user is not None:
                raise ValueError
            self._urls.add(_bare(url))
            return
        bare = text.removeprefix("[").removesuffix("]") if ":" in text else text.removeprefix("*.").removesuffix(".")
        host = URL.build(scheme="http", host=bare).raw_host or ""
        address = literal(host)
        if address is None and not (NAME.fullmatch(host) and not text.startswith(".")):
            raise ValueError
        self._domains.add(host if address is None else str(address))


class Blocked:
    """Content that must not be kept, whatever its URL."""

    def __init__(self, path: str) -> None:
        """Raises `SluiceError` for a line that is no hash."""
        self._files: set[bytes] = set()
        pictures: dict[int, int] = {}
        for number, text in _lines(path, "blocked_hashes"):
            if SHA256.fullmatch(text.lower()):
                self._files.add(bytes.fromhex(text))
                continue
            found = PERCEPTUAL.fullmatch(text.lower())
            if found is None:
                raise _malformed(path, number, text, A_HASH)
            picture = int(found[1], 16)
            pictures[picture] = max(int(found[2] or 0), pictures.get(picture, 0))
        self._pictures_n = np.fromiter(pictures, np.uint64, len(pictures))
        self._bits_n = np.fromiter(pictures.values(), np.uint8, len(pictures))

    def file(self, sha256: str) -> bool:
        """Whether a file with this digest is meant."""
        return bytes.fromhex(sha256) in self._files

    def picture(self, phash: int) -> bool:
        """Whether a picture with this perceptual hash is meant."""
        return bool((np.bitwise_count(self._pictures_n ^ np.uint64(phash)) <= self._bits_n).any())


@dataclass(frozen=True)
class Lists:
    """The lists of one stage; None where none was given."""

    opt_outs: OptOuts | None = None
    blocked: Blocked | None = None


def _bare(url: URL) -> str:
    """A URL without what does not matter to its owner: scheme, default port, fragment, a dot behind the host."""
    return f"{url.host_port_subcomponent}{url.raw_path_qs}"


def _lines(path: str, parameter: str) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that say something. Raises `SluiceError` where there is no such file."""
    (found,) = expand(path, parameter)[:1]
    with fsspec.open(found, "rt", encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            text = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
            if text:
                yield number, text


def _malformed(path: str, number: int, text: str, expected: str) -> SluiceError:
    return SluiceError(f"{path}, line {number}: {text[:80]!r}; expected {expected}")
