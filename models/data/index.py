"""Where every sample of some tars is, without reading them twice.

The shards that sluice writes have an index already: Parquet, which a node's generation names together with the tars.
Other tools' tars are scanned, header by header, and remote ones are read through once for that. What took long to make
is kept in `~/.cache/sluice/indexes` (`XDG_CACHE_HOME`) as long as no tar changes, and is mapped into memory from there
by all processes that train on a machine, and by those that decode for them: 16 bytes a sample, once.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from models.data.tars import BLOCK, Scanned, Spans, scan

VERSION = 2
"""Of what an index on local disks says of a tar."""
CACHED = 50_000
"""Samples from which an index on local disks is kept; remote ones always are."""
READERS = 16
"""Tars that are looked at at once."""
STREAM = 4 << 20
"""Bytes that are asked for at once where a remote tar is scanned."""
log = logging.getLogger(__name__)


class DataError(ValueError):
    """Shards that cannot be used: one line that names them, what was expected and the remedy."""


class Tar(NamedTuple):
    path: str
    """As its file system names it."""
    nbytes: int
    stamp: str
    """Changes when its bytes do."""


@dataclass(frozen=True)
class Index:
    """The spans of all samples of some tars, tar by tar."""

    tars: tuple[Tar, ...]
    ends: npt.NDArray[np.int64]
    """(tars,): how many samples lie in the tars up to this one, itself included."""
    spans_n2: Spans
    faults: dict[str, str]
    """What is wrong, by tar."""
    kept: Path | None = None
    """The file that the spans are mapped from. Another process is told of it, and gets no copy of them."""

    def __reduce__(self) -> tuple[Callable[..., Index], tuple[object, ...]]:
        if self.kept is None or not self.kept.exists():
            return Index, (self.tars, self.ends, self.spans_n2, self.faults)
        return _mapped, (self.tars, self.ends, self.faults, self.kept)


def _mapped(tars: tuple[Tar, ...], ends: npt.NDArray[np.int64], faults: dict[str, str], kept: Path) -> Index:
    return Index(tars, ends, np.asarray(np.load(kept, mmap_mode="r")), faults, kept)


# -- which tars --------------------------------------------------------------------------------------------------------


def listed(fs: Any, patterns: Sequence[str]) -> list[Tar]:
    """The tars of every folder in the order of their names, of a node of sluice (its newest shards), or of a pattern
    with braces, in its order. Each folder is listed once. Raises `DataError` where there are none."""
    fs.invalidate_cache()
    folders: dict[str, dict[str, Tar]] = {}
    return [tar for pattern in patterns for tar in _listed(fs, pattern, folders)]


def _listed(fs: Any, pattern: str, folders: dict[str, dict[str, Tar]]) -> list[Tar]:
    """`folders`: what was listed already."""
    path = pattern.rstrip("/")
    if path in folders.get(posixpath.dirname(path), {}):
        return [folders[posixpath.dirname(path)][path]]
    if "{" not in path and fs.isdir(path):
        tars = _in_folder(fs, path)
        if not tars:
            newest = next((_shards_of(records) for records in _generations(fs, path)), None)
            tars = _in_folder(fs, posixpath.join(path, newest)) if newest else []
        if not tars:
            raise DataError(
                f"{pattern!r} holds no tars; expected a folder of WebDataset shards, or a node: root/shards"
            )
        return tars
    tars = []
    for name in expanded(path):
        folder = posixpath.dirname(name)
        if folder not in folders:
            folders[folder] = {tar.path: tar for tar in (_in_folder(fs, folder) if fs.isdir(folder) else ())}
        tars.append(folders[folder].get(name) or _single(fs, name))
    return tars


def _single(fs: Any, path: str) -> Tar:
    try:
        entry = fs.info(path)
    except FileNotFoundError:
        raise DataError(f"there is no tar {path!r}; expected every tar that is named, or a folder of them") from None
    return Tar(path, int(entry["size"]), _stamp(entry))


def expanded(pattern: str) -> list[str]:
    """`{000..012}` counted up, `{a,b}` one after the other, as shells do."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if numbers:
        low, high = numbers.groups()
        width = len(low) if low.startswith("0") or len(low) == len(high) else 0
        choices = [f"{number:0{width}d}" for number in range(int(low), int(high) + 1)]
    else:
        choices = found[1].split(",")
    return [pattern[: found.start()] + choice + rest for choice in choices for rest in expanded(pattern[found.end() :])]


def _in_folder(fs: Any, folder: str) -> list[Tar]:
    found = (entry for entry in fs.ls(folder, detail=True) if entry["name"].endswith(".tar"))
    tars = (Tar(fs._strip_protocol(entry["name"]), int(entry["size"] or 0), _stamp(entry)) for entry in found)
    return sorted(tars, key=lambda tar: tar.path)


def _stamp(entry: Mapping[str, Any]) -> str:
    for name in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created"):
        if entry.get(name):
            return str(entry[name])
    return ""


# -- what is in them ---------------------------------------------------------------------------------------------------


