"""What the nodes of a run did: their identity, how much they made and how fast. All of it from records alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.records import SECONDS, Generation


@dataclass(frozen=True)
class NodeReport:
    """One node of a run."""

    name: str
    inputs: tuple[str, ...]
    generation: int
    hash: str
    """The content hash of the generation."""
    key: str
    steps: tuple[tuple[str, int, Mapping[str, Any]], ...]
    """(import path, revision, parameters) of each."""
    parts: int
    rows: int
    bytes: int
    statuses: tuple[tuple[str, int], ...]
    seconds: float
    """That workers spent on the parts that say so."""
    timed_rows: int
    """Rows of those parts."""
    timed_parts: int
    resources: tuple[tuple[str, str], ...]
    """(path, digest) of the files outside."""

    @property
    def per_second(self) -> float | None:
        """Rows a second and worker; None where no part says how long it took."""
        return self.timed_rows / self.seconds if self.seconds else None


@dataclass(frozen=True)
class ShardsReport:
    """The files of final samples that a node made."""

    node: str
    files: tuple[tuple[str, int | None, int], ...]
    """(path, samples, bytes) of each."""

    @property
    def samples(self) -> int:
        return sum(samples or 0 for _, samples, _ in self.files)

    @property
    def bytes(self) -> int:
        return sum(size for *_, size in self.files)


def node_report(generation: Generation) -> NodeReport:
    timed = [record for record in generation.records if SECONDS in record.notes]
    statuses = Counter(generation.statuses)
    return NodeReport(
        name=generation.node,
        inputs=tuple(generation.inputs),
        generation=generation.number,
        hash=generation.content_hash,
        key=generation.key,
        steps=tuple(
            (str(step["stage"]), int(step.get("revision", 1)), step.get("parameters", {}))
            for step in generation.identity.get("steps", [])
        ),
        parts=len(generation.records),
        rows=sum(statuses.values()),
        bytes=sum(file.bytes for record in generation.records for file in record.files),
        statuses=tuple(statuses.most_common()),
        seconds=sum(float(record.notes[SECONDS]) for record in timed),
        timed_rows=sum(sum(record.statuses.values()) for record in timed),
        timed_parts=len(timed),
        resources=tuple(pair for files in generation.resources.values() for pair in files),
    )
