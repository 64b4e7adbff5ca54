"""Resources that only the driver has, put into the root under their digests, where every worker finds them unchanged.

Single files (a blocklist, a list of phrases) and weights always go there; input tables of a local root are read in
place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from pipeline.errors import SluiceError
from pipeline.identity import Resources, fingerprint, resource_fields, resource_key
from pipeline.node import Prepared
from pipeline.records import digest
from pipeline.stage import Stage
from pipeline.store import Store
from pipeline.weights import weight_files


def ship(prepared: Prepared, store: Store) -> Prepared:
    """The same node with local resource paths replaced by their copies in the root. Digests stay what they were.

    Raises `SluiceError` for a file that changed since it was fingerprinted.
    """
    resources: Resources = {}
    stages = []
    for stage in prepared.stages:
        changed: dict[str, object] = {}
        for name, mark in resource_fields(stage):
            key = resource_key(prepared.stages, stage, name)
            files = prepared.resources[key]
            if mark.kind == "weights":
                resources[key] = files
                changed[name] = _weights(getattr(stage, name), files, store)
                continue
            if mark.kind == "sets":
                resources[key] = files
                _check_reach(name, files, store)
                continue
            if mark.kind == "file" or not store.local:
                files = [(path if "://" in path else _put(path, found, store), found) for path, found in files]
            resources[key] = files
            paths = tuple(path for path, _ in files)
            changed[name] = paths[0] if mark.kind == "file" else paths
        stages.append(_moved(stage, changed))
    return replace(prepared, stages=tuple(stages), resources=resources)


def _check_reach(name: str, files: Sequence[tuple[str, str]], store: Store) -> None:
    """Sets may be large, so they are read where they are: raise `SluiceError` where workers may not be."""
    for path, _ in files:
        if not store.local and "://" not in path:
            raise SluiceError(f"{name}: {path!r} is on this machine and the root is not; put it on a store, too")


def _moved(stage: Stage, changed: Mapping[str, object]) -> Stage:
    return stage.model_copy(update=changed) if changed else stage


def _weights(named: str, files: Sequence[tuple[str, str]], store: Store) -> str:
    """Where every worker finds the weights: the hub's at their commit, a remote folder in place, a local one's copy.

    A copy, so that what a worker has loaded under a name never differs from what lies there.
    """
    if weight_files(named, "weights") is None:
        return files[0][0]
    if "://" in named:
        return os.path.dirname(files[0][0])
    folder = f"resources/{digest([[Path(path).name, found] for path, found in files])[:32]}"
    for path, found in files:
        if not store.exists(f"{folder}/{Path(path).name}"):
            _copy(Path(path), found, f"{folder}/{Path(path).name}", store)
    return store.url(folder)


def _copy(path: Path, found: str, target: str, store: Store) -> None:
    """A file that may be too large for memory."""
    beside = f"{store.path}/resources" if store.local else None  # from there it is moved to its name
    if beside is not None:
        os.makedirs(beside, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".spool-", dir=beside) as folder:
        spool = Path(folder) / path.name
        shutil.copyfile(path, spool)
        if fingerprint(str(spool)) != found:
            raise SluiceError(f"{path} changed while the run began; run again")
        store.put_file(target, spool, spool.stat().st_size)


def _put(path: str, found: str, store: Store) -> str:
    target = f"resources/{found[:32]}/{Path(path).name}"
    if not store.exists(target):
        data = Path(path).read_bytes()
        if sha256(data).hexdigest() != found:
            raise SluiceError(f"{path} changed while the run began; run again")
        store.put_if_absent(target, data)
    return store.url(target)
