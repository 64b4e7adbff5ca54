"""A seeded permutation of [0, n) that any worker computes for its own rows: an exact global shuffle without a sort.

A Feistel network permutes the smallest even-bit power of two that holds n (Luby and Rackoff 1988); a number that falls
outside [0, n) is sent through again until it falls inside (cycle walking; Black and Rogaway 2002, section 3), less
often than four times on average.
"""

from hashlib import blake2b

import numpy as np

ROUNDS = 8


def permuted(ranks: np.ndarray, total: int, seed: int) -> np.ndarray:
    """int64, shaped like `ranks`: the places of the given ranks, each in [0, `total`), no two alike."""
    half = max(1, (max(0, total - 1).bit_length() + 1) // 2)
    keys = np.frombuffer(
        b"".join(blake2b(f"{seed}/{number}".encode(), digest_size=8).digest() for number in range(ROUNDS)), dtype="<u8"
    )
    places = ranks.astype(np.uint64)
    waiting = np.arange(len(places))
    while len(waiting):
        places[waiting] = _network(places[waiting], np.uint64(half), keys)
        waiting = waiting[places[waiting] >= np.uint64(total)]
    return places.astype(np.int64)


def _network(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = np.uint64((1 << int(half)) - 1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << half) | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
