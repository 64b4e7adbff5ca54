"""A permutation of range(size), computed and not stored: a Feistel network with cycle walking (Black, Rogaway 2002).

Page k of a million is then known without the other pages, and so is the page at any place of the permuted order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

ROUNDS = 6
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Permutation:
    """A bijection of range(size), another for every seed."""

    size: int
    seed: str

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}; a permutation needs 1 or more numbers")

    def place(self, number: int) -> int:
        """Where a number stands in the permuted order. Raises `IndexError` outside of range(size)."""
        return self._walk(number, self._forth)

    def number(self, place: int) -> int:
        """Which number stands at a place: the inverse of `place`. Raises `IndexError` outside of range(size)."""
        return self._walk(place, self._back)

    def _walk(self, value: int, step: Callable[[int], int]) -> int:
        if not 0 <= value < self.size:
            raise IndexError(f"{value} is outside of 0 … {self.size - 1}")
        while True:
            value = step(value)
            if value < self.size:  # the network permutes a power of two below twice the size
                return value

    def _forth(self, value: int) -> int:
        left, right = divmod(value, 1 << self._right_bits)
        for turn, key in enumerate(self._keys):
            if turn % 2:
                right ^= _mixed(left, key) & ((1 << self._right_bits) - 1)
            else:
                left ^= _mixed(right, key) & ((1 << self._left_bits) - 1)
        return left << self._right_bits | right

    def _back(self, value: int) -> int:
        left, right = divmod(value, 1 << self._right_bits)
        for turn, key in reversed(list(enumerate(self._keys))):
            if turn % 2:
                right ^= _mixed(left, key) & ((1 << self._right_bits) - 1)
            else:
                left ^= _mixed(right, key) & ((1 << self._left_bits) - 1)
        return left << self._right_bits | right

    @cached_property
    def _keys(self) -> tuple[int, ...]:
        digest = blake2b(self.seed.encode(), digest_size=8 * ROUNDS).digest()
        return tuple(int.from_bytes(digest[8 * turn : 8 * turn + 8]) for turn in range(ROUNDS))

    @cached_property
    def _left_bits(self) -> int:
        return (self.size - 1).bit_length() // 2

    @cached_property
    def _right_bits(self) -> int:
        return (self.size - 1).bit_length() - self._left_bits


def _mixed(value: int, key: int) -> int:
    """The finaliser of SplitMix64 (Steele et al. 2014)."""
    value = (value + key) & MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MASK
    return value ^ value >> 31
