"""Which input files are known already, in which increments, and which are new.

An increment is a set of files that were ingested together. Its parts are buckets of uids, a power of two of them, so
that the buckets of two increments are equal or nest. Its records say which files it holds, by digest: a file that was
moved or touched is the same file.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.records import SUPERSEDED, Generation, Record
from stages.ingest.columns import understood

FileList = list[tuple[str, str]]
"""(path, digest), in order."""


@dataclass(frozen=True)
class Increment:
    """What one set of files became."""

    number: int
    files: FileList
    records: tuple[Record, ...]

    @property
    def complete(self) -> bool:
        """Whether no part is missing, as one is while it is repaired."""
        return len(self.records) == 1 << int(self.records[0].notes["bits"])

    @property
    def rows(self) -> int:
        """Input rows: the rows of earlier parts that come again are none."""
        return sum(
            sum(record.statuses.values()) - sum(record.notes.get(SUPERSEDED, {}).values()) for record in self.records
        )

    @property
    def columns(self) -> pa.Schema:
        """What its parts carry along."""
        return understood(self.records[0].notes["schema"])

    def overlapping(self, bits: int, bucket: int) -> list[Record]:
        """The parts that may share a uid with a bucket out of `2**bits`."""
        return [
            record for record in self.records if _nested(record.notes["bits"], record.notes["bucket"], bits, bucket)
        ]


def _nested(bits: int, bucket: int, other_bits: int, other: int) -> bool:
    common = min(bits, other_bits)
    return bucket >> (bits - common) == other >> (other_bits - common)


def split(previous: Generation | None, files: Iterable[tuple[str, str]]) -> tuple[list[Increment], FileList]:
    """The increments that still stand, and the files that are in none of them.

    Increments build on each other: from the first one that lost a file on, they no longer stand.
    """
    present = list(files)
    standing: list[Increment] = []
    for number, records in enumerate(_by_increment(previous)):
        digests = records[0].notes["files"]
        missing = Counter(digests) - Counter(digest for _, digest in present)
        if missing:
            break
        taken, present = _take(digests, present)
        standing.append(Increment(number, taken, tuple(records)))
    return standing, present


def _by_increment(previous: Generation | None) -> list[list[Record]]:
    groups: dict[int, list[Record]] = {}
    for record in previous.records if previous else ():
        groups.setdefault(record.notes["increment"], []).append(record)
    contiguous: list[list[Record]] = []
    while len(contiguous) in groups:
        contiguous.append(groups[len(contiguous)])
    return contiguous


def _take(digests: Sequence[str], present: FileList) -> tuple[FileList, FileList]:
    """The files with these digests, in the order of the digests, and the rest in their own."""
    rest = list(present)
    taken = []
    for digest in digests:
        place = next(place for place, (_, found) in enumerate(rest) if found == digest)
        taken.append(rest.pop(place))
    return taken, rest
