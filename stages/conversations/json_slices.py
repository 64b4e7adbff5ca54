"""A long JSON file cut into slices of so many entries in one pass, of which each can be read by itself.

Entries are the items of a JSON list, or JSON lines. The pass holds one entry and a block of the file; a slice is known
by its first byte and the byte behind its last.
"""

from __future__ import annotations

import json
from codecs import getincrementaldecoder
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import fsspec

BLOCK = 1 << 20
"""Bytes that are read at once."""
LONGEST = 64 << 20
"""Characters of an entry. Where nothing is found to end before, the file is no JSON."""
BLANK = " \t\n\r"
DECODER = json.JSONDecoder()


class NoJson(ValueError):
    """What is neither a list in JSON nor JSON lines: says where and why."""


class Slice(NamedTuple):
    """Some entries that follow each other."""

    listed: bool
    """Whether they are items of a list; else lines."""
    first: int
    end: int
    entries: int


def slices(path: str, most: int) -> Iterator[Slice]:
    """All entries of a file on any fsspec store, `most` in a slice but for the last. Raises `NoJson`."""
    with fsspec.open(path, "rb") as handle:
        head = handle.read(1)
        at = 0
        while head and head.isspace():
            head, at = handle.read(1), at + 1
        listed = head == b"["
        found = _items(handle, at + 1) if listed else _lines(handle, head, at)
        first = end = count = 0
        for begin, end in found:
            first = begin if not count else first
            count += 1
            if count == most:
                yield Slice(listed, first, end, count)
                count = 0
        if count:
            yield Slice(listed, first, end, count)


def read(path: str, one: Slice) -> list[Any]:
    """The entries of a slice; of the file nothing else is read."""
    store, inside = fsspec.core.url_to_fs(path)
    text = store.cat_file(inside, start=one.first, end=one.end).decode()
    if one.listed:
        found: list[Any] = json.loads(f"[{text}]")
        return found
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _lines(handle: IO[bytes], head: bytes, at: int) -> Iterator[tuple[int, int]]:
    """From where to where every entry goes, in bytes; `head` is read, and stands `at` so many."""
    line = head + handle.readline()
    while line:
        if line.strip():
            _checked(line)
            yield at, at + len(line)
        at += len(line)
        line = handle.readline()


def _checked(line: bytes) -> None:
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise NoJson(str(error)) from None


def _items(handle: IO[bytes], at: int) -> Iterator[tuple[int, int]]:
    """The same of a list, of which the bracket is read."""
    text = _Text(handle, at)
    mark = text.mark()
    if mark != "]":
        while True:
            begin = text.at
            text.take(text.item())
            yield begin, text.at
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
    """What was read of a file and not yet taken; `at`: the byte at which that begins."""

    def __init__(self, handle: IO[bytes], at: int) -> None:
        self.at = at
        self._handle, self._decoder = handle, getincrementaldecoder("utf-8")()
        self._text, self._place, self._over = "", 0, False

    def _more(self, size: int = BLOCK) -> None:
        data = self._handle.read(size)
        self._over = not data
        try:
            self._text = self._text[self._place :] + self._decoder.decode(data, final=self._over)
        except UnicodeDecodeError as error:
            raise NoJson(str(error)) from None
        self._place = 0

    def take(self, count: int) -> None:
        end = self._place + count
        self.at += len(self._text[self._place : end].encode())
        self._place = end

    def mark(self) -> str:
        """The next character that is no blank, and is not taken; empty at the end of the file."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in BLANK:
                self.take(1)
            if self._place < len(self._text) or self._over:
                return self._text[self._place : self._place + 1]
            self._more()

    def item(self) -> int:
        """Characters of the item that begins here. Raises `NoJson`."""
        while True:
            try:
                _, end = DECODER.raw_decode(self._text, self._place)
            except RecursionError as error:
                raise NoJson(f"{error} at byte {self.at}") from None
            except ValueError as error:
                if self._over or len(self._text) - self._place > LONGEST:
                    told = str(error).partition(": line")[0]
                    raise NoJson(f"{told} in what begins at byte {self.at}") from None
            else:
                if end < len(self._text) or self._over:  # of `12` there may be more to come
                    return end - self._place
            self._more(max(BLOCK, len(self._text) - self._place))  # twice as much: a long item is not read often
