"""A long JSON file cut into slices of so many entries in one pass, of which each can be read by itself.

Entries are the items of a JSON list, or JSON lines. The pass holds one entry and a block of the file; a slice is known
by its first byte, the byte behind its last, and what is between them.
"""

from __future__ import annotations

import io
import json
import re
from codecs import getincrementaldecoder
from collections.abc import Iterator
from hashlib import sha256
from typing import IO, Any, NamedTuple

import fsspec

from pipeline.errors import SluiceError

BLOCK = 1 << 20
"""Bytes that are read at once."""
LONGEST = 64 << 20
"""Characters of an entry, bytes of a line. Where nothing is found to end before, the file is no JSON."""
BLANK = " \t\n\r"
DECODER = json.JSONDecoder()
ENDS = ']}"'
"""What nothing can follow in an item; `1` may be the beginning of `1.5e3`."""
NUMBER = re.compile(r"[0-9.eE+-]*")


class NoJson(ValueError):
    """What is neither a list in JSON nor JSON lines: says where and why."""


class Slice(NamedTuple):
    """Some entries that follow each other."""

    listed: bool
    """Whether they are items of a list; else lines."""
    first: int
    end: int
    entries: int
    sha256: str
    """Of its bytes."""


def slices(path: str, most: int) -> Iterator[Slice]:
    """All entries of a file on any fsspec store, `most` in a slice but for the last. Raises `NoJson`."""
    with fsspec.open(path, "rb") as opened:
        # fsspec's own `readline` reads a block for every line.
        handle = io.BufferedReader(opened, BLOCK)
        head = handle.read(1)
        at = 0
        while head and head.isspace():
            head, at = handle.read(1), at + 1
        listed = head == b"["
        found = _items(handle, at + 1) if listed else _lines(handle, head, at)
        first = end = count = 0
        seen = sha256()
        for begin, between, entry in found:
            if count:
                seen.update(between)
            else:
                first, seen = begin, sha256()
            seen.update(entry)
            end = begin + len(entry)
            count += 1
            if count == most:
                yield Slice(listed, first, end, count, seen.hexdigest())
                count = 0
        if count:
            yield Slice(listed, first, end, count, seen.hexdigest())


def read(path: str, one: Slice) -> list[Any]:
    """The entries of a slice; of the file nothing else is read. Raises `SluiceError` where it holds other bytes now."""
    store, inside = fsspec.core.url_to_fs(path)
    data = store.cat_file(inside, start=one.first, end=one.end)
    if sha256(data).hexdigest() != one.sha256:
        raise SluiceError(f"{path} changed while the run went on; run again")
    text = data.decode()
    if one.listed:
        found: list[Any] = json.loads(f"[{text}]")
        return found
    return [json.loads(line) for line in text.split("\n") if line.strip()]


Found = tuple[int, bytes, bytes]
"""The byte at which an entry begins, what stands between it and the entry before it, and the entry."""


def _lines(handle: IO[bytes], head: bytes, at: int) -> Iterator[Found]:
    """Every line that is not blank; `head` is read, and stands at byte `at`."""
    between = bytearray()
    line = head + handle.readline(LONGEST)
    while line:
        if len(line) > LONGEST:
            raise NoJson(f"a line of more than {LONGEST:,} bytes at byte {at}")
        if line.strip():
            _checked(line)
            yield at, bytes(between), line
            between.clear()
        else:
            between += line
        at += len(line)
        line = handle.readline(LONGEST + 1)


def _checked(line: bytes) -> None:
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise NoJson(str(error)) from None


def _items(handle: IO[bytes], at: int) -> Iterator[Found]:
    """The same of a list, of which the bracket is read."""
    text = _Text(handle, at)
    mark = text.mark()
    if mark != "]":
        while True:
            begin, between = text.at, bytes(text.taken)
            text.taken.clear()
            text.take(text.item())
            yield begin, between, bytes(text.taken)
            text.taken.clear()
            mark = text.mark()
            if mark != ",":
                break
            text.take(1)
            text.mark()
    if mark != "]":
        raise NoJson(f"{mark or 'the end'!r} at byte {text.at}, where a comma or ] was expected")
    text.take(1)
    if mark := text.mark():
        raise NoJson(f"{mark!r} at byte {text.at}, behind the end of the list")


class _Text:
    """What was read of a file and not yet taken; `at`: the byte at which that begins; `taken`: what stood before it, as
    far as nobody has cleared it."""

    def __init__(self, handle: IO[bytes], at: int) -> None:
        self.at, self.taken = at, bytearray()
        self._handle, self._decoder = handle, getincrementaldecoder("utf-8")()
        self._text, self._place, self._over = "", 0, False

    def _more(self, size: int) -> None:
        data = self._handle.read(size)
        self._over = not data
        try:
            self._text = self._text[self._place :] + self._decoder.decode(data, final=self._over)
        except UnicodeDecodeError as error:
            raise NoJson(str(error)) from None
        self._place = 0

    def take(self, count: int) -> None:
        end = self._place + count
        data = self._text[self._place : end].encode()
        self.at += len(data)
        self.taken += data
        self._place = end

    def mark(self) -> str:
        """The next character that is no blank, and is not taken; empty at the end of the file."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in BLANK:
                self.take(1)
            if self._place < len(self._text) or self._over:
                return self._text[self._place : self._place + 1]
            self._more(BLOCK)

    def item(self) -> int:
        """Characters of the item that begins here. Raises `NoJson`."""
        while True:
            last = self._over or len(self._text) - self._place > LONGEST
            try:
                _, end = DECODER.raw_decode(self._text, self._place)
            except RecursionError as error:
                raise NoJson(f"{error} at byte {self.at}") from None
            except ValueError as error:
                if last:
                    told = str(error).partition(": line")[0]
                    raise NoJson(f"{told} in what begins at byte {self.at}") from None
            else:
                if last or self._is_whole(end):
                    return end - self._place
            self._more(max(BLOCK, len(self._text) - self._place))  # twice as much: a long item is not read often

    def _is_whole(self, end: int) -> bool:
        """Whether what is not read yet can change nothing of an item that ends there."""
        if self._text[end - 1] in ENDS:
            return True
        behind = NUMBER.match(self._text, end)
        return behind is not None and behind.end() < len(self._text)
