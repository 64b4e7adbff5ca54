"""Stores that fail on command: fsspec filesystems which count their operations over all processes of a test.

`faulty:///folder` is a local disk, `faultys3:///folder` behaves like an object store (uploads are copies, nothing is
spooled beside its place). The folder that `$SLUICE_FAULTS` names holds the plan; there is no plan in most runs:

    Control(folder).arm(Plan("error", at=17))        # the 17th operation raises a 503, all others work
    Control(folder).arm(Plan("kill", at=2, match="place .*/commits/"))

Every process finds the protocols through an entry point of fsspec, see `Control.environment`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from fsspec import AbstractFileSystem

from pipeline.store import DurableLocal

T = TypeVar("T")

FAULTS = "SLUICE_FAULTS"
WRITES = frozenset({"pipe_file", "put_file", "place"})
FOREVER = 1 << 30
CONNECT = "connect"
"""What a process does before its first operation; counted only by a plan that names it."""

Do = Literal["none", "error", "full", "lost", "stale", "kill", "kill_after", "torn", "kill_driver", "stop", "swap"]


@dataclass(frozen=True)
class Plan:
    """What goes wrong, and when.

    `error`: EIO "503 SlowDown". `full`: ENOSPC, writes only. `lost`: it is done, then fails. `stale`: a listing shows
    nothing. `kill`, `kill_after`: SIGKILL of the process that asks, before or after. `torn`: half the bytes are written
    under a temporary name, then SIGKILL. `kill_driver`: SIGKILL of the process `pid`. `stop`: SIGSTOP of the one that
    asks, or only of `pid`. `swap`: the file `source` takes the place of `target`.
    """

    do: Do
    at: int = 1
    """The first operation concerned, counted from 1 among those that match."""
    times: int = 1
    """How many operations are concerned."""
    match: str = ""
    """A regular expression searched in "<operation> <path>"."""
    who: str = ""
    """A regular expression searched in the command that the process was started with."""
    pid: int = 0
    source: str = ""
    target: str = ""


@dataclass(frozen=True)
class Control:
    """The folder through which a test and the processes that it starts agree on faults."""

    folder: Path

    def arm(self, plan: Plan) -> None:
        """Begin to count anew, with this plan."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("count", "landed", "operations"):
            (self.folder / name).write_text("")
        temporary = self.folder / "plan.new"
        temporary.write_text(json.dumps(asdict(plan)))
        temporary.replace(self.folder / "plan.json")

    def landed(self) -> list[str]:
        """A line "<operation> <path>" for each time that the fault came."""
        return (self.folder / "landed").read_text().splitlines()

    def operations(self) -> list[str]:
        """A line "<operation> <path>" for each operation that matched, all processes together."""
        return (self.folder / "operations").read_text().splitlines()

    def environment(self) -> dict[str, str]:
        """What a subprocess, and the Ray workers below it, need in order to know the protocols."""
        plug = self.folder / "plug" / "faulty-1.dist-info"
        plug.mkdir(parents=True, exist_ok=True)
        (plug / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1\n")
        (plug / "entry_points.txt").write_text(
            "[fsspec.specs]\nfaulty = tests.chaos.faulty:Faulty\nfaultys3 = tests.chaos.faulty:FaultyS3\n"
        )
        checkout = Path(__file__).parents[2]
        return {FAULTS: str(self.folder), "PYTHONPATH": f"{checkout}{os.pathsep}{plug.parent}"}

    def _due(self, operation: str) -> Plan | None:
        """Counts the operation; the plan, where it is concerned."""
        plan = Plan(**json.loads((self.folder / "plan.json").read_text()))
        if operation.startswith(CONNECT) and CONNECT not in plan.match:
            return None
        if not re.search(plan.match, operation) or not re.search(plan.who, " ".join(sys.orig_argv)):
            return None
        if plan.do == "stop" and plan.pid not in (0, os.getpid()):
            return None
        number = _append(self.folder / "count", ".")
        _append(self.folder / "operations", operation + "\n")
        due = plan.at <= number < plan.at + plan.times and plan.do != "none"
        due = due and not (plan.do == "stale" and not operation.startswith("ls "))
        due = due and not (plan.do in ("full", "torn") and operation.split()[0] not in WRITES)
        if due:
            _append(self.folder / "landed", operation + "\n")
        return plan if due else None


def _append(path: Path, text: str) -> int:
    """Where the file ends with it. Atomic without a lock: one who holds a lock may be stopped or killed."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, text.encode())
        return os.lseek(handle, 0, os.SEEK_CUR)
    finally:
        os.close(handle)


_inside = threading.local()


def _depth() -> int:
    return int(getattr(_inside, "depth", 0))


def happen(operation: str, path: str, do: Callable[[], T], data: bytes = b"", nested: bool = False) -> T:
    """Do it, or what the plan says. What an operation calls on its own filesystem is part of it, unless `nested`."""
    folder = os.environ.get(FAULTS)
    if folder is None or (_depth() and not nested):
        return do()
    plan = Control(Path(folder))._due(f"{operation} {path}")
    _inside.depth = _depth() + 1
    try:
        return do() if plan is None else _disturbed(plan, path, do, data)
    finally:
        _inside.depth -= 1


def _disturbed(plan: Plan, path: str, do: Callable[[], Any], data: bytes) -> Any:
    if plan.do == "error":
        raise OSError(errno.EIO, "503 SlowDown", path)
    if plan.do == "full":
        raise OSError(errno.ENOSPC, "No space left on device", path)
    if plan.do == "stale":
        return []
    if plan.do == "torn":
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.with_name(f".{target.name}.torn").write_bytes(data[: len(data) // 2])
    if plan.do in ("kill", "torn"):
        os.kill(os.getpid(), signal.SIGKILL)
    if plan.do == "kill_driver":
        os.kill(plan.pid, signal.SIGKILL)
    if plan.do == "stop":
        # A node works in a thread of its own. Sent to the process, the signal would go to the main thread, and this one
        # might come to its put before it is stopped as well; sent to this thread, it stops before the call returns.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    if plan.do == "swap":
        shutil.copyfile(plan.source, plan.target)
    try:
        return do()
    finally:
        if plan.do == "kill_after":
            os.kill(os.getpid(), signal.SIGKILL)
        if plan.do == "lost":
            raise OSError(errno.EIO, "the connection was reset before the reply came", path)


class Faulty(DurableLocal):
    """A local disk: files are spooled beside their place, and the steps of a write are operations of their own."""

    protocol = "faulty"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        happen(CONNECT, self.protocol, lambda: None)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        place = str(self._strip_protocol(path))
        happen("pipe_file", place, partial(super().pipe_file, place, value, mode, **kwargs), value)

    def put_file(self, lpath: str, rpath: str, callback: Any = None, mode: str = "overwrite", **kwargs: Any) -> None:
        place = str(self._strip_protocol(rpath))
        happen("put_file", place, partial(super().put_file, lpath, place, callback, mode, **kwargs))

    @staticmethod
    def _place(source: Path, target: Path, mode: str) -> None:
        happen("place", str(target), partial(DurableLocal._place, source, target, mode), nested=True)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        place = str(self._strip_protocol(path))
        return bytes(happen("cat_file", place, partial(super().cat_file, place, start, end, **kwargs)))

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> list[Any]:
        place = str(self._strip_protocol(path))
        return happen("ls", place, partial(super().ls, place, detail, **kwargs))

    def info(self, path: Any, **kwargs: Any) -> dict[str, Any]:
        if isinstance(path, os.DirEntry):
            return dict(super().info(path, **kwargs))
        place = str(self._strip_protocol(path))
        return happen("info", place, partial(super().info, place, **kwargs))

    def exists(self, path: str, **kwargs: Any) -> bool:
        place = str(self._strip_protocol(path))
        return bool(happen("exists", place, partial(super().exists, place, **kwargs)))

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        place = str(self._strip_protocol(path))
        return happen("open", place, partial(super().open, place, mode, **kwargs))

    def rm_file(self, path: str) -> None:
        place = str(self._strip_protocol(path))
        happen("rm_file", place, partial(super().rm_file, place))


class FaultyS3(AbstractFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """An object store: whole objects appear at once, an upload leaves its source alone, nothing is spooled there."""

    protocol = "faultys3"
    cachable = False
    root_marker = "/"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.disk = DurableLocal()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("faultys3://").strip("/")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        place = self._strip_protocol(path)
        happen("pipe_file", place, partial(self.disk.pipe_file, place, value, mode), value)

    def put_file(self, lpath: str, rpath: str, callback: Any = None, mode: str = "overwrite", **kwargs: Any) -> None:
        place = self._strip_protocol(rpath)
        data = Path(lpath).read_bytes()
        happen("put_file", place, partial(self.disk.pipe_file, place, data, mode), data)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        place = self._strip_protocol(path)
        return bytes(happen("cat_file", place, partial(self.disk.cat_file, place, start, end)))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        place = self._strip_protocol(path)
        return happen("ls", place, partial(self.disk.ls, place, detail))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        place = self._strip_protocol(path)
        return happen("info", place, partial(self.disk.info, place))

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Like s3fs: only a missing key is False; what else fails is raised."""
        place = self._strip_protocol(path)
        return bool(happen("exists", place, partial(self.disk.exists, place)))

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        place = self._strip_protocol(path)
        return happen("open", place, partial(self.disk.open, place, mode))

    def rm_file(self, path: str) -> None:
        place = self._strip_protocol(path)
        happen("rm_file", place, partial(self.disk.rm_file, place))
