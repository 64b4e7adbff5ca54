"""What is done, apart from where: the identity of a node, the digests of its resources, and work keys.

Hardware, host names and paths never enter. Two machines that do the same work on the same content get the same keys.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import SluiceError, did_you_mean
from pipeline.records import Record, digest
from pipeline.sets import read_set, set_digest
from pipeline.stage import EffortMark, NodeRef, ResourceMark, Stage, Task
from pipeline.weights import pinned, weight_files

Resources = dict[str, list[tuple[str, str]]]
"""(path, digest) of the files behind every resource parameter."""

CACHED_ABOVE = 64 << 20
"""Bytes from which a local file's digest is worth remembering between commands."""


def expand(files: str | Sequence[str], parameter: str = "") -> list[str]:
    """The files that paths and globs on any fsspec store name, globs sorted; `parameter` is named in the error.

    Raises `SluiceError` for one that names nothing.
    """
    found: list[str] = []
    for pattern in [files] if isinstance(files, str) else files:
        try:
            fs, path = fsspec.core.url_to_fs(pattern)
        except (ValueError, ImportError) as error:
            raise SluiceError(
                f"{parameter or 'file'}: {pattern!r}: {error}; name a path, or a URL such as s3://…"
            ) from None
        is_glob = any(mark in path for mark in "*?[")
        paths = sorted(str(match) for match in fs.glob(path)) if is_glob else [path]
        if not paths or not (is_glob or fs.isfile(path)):
            what = "file matches" if is_glob else "such file:"
            where = f"{parameter}: " if parameter else ""
            raise SluiceError(f"{where}no {what} {pattern!r}; check the path (it is relative to {os.getcwd()})")
        found += [match if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(match) for match in paths]
    return list(dict.fromkeys(found))


def fingerprint(path: str) -> str:
    """What a file says now: sha256 of a local file, the store's own content tag of a remote one."""
    fs, inner = fsspec.core.url_to_fs(path)
    if isinstance(fs, LocalFileSystem):
        return _local_digest(Path(inner))
    fs.invalidate_cache()
    info = fs.info(inner)
    tag = info.get("ETag") or info.get("md5Hash") or info.get("etag")
    if tag:
        return "tag:" + str(tag).strip('"')
    hasher = sha256()
    with fs.open(inner, "rb") as handle:
        while block := handle.read(1 << 22):
            hasher.update(block)
    return hasher.hexdigest()


def _local_digest(path: Path) -> str:
    status = path.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sluice" / "digests"
    entry = cache / digest(str(path.resolve()))
    if status.st_size >= CACHED_ABOVE and entry.exists():
        remembered = json.loads(entry.read_text())
        if remembered["state"] == state:
            return str(remembered["sha256"])
    hasher = sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 22):
            hasher.update(block)
    # A file that changed a moment ago may change again within one tick of its time stamps.
    if status.st_size >= CACHED_ABOVE and abs(time.time_ns() - status.st_ctime_ns) > 2_000_000_000:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_name(f"{entry.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"state": state, "sha256": hasher.hexdigest()}))
        temporary.replace(entry)
    return hasher.hexdigest()


def resource_fields(stage: Stage) -> Iterator[tuple[str, ResourceMark]]:
    """The parameters of a stage that name files outside, where they are set."""
    for name, field in type(stage).model_fields.items():
        mark = next((item for item in _metadata(field) if isinstance(item, ResourceMark)), None)
        if mark is not None and not isinstance(getattr(stage, name), NodeRef | None):
            yield name, mark


def _metadata(field: Any) -> list[Any]:
    """The marks on a field, also where the annotation is `File | None`."""
    marks = list(field.metadata)
    for inner in getattr(field.annotation, "__args__", ()):
        marks += getattr(inner, "__metadata__", ())
    return marks


def find_resources(stages: Sequence[Stage]) -> Resources:
    """Every resource of a node's stages with its digest; `Stage.parameter` where a node has several steps.

    Raises `SluiceError` for a missing file.
    """
    found: Resources = {}
    with ThreadPoolExecutor(max_workers=8) as pool:
        for stage in stages:
            for name, mark in resource_fields(stage):
                value, key = getattr(stage, name), resource_key(stages, stage, name)
                if mark.kind == "sets":
                    found[key] = [(where, set_digest(of, read_set(where, name))) for of, where in value.items()]
                    continue
                paths = resource_files(mark, value, name)
                if paths is None:
                    address = pinned(value, name)
                    found[key] = [(address, address)]
                else:
                    found[key] = list(zip(paths, pool.map(fingerprint, paths), strict=True))
    return found


def resource_files(mark: ResourceMark, value: Any, parameter: str) -> list[str] | None:
    """The files that a parameter names, all but sets; None for weights that the hub has.

    Raises `SluiceError` where there are none.
    """
    if mark.kind == "weights":
        return weight_files(value, parameter)
    return expand(_shipped(value, mark.shipped, parameter) if mark.shipped else value, parameter)


def _shipped(value: str, package: str, parameter: str) -> str:
    """The path of a file, or of the one that a package has under that name. Raises `SluiceError` for neither."""
    if "://" in value or Path(value).is_file():
        return value
    there = {item.name.removesuffix(".yaml"): str(item) for item in package_files(package).iterdir()}
    if value not in there:
        names = [name for name in there if not name.startswith("_")]
        raise SluiceError(
            f"{parameter}: no file {value!r}, and sluice ships none of that name{did_you_mean(value, names)}"
        )
    return there[value]


def resource_key(stages: Sequence[Stage], stage: Stage, name: str) -> str:
    return name if len(stages) == 1 else f"{type(stage).__name__}.{name}"


def node_identity(stages: Sequence[Stage], seed: int) -> dict[str, Any]:
    """The steps with their revisions and parameters, resources and efforts left out; the seed where it counts."""
    steps = []
    for stage in stages:
        outside = {name for name, _ in resource_fields(stage)} | _efforts(stage)
        parameters = {
            name: value.model_dump(exclude={"files"}, exclude_none=True)
            if isinstance(value := getattr(stage, name), NodeRef)
            else dumped
            for name, dumped in stage.model_dump(mode="json").items()
            if name not in outside
        }
        steps.append({"stage": type(stage).path(), "revision": type(stage).revision, "parameters": parameters})
    identity: dict[str, Any] = {"steps": steps}
    if any(type(stage).seeded for stage in stages):
        identity["seed"] = seed
    return identity


def _efforts(stage: Stage) -> set[str]:
    """The parameters that say how hard it is tried, not what is done."""
    fields = type(stage).model_fields.items()
    return {name for name, field in fields if any(isinstance(mark, EffortMark) for mark in _metadata(field))}


def generation_key(
    identity: Mapping[str, Any], resources: Resources, inputs: Mapping[str, str], references: Mapping[str, str]
) -> str:
    """Same key, same work: identity, digests of resources, content hashes of inputs and of what is referred to."""
    digests = {name: [found for _, found in files] for name, files in resources.items()}
    return digest([identity, digests, list(inputs.values()), sorted(references.values())])


def work_key(identity: Mapping[str, Any], phase: str, task: Task, exact: bool) -> str:
    """The name of a task's commit. `exact`: uncovered columns of the inputs matter too."""
    inputs = [[_input_hash(record, exact) for record in records] for records in task.inputs.values()]
    return digest([identity, phase, task.part, dict(task.payload), inputs, list(task.supersedes)])


def _input_hash(record: Record, exact: bool) -> str:
    return record.bytes_hash() if exact else record.content_hash