def index(fs: Any, tars: Sequence[Tar]) -> Index:
    """The index of these tars: remembered, else sluice's own, else scanned."""
    local = is_local(fs)
    entry = _cache() / blake2b(json.dumps([VERSION, str(fs.protocol), tars]).encode(), digest_size=16).hexdigest()
    if all(entry.with_suffix(ending).exists() for ending in (".json", ".npy")):
        said = json.loads(entry.with_suffix(".json").read_text())
        return _mapped(tuple(tars), np.array(said["ends"], np.int64), said["faults"], entry.with_suffix(".npy"))
    known = _recorded(fs, tars)

    def look(tar: Tar) -> Scanned:
        place = known.get(tar.path)
        if place is not None:
            try:
                return _read(fs, tar, place)
            except (OSError, pa.ArrowException) as error:
                log.warning("%s is scanned, for its index %s cannot be read: %s", tar.path, place.path, error)
        return _scanned(fs, tar, local)

    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(look, tars))
    faults = {tar.path: one.fault for tar, one in zip(tars, found, strict=True) if one.fault}
    ends = np.cumsum([len(one.spans_n2) for one in found], dtype=np.int64)
    made = Index(tuple(tars), ends, np.concatenate([one.spans_n2 for one in found]), faults)
    return made if local and len(made.spans_n2) < CACHED else _remembered(entry, made)


def is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _scanned(fs: Any, tar: Tar, local: bool) -> Scanned:
    if local:
        descriptor = os.open(tar.path, os.O_RDONLY)
        try:
            return scan(lambda place, nbytes: os.pread(descriptor, nbytes, place), tar.nbytes)
        finally:
            os.close(descriptor)
    with fs.open(tar.path, "rb", block_size=STREAM, cache_type="readahead") as stream:

        def read_at(place: int, nbytes: int) -> bytes:
            stream.seek(min(place, tar.nbytes))
            return bytes(stream.read(nbytes))

        return scan(read_at, tar.nbytes)


class _Place(NamedTuple):
    """Where sluice wrote down what is in a tar."""

    path: str
    nbytes: int
    """Of the tar."""


def _read(fs: Any, tar: Tar, place: _Place) -> Scanned:
    """From the index that sluice wrote: the image comes first in a sample, and its JSON last."""
    with fs.open(place.path, "rb") as stream:
        table = pq.read_table(stream, columns=["image_offset", "json_offset", "json_nbytes"])
    start, json_offset, json_nbytes = (column.to_numpy() for column in table.columns)
    start = start - BLOCK
    spans_n2 = np.stack([start, json_offset + json_nbytes - start], axis=1).astype(np.int64)
    fault = f"has {tar.nbytes} bytes, and was written with {place.nbytes}" if tar.nbytes != place.nbytes else None
    return Scanned(spans_n2, fault)


def _recorded(fs: Any, tars: Sequence[Tar]) -> dict[str, _Place]:
    """By tar, where a generation of the node that wrote it says what is in it: `<node>/data/<key>/<shard>.tar`."""
    found: dict[str, _Place] = {}
    for data in {posixpath.dirname(posixpath.dirname(tar.path)) for tar in tars}:
        node = posixpath.dirname(data)
        for records in _generations(fs, node) if posixpath.basename(data) == "data" else ():
            for record in records:
                files = {file["kind"]: file for file in record["files"]}
                if {"shard", "samples"} <= files.keys():
                    shard, samples = files["shard"], files["samples"]
                    place = _Place(posixpath.join(node, samples["path"]), int(shard["bytes"]))
                    found.setdefault(posixpath.join(node, shard["path"]), place)
            if all(tar.path in found for tar in tars):
                break
    return found


def _generations(fs: Any, node: str) -> Iterator[list[dict[str, Any]]]:
    """The records of every generation of a node of sluice, the newest first."""
    folder = posixpath.join(node, "generations")
    if fs.isdir(folder):
        for path in sorted((path for path in fs.ls(folder, detail=False) if path.endswith(".json")), reverse=True):
            try:
                yield json.loads(fs.cat_file(path))["records"]
            except (ValueError, KeyError, TypeError) as error:
                log.warning("%s is none of sluice's, and is passed over: %r", path, error)


def _shards_of(records: Sequence[Mapping[str, Any]]) -> str | None:
    paths = (file["path"] for record in records for file in record["files"] if file["kind"] == "shard")
    return next((posixpath.dirname(path) for path in paths), None)


# -- what is remembered ------------------------------------------------------------------------------------------------


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sluice" / "indexes"


def _remembered(entry: Path, made: Index) -> Index:
    """The same, mapped from where it is kept. The spans first: the JSON says that they are there."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_name(f"{entry.name}.{uuid4().hex[:8]}")
        with temporary.open("wb") as stream:
            np.save(stream, made.spans_n2)
        temporary.replace(entry.with_suffix(".npy"))
        temporary.write_text(json.dumps({"ends": made.ends.tolist(), "faults": made.faults}))
        temporary.replace(entry.with_suffix(".json"))
    except OSError as error:
        log.warning("the index of %d samples could not be kept, and will be made again: %s", made.ends[-1], error)
        return made
    return _mapped(made.tars, made.ends, made.faults, entry.with_suffix(".npy"))


def file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address and its path there. Raises `DataError` for one that runs commands."""
    if address.startswith("pipe:"):
        raise DataError(f"{address!r} would run a command; expected a folder, tars or an fsspec address of them")
    try:
        fs, path = fsspec.url_to_fs(address)
    except (ValueError, ImportError) as error:
        raise DataError(f"{address!r}: {error}") from None
    return fs, path
