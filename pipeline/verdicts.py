"""Two verdicts on every pair, counted, with a seeded sample of the pairs on which they differ.

Memory is bounded by the number of rules and the size of the sample, whatever the number of pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.judge import KEPT

BEFORE, AFTER = "before", "after"
"""The columns with the verdicts: the name of the first rule that a pair failed, null where it is kept."""
ABSENT = "not there"
"""In place of a verdict on a pair that a run does not have."""
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio, made odd: Fibonacci hashing (Knuth, The Art of Computer Programming, 6.4)."""


@dataclass(frozen=True)
class Change:
    """A pair on which the verdicts differ; None for kept."""

    uid: str
    caption_id: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Count:
    """What a rule saw and dropped, in pairs."""

    seen: int
    dropped: int

    @property
    def left(self) -> int:
        return self.seen - self.dropped


@dataclass(frozen=True)
class Step:
    """A rule before and after; None where it is not among the rules."""

    rule: str
    was: str | None
    now: str | None
    """Its SQL."""
    before: Count | None
    after: Count | None


Counts = Mapping[tuple[str | None, str | None], int]
"""(verdict before, verdict after) -> pairs."""


class Tally:
    """Counts verdicts before and after, and keeps a few of the pairs that are newly kept, and newly dropped.

    Which ones depends on the keys and the seed alone, not on the order in which pairs come.
    """

    def __init__(self, sample: int, seed: int) -> None:
        self.counts: Counter[tuple[str | None, str | None]] = Counter()
        self._size = sample
        self._seed = seed
        self._gained: list[tuple[int, Change]] = []
        self._lost: list[tuple[int, Change]] = []

    def add(self, pairs: pa.Table) -> None:
        """Pairs with their keys, `BEFORE` and `AFTER`."""
        was, names_before = _coded(pairs.column(BEFORE))
        now, names_after = _coded(pairs.column(AFTER))
        counts = np.bincount(was * len(names_after) + now, minlength=len(names_before) * len(names_after))
        for place in np.flatnonzero(counts):
            before, after = names_before[place // len(names_after)], names_after[place % len(names_after)]
            self.counts[before, after] += int(counts[place])
        for rows, sample in (((was > 0) & (now == 0), self._gained), ((was == 0) & (now > 0), self._lost)):
            found = np.flatnonzero(rows)
            if self._size and len(found):
                verdicts = [(names_before[b], names_after[a]) for b, a in zip(was[found], now[found], strict=True)]
                self._keep(sample, pairs.select(["uid", "caption_id"]).take(found), verdicts)

    @property
    def gained(self) -> list[Change]:
        """Some of the pairs that were dropped and are kept."""
        return [change for _, change in self._gained]

    @property
    def lost(self) -> list[Change]:
        """Some of the pairs that were kept and are dropped."""
        return [change for _, change in self._lost]

    def _keep(
        self, sample: list[tuple[int, Change]], keys: pa.Table, verdicts: Sequence[tuple[str | None, str | None]]
    ) -> None:
        """Take in the rows that come early in the order that the seed gives."""
        uids, ids = (keys.column(name).to_pylist() for name in ("uid", "caption_id"))
        ranks = priorities([f"{uid} {key}" for uid, key in zip(uids, ids, strict=True)], self._seed)
        first = np.argsort(ranks, kind="stable")[: self._size]
        sample += [(int(ranks[row]), Change(uids[row], ids[row], *verdicts[row])) for row in first]
        sample.sort(key=lambda item: (item[0], item[1].uid, item[1].caption_id))
        del sample[self._size :]


def _coded(verdicts: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], list[str | None]]:
    """The place of every verdict among the names; 0 is kept."""
    column = verdicts.combine_chunks()
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    codes = np.asarray(column.indices.fill_null(-1), dtype=np.int64) + 1
    return codes, [None, *column.dictionary.to_pylist()]


def named(codes: npt.NDArray[np.int16], rules: Sequence[str]) -> pa.DictionaryArray:
    """The verdicts of `pipeline.judge` by name; null for kept."""
    indices = pa.array(codes, pa.int16(), mask=codes == KEPT)
    return pa.DictionaryArray.from_arrays(indices, pa.array(rules, pa.string()))


def steps(before: Mapping[str, str], after: Mapping[str, str], counts: Counts) -> list[Step]:
    """Both funnels, rule by rule: the later rules in order, then those that are gone."""
    was, now = _funnel(before, counts, 0), _funnel(after, counts, 1)
    names = [*after, *(name for name in before if name not in after)]
    return [Step(name, before.get(name), after.get(name), was.get(name), now.get(name)) for name in names]


def moves(counts: Counts) -> tuple[tuple[str | None, str | None, int], ...]:
    """(before, after, pairs) where the verdicts differ, the most frequent first."""
    changed = [(was, now, count) for (was, now), count in counts.items() if was != now]
    return tuple(sorted(changed, key=lambda move: (-move[2], str(move[0]), str(move[1]))))


def total(counts: Counts, side: int, verdict: str | None) -> int:
    """Pairs of one verdict (None: kept) on one side: 0 before, 1 after."""
    return sum(count for verdicts, count in counts.items() if verdicts[side] == verdict)


def _funnel(rules: Mapping[str, str], counts: Counts, side: int) -> dict[str, Count]:
    left = sum(counts.values()) - total(counts, side, ABSENT)
    found = {}
    for name in rules:
        dropped = total(counts, side, name)
        found[name] = Count(left, dropped)
        left -= dropped
    return found


def priorities(keys: Sequence[str], seed: int) -> npt.NDArray[np.uint64]:
    """uint64 (keys,): a hash of every key and the seed, without a loop over the keys."""
    data = np.array([key.encode() for key in keys], dtype=bytes)
    width = -(-data.dtype.itemsize // 8)
    words = data.astype(f"S{8 * width}").view(np.uint64).reshape(len(keys), width)
    ranks = np.full(len(keys), (seed * int(MULTIPLIER) + 1) % 2**64, np.uint64)
    for word in words.T:
        mixed = (ranks ^ word) * MULTIPLIER
        # A key is padded with zeros to the longest beside it, which must not matter.
        ranks = np.where(word == 0, ranks, mixed ^ (mixed >> np.uint64(29)))
    return ranks
