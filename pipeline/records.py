"""What lies in the store beside the data: commit records, generations and runs, as small JSON.

<root>/<node>/data/…                     written once
<root>/<node>/commits/<work key>.json    one `Record` per task
<root>/<node>/generations/0001.json      a `Generation`: the sealed list of records that a node consists of
<root>/runs/0001.json                    a `Run`: the DAG's text and the generation of every node
"""

import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


def digest(value: object) -> str:
    """32 hex characters of BLAKE2b-128 over the canonical JSON of `value` (sorted keys, no spaces)."""
    return blake2b(json.dumps(value, sort_keys=True, separators=(",", ":")).encode(), digest_size=16).hexdigest()


SUPERSEDED = "superseded"
"""The note in which a record counts, by status, the older rows that its own take the place of."""

ABOUT = "about"
"""The note in which every record of a node says the same of the node as a whole: small numbers and words, by name."""
SECONDS = "seconds"
"""The note in which a record says how long a worker took over its task, reading included, but for the commit."""


class Stored(BaseModel):
    """A frozen value that is stored as JSON, which ends with a checksum of what stands before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> bytes:
        return _sealed(json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False).encode())

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises `ValueError` for other bytes than `to_json` gave: a digit that rots is a number, too.

        One without a checksum was written before there were any.
        """
        body, mark, _ = data.rpartition(CHECKSUM)
        if mark and _sealed(body + END) != data:
            raise ValueError("its checksum does not fit")
        return cls.model_validate_json(body + END if mark else data)


CHECKSUM, END = b',\n "checksum": "', b"\n}"


def _sealed(body: bytes) -> bytes:
    seal = blake2b(body, digest_size=16).hexdigest().encode()
    return body.removesuffix(END) + CHECKSUM + seal + b'"' + END


class File(Stored):
    """One closed, never overwritten file."""

    kind: str
    """`image`, `caption` … for the table of a grain; `errors`; or what the stage calls its file, such as `tar`."""
    path: str
    """Relative to the node's folder; absolute where the file lies elsewhere and was only adopted."""
    bytes: int
    sha256: str


class Record(Stored):
    """What one task committed. At most one exists per work key."""

    work_key: str
    node: str
    phase: str
    part: str
    files: tuple[File, ...] = ()
    rows: dict[str, int] = {}
    """Rows per kind of table."""
    statuses: dict[str, int] = {}
    """Input rows by terminal status; they add up to the task's input rows."""
    inputs: dict[str, list[str]] = {}
    """The content hashes of what it was made from, by input node."""
    supersedes: tuple[str, ...] = ()
    """Parts in which the rows with this part's uids no longer count."""
    notes: dict[str, Any] = {}
    """Small facts for reports: counts, histograms, seconds."""
    content_hash: str
    """Covers the declared columns only."""

    def file(self, kind: str) -> File | None:
        return next((file for file in self.files if file.kind == kind), None)

    @property
    def base(self) -> str:
        """The part that this one retried or repaired: `000-00003` for `000-00003.r1`."""
        return self.part.partition(".")[0]

    def bytes_hash(self) -> str:
        """Covers every byte of every file, timings and dates included."""
        return digest(sorted((file.kind, file.sha256) for file in self.files))


class Generation(Stored):
    """The sealed list of the records that a node consists of."""

    node: str
    number: int
    key: str
    """H(identity, content hashes of the inputs): the same key, the same work."""
    identity: dict[str, Any]
    """What is done: the steps with their parameters and revisions, and the seed where it counts."""
    resources: dict[str, list[tuple[str, str]]] = {}
    """(path, digest) of the files outside, by parameter. The digests are part of the key, the paths are not."""
    inputs: dict[str, str]
    """Input node -> content hash of its generation."""
    records: tuple[Record, ...]
    superseded: dict[str, int] = {}
    """Rows by status that rows of later input took the place of; what retries replaced stands in their records."""

    @property
    def content_hash(self) -> str:
        return digest(sorted((record.part, record.content_hash) for record in self.records))

    @property
    def statuses(self) -> dict[str, int]:
        """Rows by the status that counts: what a retry took the place of is not counted."""
        total = Counter[str]()
        for record in self.records:
            total.update(record.statuses)
            total.subtract(record.notes.get(SUPERSEDED, {}))
        total.subtract(self.superseded)
        return {status: count for status, count in total.items() if count}

    @property
    def images(self) -> int:
        """Image rows that count."""
        superseded = sum(sum(record.notes.get(SUPERSEDED, {}).values()) for record in self.records)
        superseded += sum(self.superseded.values())
        return sum(record.rows.get("image", 0) for record in self.records) - superseded

    def superseding(self, part: str) -> list[Record]:
        """The records whose uids no longer count in `part`."""
        return [record for record in self.records if part in record.supersedes]

    def for_part(self, part: str) -> Record | None:
        """The record of `part`, else of the part that it retried."""
        return self._by_part.get(part) or self._by_part.get(part.partition(".")[0])

    @cached_property
    def _by_part(self) -> dict[str, Record]:
        return {record.part: record for record in self.records}


class Run(Stored):
    """One run: what was asked, and the generation of every node that it left."""

    id: str
    dag: str
    text: str
    """The DAG as YAML, overrides applied: enough to run it again."""
    generations: dict[str, int]


def in_order(records: Sequence[Record]) -> list[Record]:
    """By part, so that a generation does not depend on which worker was first."""
    return sorted(records, key=lambda record: (record.part, record.phase, record.work_key))
