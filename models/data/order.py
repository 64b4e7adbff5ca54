"""Which sample comes at which place of a training: computed for any place, remembered for none.

order = Order({"shards": 1348, "trusted": 100}, {"shards": 0.9, "trusted": 0.1}, seed=17)
order.at(123_456)                     # ("shards", 604), whatever the number of processes, and without the places before

Every set is gone through in an order of its own, anew for each of its epochs: a Feistel network permutes the smallest
power of two that holds the set (Luby and Rackoff 1988), and a number that falls outside goes through again (cycle
walking; Black and Rogaway 2002, section 3). Sets take turns as evenly as whole numbers can (Beatty sequences): of the
first n samples a set of weight w has w·n, give or take less than the number of sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from hashlib import blake2b
from random import Random

import numpy as np
import numpy.typing as npt

from models.data.index import DataError

ROUNDS = 8
DENOMINATOR = 1 << 31
"""Of a share, less than this, so that its product with a remainder fits 63 bits."""
ODD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 by the golden ratio: multiples of it lie far from each other."""
Numbers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


class Order:
    """Place in the training -> set and sample. Places go on for ever: a set that is through begins its next epoch."""

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, float], seed: int) -> None:
        """`sizes`: samples of every set. `weights`: the share of the samples that each gives, up to a factor.

        Raises `DataError` for sets without samples, without a weight or with one that is not above 0.
        """
        self.names = tuple(sorted(weights))
        for name in self.names:
            if not weights[name] > 0:
                raise DataError(f"mixture.{name} = {weights[name]}: expected a share above 0; leave the set out")
            if sizes.get(name, 0) < 1:
                raise DataError(f"mixture.{name}: the set has no samples; expected shards of that name")
        self.sizes = tuple(sizes[name] for name in self.names)
        self.seed = seed
        exact = [Fraction(str(weights[name])) for name in self.names]
        self._shares = [
            (share / sum(exact[place:])).limit_denominator(DENOMINATOR - 1) for place, share in enumerate(exact)
        ]
        if not all(self._shares):
            name = self.names[self._shares.index(Fraction(0))]
            raise DataError(f"mixture.{name} = {weights[name]}: it would hardly ever get its turn; leave the set out")

    def at(self, place: int) -> tuple[str, int]:
        """Set and number of the sample."""
        sets, samples = self.span(place, place + 1)
        return self.names[sets[0]], int(samples[0])

    def span(self, start: int, stop: int) -> tuple[Numbers, Numbers]:
        """int64 (stop - start,) each: the numbers of the sets in `names`, and of the samples in these."""
        sets, draws = self._turns(np.arange(start, stop, dtype=np.int64))
        samples = np.empty_like(draws)
        for number, size in enumerate(self.sizes):
            rows = np.flatnonzero(sets == number)
            epochs, places = np.divmod(draws[rows], size)
            samples[rows] = _permuted(places, size, _keys(f"{self.seed}/{self.names[number]}", epochs))
        return sets, samples

    def instead(self, place: int, attempt: int) -> tuple[str, int]:
        """What takes the place of a sample that cannot be used, at the `attempt`-th try from 1 on: another sample of
        the same set, drawn by seed, place and attempt alone."""
        sets, _ = self._turns(np.array([place], dtype=np.int64))
        number = int(sets[0])
        return self.names[number], dice(self.seed, place, attempt).randrange(self.sizes[number])

    def epochs(self, place: int) -> dict[str, float]:
        """How often every set has been gone through before a place."""
        sets = range(len(self.names))
        return {self.names[number]: self._drawn(number, place) / self.sizes[number] for number in sets}

    def _turns(self, places: Numbers) -> tuple[Numbers, Numbers]:
        """The set whose turn it is at every place, and how often it was its turn before.

        Of the places that are left for it and the sets after it, a set takes those where the multiples of its share
        pass a whole number.
        """
        sets, draws = np.zeros_like(places), places.copy()
        rows = np.arange(len(places))
        for number, share in enumerate(self._shares):
            before, after = _floor(draws[rows], share), _floor(draws[rows] + 1, share)
            mine = after > before
            sets[rows[mine]], draws[rows[mine]] = number, before[mine]
            draws[rows[~mine]] -= before[~mine]
            rows = rows[~mine]
        return sets, draws

    def _drawn(self, number: int, place: int) -> int:
        left = np.array([place], dtype=np.int64)
        for share in self._shares[:number]:
            left = left - _floor(left, share)
        return int(_floor(left, self._shares[number])[0])


def dice(seed: int, place: int, attempt: int) -> Random:
    """Chance for the sample at a place of the training, its augmentation say: the same whenever it is asked for."""
    return Random(int.from_bytes(blake2b(b"%d/%d/%d" % (seed, place, attempt), digest_size=8).digest(), "little"))


def _floor(numbers: Numbers, share: Fraction) -> Numbers:
    """⌊numbers · share⌋, exactly."""
    whole, rest = np.divmod(numbers, share.denominator)
    floor: Numbers = whole * share.numerator + rest * share.numerator // share.denominator
    return floor


def _keys(name: str, epochs: Numbers) -> Words:
    """(rounds, epochs): other ones for every epoch."""
    first = np.frombuffer(blake2b(name.encode(), digest_size=8 * ROUNDS).digest(), dtype="<u8")
    return _mixed(first[:, None] + epochs.astype(np.uint64) * ODD)


def _permuted(numbers: Numbers, size: int, keys: Words) -> Numbers:
    """A permutation of range(size) for every column of keys, at the number beside it."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    found = numbers.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        found[outside] = _network(found[outside], half, keys[:, outside])
        outside = outside[found[outside] >= np.uint64(size)]
    return found.astype(np.int64)


def _network(numbers: Words, half: int, keys: Words) -> Words:
    width, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = numbers >> width, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << width) | right


def _mixed(numbers: Words) -> Words:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = numbers ^ (numbers >> np.uint64(31))
    return mixed
