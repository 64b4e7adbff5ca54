"""Resources that only the driver has, put into the root under their digests, where every worker finds them unchanged.

Single files (a blocklist, a list of phrases) always go there; the input tables of a local root are read in place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from pipeline.errors import SluiceError
from pipeline.identity import Resources, resource_fields, resource_key
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
            if mark.kind == "file" or not store.local:
                files = [(path if "://" in path else _put(path, found, store), found) for path, found in files]
            resources[key] = files
            paths = tuple(path for path, _ in files)
            changed[name] = paths[0] if mark.kind == "file" else paths
        stages.append(_moved(stage, changed))
    return replace(prepared, stages=tuple(stages), resources=resources)


def _moved(stage: Stage, changed: Mapping[str, object]) -> Stage:
    return stage.model_copy(update=changed) if changed else stage


def _weights(named: str, files: Sequence[tuple[str, str]], store: Store) -> str:
    """Where every worker finds the weights: the hub's at their commit; a folder in place, or its copy in the root."""
    if weight_files(named, "weights") is None:
        return files[0][0]
    if store.local or "://" in named:
        return os.path.dirname(files[0][0])
    folder = f"resources/{digest([[Path(path).name, found] for path, found in files])}"
    for path, _ in files:
        target = f"{folder}/{Path(path).name}"
        if not store.exists(target):
            store.put_file(target, Path(path), Path(path).stat().st_size)
    return store.url(folder)


def _put(path: str, found: str, store: Store) -> str:
    target = f"resources/{found[:32]}/{Path(path).name}"
    if not store.exists(target):
        data = Path(path).read_bytes()
        if sha256(data).hexdigest() != found:
            raise SluiceError(f"{path} changed while the run began; run again")
        store.put_if_absent(target, data)
    return store.url(target)
