"""Groups out of edges: every group is a star, so that all its members are like its centre, not only like each other.

Connected components let A ~ B ~ C ~ ... run from a picture to one that has nothing in common with it: a handful of
wrong edges joined thousands of images in fastdup (#302). Here the image with the most copies is a centre, takes those
copies, and what is left goes on (the star clustering of Aslam et al. 2004). A chain falls apart into links of three.
"""

import numpy as np
import numpy.typing as npt

from stages.dedup.uids import Halves

Ids = npt.NDArray[np.int64]


def numbered(a: Halves, b: Halves) -> tuple[Ids, Ids, Halves]:
    """The uids of both ends as numbers, in order of the uids; and the uid of each number."""
    leading, trailing = (np.concatenate(ends) for ends in zip(a, b, strict=True))
    order = np.argsort(leading)  # a hash table of as many random numbers takes half as long again
    heads = leading[order]
    fresh = np.ones(len(heads), dtype=bool)
    fresh[1:] = heads[1:] != heads[:-1]
    ids = np.empty(len(heads), np.int64)
    ids[order] = np.cumsum(fresh) - 1
    heads = heads[fresh]
    tails = np.zeros(len(heads), np.uint64)
    tails[ids] = trailing
    if not np.array_equal(tails[ids], trailing):  # two uids with the same first half: one pair in 2**64
        distinct, both = np.unique(np.stack([leading, trailing], axis=1), axis=0, return_inverse=True)
        heads, tails, ids = distinct[:, 0], distinct[:, 1], both.ravel()
    return ids[: len(a[0])], ids[len(a[0]) :], (heads, tails)


def stars(first: Ids, second: Ids, strength: npt.NDArray[np.float32], count: int) -> Ids:
    """int64 (count,): the centre of every vertex, itself where it is one. `first` and `second` are the ends of edges.

    Vertices become centres in order of (most edges, smallest number), unless an earlier centre is a neighbour; the
    others join the centre that they are most like. Each round decides all that no undecided neighbour comes before.
    """
    apart = first != second  # an edge from a vertex to itself would wait for itself for ever
    if not apart.all():
        first, second, strength = first[apart], second[apart], strength[apart]
    degrees = np.bincount(first, minlength=count) + np.bincount(second, minlength=count)
    turn = np.empty(count, np.int64)
    turn[np.lexsort((np.arange(count), -degrees))] = np.arange(count)
    undecided = np.ones(count, dtype=bool)
    is_centre = np.zeros(count, dtype=bool)
    a, b = first, second
    while len(a):
        earliest = np.full(count, count, np.int64)
        np.minimum.at(earliest, a, turn[b])
        np.minimum.at(earliest, b, turn[a])
        fresh = undecided & (turn < earliest)
        is_centre |= fresh
        undecided &= ~fresh
        undecided[b[fresh[a]]] = False
        undecided[a[fresh[b]]] = False
        open_ = undecided[a] & undecided[b]
        a, b = a[open_], b[open_]
    is_centre |= undecided  # all their neighbours went to other centres
    centre = np.arange(count)
    # The most alike, then the earliest centre: one number for both, as floats from 0 on sort as their bits do.
    best = np.zeros(count, np.uint64)
    likeness = np.abs(np.maximum(strength, 0)).view(np.uint32).astype(np.uint64) << np.uint64(32)
    for member, of in ((second, first), (first, second)):
        led = is_centre[of]
        np.maximum.at(best, member[led], likeness[led] | (count - turn[of[led]]).astype(np.uint64))
    led = best > 0
    at = np.empty(count, np.int64)
    at[turn] = np.arange(count)
    centre[led] = at[count - (best[led] & np.uint64(0xFFFFFFFF)).astype(np.int64)]
    return centre


def smallest(centre: Ids) -> Ids:
    """int64: the smallest number in the group of every vertex."""
    least = np.full(len(centre), len(centre), np.int64)
    np.minimum.at(least, centre, np.arange(len(centre)))
    return np.asarray(least[centre], np.int64)


def to_centre(first: Ids, second: Ids, strength: npt.NDArray[np.float32], centre: Ids) -> npt.NDArray[np.float32]:
    """How much each vertex is like the centre of its group; 1 for the centre."""
    like = np.ones(len(centre), np.float32)
    down, up = centre[second] == first, centre[first] == second
    like[second[down]] = strength[down]
    like[first[up]] = strength[up]
    return like
