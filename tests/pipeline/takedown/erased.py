"""What the tests of takedowns ask for, how one is killed, and how they see that nothing is left."""

from __future__ import annotations

import io
import json
import socket
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import Dag, run, upkeep
from pipeline.records import Generation
from pipeline.store import Store
from pipeline.takedown import erasure, tables
from pipeline.takedown.matching import Asked
from pipeline.takedown.tombstones import unfinished
from tests.inline import Inline
from tests.takedowns import TEXT, members, picture, uid_of, vector_of

GONE = (4, 10, 16, 21)
"""4, 16 and 21 are kept; 34 has the bytes of 4, and 10 the host cats.example.org."""
COPIES = (34,)
HOSTS = ("http://art.example.org/", "http://cats.example.org/")
ROT = b"PAR1"
"""What is left of a table that a test damaged; a repair leaves it where an old generation names it."""


def newest(store: Store, node: str) -> Generation:
    found = store.newest(node)
    assert found is not None
    return found


def quiet(phase: str, done: int, total: int) -> None:
    assert 0 <= done <= total, phase


def take_down(root: str | Path, asked: Asked, copies: bool = True) -> erasure.Found:
    store = Store(str(root))
    found = erasure.search(store, asked, copies, quiet)
    erasure.take_down(store, found, "because", quiet)
    return found


def uids(*numbers: int) -> Asked:
    return Asked(uids=tuple(uid_of(number) for number in numbers))


def is_without_bytes(root: str | Path, *numbers: int) -> None:
    """No tar of the root has a byte of these images, whoever names it."""
    sums = {sha256(picture(number)).hexdigest() for number in numbers}
    keys = {uid_of(number) for number in numbers}
    tars = set()
    for tar, name, data in members(root):
        tars.add(tar)
        assert sha256(data).hexdigest() not in sums, f"{tar} has the bytes of {name}"
        assert name.partition(".")[0] not in keys, f"{tar} has {name}"
    assert len(tars) > 2


def is_clean(root: str | Path, *numbers: int) -> None:
    """No byte, no word and no vector of these images is in any file of the root, whoever names it."""
    is_without_bytes(root, *numbers)
    store = Store(str(root))
    keys = {uid_of(number) for number in numbers}
    words = [f'"secret artist {number}"'.encode() for number in numbers]
    for path in store.fs.find(store.path):
        data = store.fs.cat_file(path)
        if str(path).endswith(".parquet") and "/takedowns/" not in str(path) and data != ROT:
            for row in pq.read_table(io.BytesIO(data)).to_pylist():
                if row.get("uid") in keys:
                    left = {name for name, value in row.items() if value is not None} - tables.STAYS
                    assert left <= {"status", "kept", "dropped_by", "captions", "url"}, (path, row)
                    assert row.get("url") in (None, *HOSTS), (path, row)
                assert not any(row.get("caption") == f"secret {n} {k}" for n in numbers for k in range(2)), path
        assert not any(word in data for word in words), path
    assert upkeep.verify(store) == []
    assert not unfinished(store)


INDEXED = TEXT + "  index: {from: scores, steps: [tests.takedowns.Indexed]}\n"


def every_offset_leads_to_its_image(store: Store, pool: Generation) -> None:
    for record in pool.records:
        tar = record.file("tar")
        assert tar is not None
        data = store.get(store.place(record, tar))
        for row in store.read_table(record, "image").to_pylist():
            if row["offset"] is not None:
                assert sha256(data[row["offset"] :][: row["nbytes"]]).hexdigest() == row["stored_sha256"]


def index(root: Path) -> Inline:
    """Run the world with an index; says what was done."""
    executor = Inline(Store(str(root)))
    run(Dag.parse(INDEXED), str(root), executor=executor)
    return executor


def has_no_vector(root: Path, *numbers: int) -> None:
    for path in root.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(vector_of(number) in data for number in numbers), path


DEAD = json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1}).encode()
"""A lease of a process that cannot be: Linux gives no higher number than 2^22."""


class Killed(BaseException):
    """The process ends here."""


WRITING = ("put", "put_if_absent", "put_file", "put_file_if_absent", "copy", "delete")


def dying(monkeypatch: pytest.MonkeyPatch, at: int, after: bool) -> list[str]:
    """Let the store's `at`-th write end the process, before or after it happened; returns what was called."""
    called: list[str] = []

    def patch(name: str) -> None:
        original = getattr(Store, name)

        def write(self: Store, path: str, *arguments: Any) -> Any:
            if len(called) >= at:
                raise Killed  # nothing is written by the dead
            called.append(f"{name} {path}")
            if len(called) == at and not after:
                raise Killed
            result = original(self, path, *arguments)
            if len(called) == at:
                raise Killed
            return result

        monkeypatch.setattr(Store, name, write)

    for name in WRITING:
        patch(name)
    return called


def killed_at(at: int, after: bool, root: Path) -> bool:
    """Whether a takedown got as far as its `at`-th write and was killed there."""
    with pytest.MonkeyPatch.context() as patch:
        called = dying(patch, at, after)
        try:
            take_down(root, uids(*GONE))
        except Killed:
            return True
    assert len(called) < at
    return False
