"""Sets of files that a parameter names, such as evaluation sets: each a folder, a file or a glob under its own name.

The digest of a set covers its name and, of every file in it, the path within and the content. What a local file said is
remembered with its size and times, so that a folder of 50,000 images is read once and not at every command.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import SluiceError
from pipeline.records import digest

READERS = 8
SETTLED_NS = 2_000_000_000
"""A file that changed a moment ago may change again within one tick of its time stamps."""


@dataclass(frozen=True)
class SetFile:
    """A file of a set."""

    name: str
    """Its path within the set."""
    path: str
    """Where it is, for any worker."""
    digest: str = ""
    """The sha256 of a local one; the store's own tag, as `tag:…`, of a remote one; empty where nobody asked."""


def list_set(where: str, parameter: str) -> list[SetFile]:
    """The files of a folder (those below it, too), of a glob, or the file itself, by name; hidden ones are left out.

    Raises `SluiceError` where there is none.
    """
    return [file for file, _ in _listed(where, parameter)]


def read_set(where: str, parameter: str) -> list[SetFile]:
    """The same with their digests."""
    listed = _listed(where, parameter)
    remembered = _remembered(where)
    with ThreadPoolExecutor(READERS) as readers:
        digests = list(readers.map(lambda one: _digest(one[0], one[1], remembered), listed))
    if "://" not in listed[0][0].path:
        states = {file.name: [state, found] for (file, state), found in zip(listed, digests, strict=True)}
        if states != remembered:
            _remember(where, {name: entry for name, entry in states.items() if _settled(entry[0])})
    return [SetFile(file.name, file.path, found) for (file, _), found in zip(listed, digests, strict=True)]


def set_digest(name: str, files: list[SetFile]) -> str:
    """What stands for a whole set in the identity of whatever reads it."""
    return digest([name, [[file.name, file.digest] for file in files]])


def check_sets(sets: Mapping[str, str], parameter: str) -> None:
    """Raise `SluiceError` for a set that has no file."""
    for where in sets.values():
        list_set(where, parameter)


def _listed(where: str, parameter: str) -> list[tuple[SetFile, Any]]:
    """Files, each with what tells that it has changed."""
    try:
        fs, path = fsspec.core.url_to_fs(where)
    except (ValueError, ImportError) as error:
        raise SluiceError(f"{parameter}: {where!r}: {error}; name a folder, or a URL such as s3://…") from None
    local = isinstance(fs, LocalFileSystem)
    if not local:
        fs.invalidate_cache()
    path = path.rstrip("/")
    if any(mark in path for mark in "*?["):
        base = path[: min(path.index(mark) for mark in "*?[" if mark in path)].rpartition("/")[0]
        found = fs.glob(path, detail=True)
    elif fs.isfile(path):
        base, found = path.rpartition("/")[0], {path: fs.info(path)}
    else:
        base, found = path, fs.find(path, detail=True)
    files = []
    for each, info in found.items():
        name = str(each)[len(base) :].lstrip("/")
        if info["type"] == "file" and not any(step.startswith(".") for step in name.split("/")):
            address = str(each) if local else fs.unstrip_protocol(each)
            files.append((SetFile(name, address), _state(str(each)) if local else info))
    if not files:
        raise SluiceError(f"{parameter}: no file at {where!r}; check the path (it is relative to {os.getcwd()})")
    return sorted(files, key=lambda one: one[0].name)


def _digest(file: SetFile, state: Any, remembered: Mapping[str, Any]) -> str:
    if "://" in file.path:
        tag = state.get("ETag") or state.get("md5Hash") or state.get("etag")
        if tag:
            return "tag:" + str(tag).strip('"')
    else:
        before, found = remembered.get(file.name, (None, ""))
        if before == state:
            return str(found)
    hasher = sha256()
    with fsspec.open(file.path, "rb") as handle:
        while block := handle.read(1 << 22):
            hasher.update(block)
    return hasher.hexdigest()


def _state(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _settled(state: list[int]) -> bool:
    return abs(time.time_ns() - max(state[1:3])) > SETTLED_NS


def _entry(where: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sluice" / "digests"
    return cache / f"{digest(['set', os.path.abspath(where)])}.json"


def _remembered(where: str) -> dict[str, Any]:
    entry = _entry(where)
    try:
        found: dict[str, Any] = json.loads(entry.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _remember(where: str, states: Mapping[str, Any]) -> None:
    entry = _entry(where)
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = entry.with_name(f"{entry.name}.{os.getpid()}")
    temporary.write_text(json.dumps(states))
    temporary.replace(entry)
