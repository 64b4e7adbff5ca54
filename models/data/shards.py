"""Samples by number, out of WebDataset tars: local ones, or in any store that fsspec knows.

samples = Samples.open("root/shards/data/3d2c0b8e1d97")
samples[4].key, samples[4].members["jpg"]

A sample is one read: of a local file, or one ranged request. Whole remote tars are never copied here: an order that
shuffles all samples wants every tar among its first thousands, so all would have to be copied before the first step.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from models.data.index import DataError, Index, Tar, file_system, index, is_local, listed
from models.data.tars import Members, NotATar, members_of

LARGEST = 128 << 20
"""Bytes of a sample, at most; all threads may hold one at once, and what waits to be decoded."""
OPEN = 256
"""Local tars that are kept open, at most."""
TRIES = 5
"""Of a remote read, a second after the first, and twice as long after each."""


class Damaged(ValueError):
    """A sample that cannot be used. The reason is one of few, to be counted; the detail is to be read."""

    def __init__(self, reason: str, key: str, detail: str = "") -> None:
        super().__init__(f"{key}: {reason}" + (f": {detail}" if detail else ""))
        self.reason = reason
        self.key = key
        self.detail = detail

    def __reduce__(self) -> tuple[type[Damaged], tuple[str, str, str]]:
        return Damaged, (self.reason, self.key, self.detail)


class Unreachable(OSError):
    """A store that does not answer; later, it may."""


class Sample(NamedTuple):
    key: str
    members: Members
    """Bytes by lower-case ending: `jpg`, `txt`, `json`, …"""


class Samples(Sequence[Sample]):
    """All samples of some tars, in the order of the tars. Threads may share one; another process gets the index,
    and opens the tars itself."""

    def __init__(self, fs: Any, index: Index) -> None:
        self._fs = fs
        self._index = index
        self._ends = index.ends.tolist()
        self._files = _Files()
        self.remote = not is_local(fs)

    @classmethod
    def open(cls, where: str | Path | Sequence[str | Path]) -> Samples:
        """A folder of tars, a pattern with braces or several with `::` between, a list of either; local paths or
        addresses such as `s3://bucket/shards`. Raises `DataError`."""
        given = [where] if isinstance(where, str | Path) else list(where)
        addresses = [address for one in given for address in str(one).split("::") if address]
        if not addresses:
            raise DataError(f"{where!r} names no shards; expected a folder or tars")
        systems = [file_system(address) for address in addresses]
        if len({fs for fs, _ in systems}) > 1:
            raise DataError(f"{where!r} lies in several stores; give each a name of its own in the mixture")
        fs = systems[0][0]
        made = index(fs, listed(fs, [path for _, path in systems]))
        if not len(made.spans_n2):
            told = "; ".join(f"{tar}: {fault}" for tar, fault in list(made.faults.items())[:1])
            raise DataError(f"{where!r} holds no sample; expected WebDataset shards" + (f" ({told})" if told else ""))
        return cls(fs, made)

    def __reduce__(self) -> tuple[type[Samples], tuple[Any, Index]]:
        return Samples, (self._fs, self._index)

    @property
    def faults(self) -> dict[str, str]:
        """What is wrong with tars as a whole, by tar; the samples behind the damage are not counted in `len`."""
        return self._index.faults

    def content(self) -> str:
        """How many samples there are in how many tars, and a digest of these: their names without folders, and sizes.
        The same wherever the tars lie."""
        digest = sha256(json.dumps([[PurePosixPath(tar.path).name, tar.nbytes] for tar in self._index.tars]).encode())
        return f"{len(self)} samples in {len(self._index.tars)} tars, {digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._index.spans_n2)

    def __getitem__(self, number: Any) -> Any:
        """Raises `Damaged` for a sample that is not what the index says, `DataError` where its tar cannot be read, and
        `Unreachable` where the store does not answer."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        return self.read(number % len(self))

    def read(self, number: int) -> Sample:
        """The same for one number, which is in range."""
        tar = self._index.tars[bisect_right(self._ends, number)]
        start, nbytes = self._index.spans_n2[number].tolist()
        if nbytes > LARGEST:
            raise Damaged("too large a sample", _place(tar, start), f"{nbytes} bytes; at most {LARGEST} are read")
        if start + nbytes > tar.nbytes:
            raise Damaged("truncated tar", _place(tar, start), f"it ends at byte {tar.nbytes}")
        span = self._ranged(tar.path, start, nbytes) if self.remote else self._files.read(tar.path, start, nbytes)
        if len(span) < nbytes:
            raise Damaged("truncated tar", _place(tar, start), f"it ends {nbytes - len(span)} bytes too early")
        try:
            key, members = members_of(span)
        except NotATar as error:
            raise Damaged("damaged tar", _place(tar, start), str(error)) from None
        return Sample(key, members)

    def _ranged(self, path: str, start: int, nbytes: int) -> bytes:
        for attempt in range(TRIES):
            try:
                return bytes(self._fs.cat_file(path, start=start, end=start + nbytes))
            except (FileNotFoundError, PermissionError) as error:
                raise DataError(f"{path} can no longer be read: {error}") from error
            except Exception as error:  # whatever the client of a store raises
                if attempt == TRIES - 1:
                    told = " ".join(str(error).split()) or type(error).__name__
                    raise Unreachable(f"{path} cannot be read, tried {TRIES} times: {told}") from error
                time.sleep(2**attempt)
        raise AssertionError("a try returns or raises")


def _place(tar: Tar, start: int) -> str:
    return f"{tar.path} at byte {start}"


class _Files:
    """Local files that stay open, so that a sample costs one system call. A file is closed when nobody reads it."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, start: int, nbytes: int) -> bytes:
        """Fewer bytes at the end of the file. Raises `DataError`, and `Damaged` where the disk cannot read them."""
        try:
            with self._lock:
                file = self._open.get(path)
                if file is None:
                    file = self._open[path] = _Descriptor(path)
                    if len(self._open) > OPEN:
                        self._open.popitem(last=False)
                else:
                    self._open.move_to_end(path)
            return os.pread(file.number, nbytes, start)
        except OSError as error:
            if error.errno == errno.EIO:
                raise Damaged("unreadable disk", f"{path} at byte {start}", str(error)) from None
            raise DataError(f"{path} can no longer be read: {error.strerror}") from error


class _Descriptor:
    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


__all__ = ["Damaged", "DataError", "Sample", "Samples", "Unreachable"]
