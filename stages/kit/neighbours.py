"""All pairs of rows that are close: 64-bit hashes by Hamming distance, unit vectors by cosine; the work of one process.

Both are linear in the rows for a fixed density. No pair of hashes is missed but for what `most` bounds; of vectors, at
most a few in 1,000 are that are only just near enough and lie on both sides of a border, and what `PROBES` bounds (see
`Cells`). Rows must come in the order of their uids, so that a bounded answer does not depend on how they were laid out.

A row with more than `most` neighbours keeps half of them because they are nearest and half because their uids are
smallest: n copies of a placeholder give at most n * most pairs, and all of them still meet at the same few hubs.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb, isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.stage import Device
from stages.kit import gpu

BITS = 64
PROBES = 16
"""Cells in which a vector may be looked for; it visits another one only where a neighbour may lie across the border."""
ITERATIONS = 10
PER_CELL = 128
"""Vectors of the sample per cell that k-means sees; FAISS itself asks for at least 39."""
FLAT_ROWS = 4096
"""Up to so many vectors are compared each with each."""
AT_ONCE = 512
"""Vectors that are searched in one call, so that even a cell of copies answers within memory."""
SIGMAS = 3.0
"""How unusual a difference of two near vectors has to be for their pair to be missed at a border of cells."""
SLACK = 1e-3
"""What the search may be off before the cosines are taken again, exactly."""

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Pairs = tuple[Rows, Rows, npt.NDArray[Any]]
"""First row, second row (the larger one), and their distance or cosine; sorted, each pair once."""


# -- Hamming -----------------------------------------------------------------------------------------------------------


def hamming_pairs(codes: npt.NDArray[np.uint64], within: int, most: int) -> Pairs:
    """Pairs of rows whose codes differ in at most `within` bits; distances are int8.

    Equal codes are searched once. Raises `ValueError` for a distance that is no share of 64 bits.
    """
    if not 0 <= within < BITS:
        raise ValueError(f"within = {within}; expected 0 to {BITS - 1} bits")
    distinct, code_of = np.unique(codes, return_inverse=True)
    first, second, distance = distinct_pairs(distinct, within)
    every = np.arange(len(distinct))
    sources = np.concatenate([first, second, every])
    targets = np.concatenate([second, first, every])
    distances = np.concatenate([distance, distance, np.zeros(len(distinct), np.int8)])
    order = np.argsort(sources, kind="stable")
    targets, distances = targets[order], distances[order]
    degrees = np.bincount(sources, minlength=len(distinct))
    begins = np.cumsum(degrees) - degrees
    members = np.argsort(code_of, kind="stable")
    counts = np.bincount(code_of, minlength=len(distinct))
    starts = np.cumsum(counts) - counts
    found = []
    for rows in np.array_split(np.arange(len(codes)), -(-len(codes) // AT_ONCE) or 1):
        row, link = _spans(begins[code_of[rows]], degrees[code_of[rows]])
        code = targets[link]
        # More than `most` of one code would not be kept anyway: they are all equally near.
        which, member = _spans(starts[code], np.minimum(counts[code], most + 1))
        found.append(_limited(rows[row[which]], members[member], distances[link[which]], most, nearest_first=True))
    return _once(found, np.dtype(np.int8))


def distinct_pairs(codes: npt.NDArray[np.uint64], within: int) -> Pairs:
    """All pairs within a Hamming distance, of codes that differ (Manku et al. 2007, section 3.1.1).

    Cut 64 bits into B blocks: two codes that differ in at most k bits agree in some B - k whole blocks. So each choice
    of B - k blocks is one sort, and only neighbours in it are compared. B is what costs least for the number of codes:
    more blocks are more sorts with fewer chance meetings. FAISS's binary indexes take longer by far, on one core within
    6 bits: 100,000 random codes 0.6 s here, 35 s by IndexBinaryFlat, 7 s by IndexBinaryMultiHash at its best; a million
    20 s here, 43 minutes by IndexBinaryFlat.
    """
    blocks = min(range(within + 1, within + 5), key=lambda b: _cost(len(codes), b, within))
    edges = np.linspace(0, BITS, min(blocks, BITS) + 1).astype(int)
    masks = [np.uint64(((1 << int(b)) - 1) ^ ((1 << int(a)) - 1)) for a, b in pairwise(edges)]
    found: list[Pairs] = []
    for chosen in combinations(range(len(masks)), max(1, len(masks) - within)):
        key = np.bitwise_or.reduce([masks[block] for block in chosen])
        skipped = [mask for block, mask in enumerate(masks[: chosen[-1]]) if block not in chosen]
        found += _meetings(codes, key, skipped, within)
    first, second, distance = _joined(found, np.dtype(np.int8))
    order = np.lexsort((second, first))
    return first[order], second[order], distance[order]


def _cost(count: int, blocks: int, within: int) -> float:
    """Nanoseconds, roughly: every table is sorted, and codes that agree by chance are compared."""
    bits = BITS * (blocks - within) / blocks
    return comb(blocks, within) * (100.0 * count + 10.0 * count * count / 2 ** (bits + 1))


def _meetings(codes: npt.NDArray[np.uint64], mask: np.uint64, skipped: list[np.uint64], within: int) -> Iterator[Pairs]:
    """Pairs that agree in the bits of `mask`, and in none of the `skipped` blocks: another choice has found those."""
    order = np.argsort(codes & mask)
    sorted_codes = codes[order]
    keys = sorted_codes & mask
    alive = np.arange(len(codes) - 1)
    step = 1
    while len(alive):
        alive = alive[alive + step < len(codes)]
        alive = alive[keys[alive] == keys[alive + step]]
        differing = sorted_codes[alive] ^ sorted_codes[alive + step]
        distance = np.bitwise_count(differing)
        hit = distance <= within
        for block in skipped:
            hit &= (differing & block) != 0
        if hit.any():
            a, b = order[alive[hit]], order[alive[hit] + step]
            yield np.minimum(a, b), np.maximum(a, b), distance[hit].astype(np.int8)
        step += 1


# -- cosine ------------------------------------------------------------------------------------------------------------


class Cells:
    """A partition of the unit sphere by k-means, and which vectors have to be looked for on which side of a border.

    Let x lie in cell c and y in cell d, m(x) and m(y) being their distances to the plane between the two centres. Then
    m(x) + m(y) = (x - y) . u, u being the plane's normal, and one of the two is at most half of it: if every vector
    visits the cells whose plane is that near, each pair meets in the cell of one of its ends. At worst (x - y) . u is
    |x - y|; a difference that points anywhere in hundreds of dimensions has far less of its length in any one of them.
    How much the differences of vectors have across their next border is measured on the sample (root mean square), and
    `SIGMAS` of that are allowed for: `border`, a share of the largest distance that counts; 1/2 misses nothing, and has
    vectors of 512 numbers in ten cells visit seven of them instead of two. What `PROBES` cuts off is counted.
    """

    def __init__(self, centres_kd: npt.NDArray[np.float32], device: Device, border: float = 0.5) -> None:
        self.centres_kd = centres_kd
        self.border = border
        self._cosines_kk = centres_kd @ centres_kd.T
        self._index = index_of(centres_kd, device)

    @classmethod
    def trained(cls, sample_nd: npt.NDArray[np.float32], cells: int, seed: int, device: Device) -> "Cells":
        """Spherical k-means; the same sample and seed give the same cells up to float noise."""
        import faiss

        faiss.omp_set_num_threads(device.threads)
        rows, width = sample_nd.shape
        cells = max(1, min(cells, rows))
        means = faiss.Kmeans(
            width, cells, niter=ITERATIONS, spherical=True, seed=seed % (1 << 31), gpu=device.kind == "cuda",
            min_points_per_centroid=1, max_points_per_centroid=PER_CELL,
        )  # fmt: skip
        means.train(sample_nd)
        assert means.centroids is not None
        found = cls(unit(means.centroids.astype(np.float32)), device)
        found.border = min(0.5, SIGMAS / 2 * found._across(sample_nd))
        return found

    def _across(self, sample_nd: npt.NDArray[np.float32]) -> float:
        """How much of the difference of two vectors of one cell lies across the border to the next cell of the first;
        root mean square, 0 to 1."""
        if len(self.centres_kd) == 1:
            return 1.0
        _, cells_n2 = self._index.search(sample_nd, 2)
        order = np.argsort(cells_n2[:, 0], kind="stable")
        one, other = order[:-1], order[1:]
        same = cells_n2[one, 0] == cells_n2[other, 0]
        one, other = one[same], other[same]
        apart_md = sample_nd[one] - sample_nd[other]
        normals_md = unit(self.centres_kd[cells_n2[one, 0]] - self.centres_kd[cells_n2[one, 1]])
        lengths_m = np.einsum("md,md->m", apart_md, apart_md)
        across_m = np.einsum("md,md->m", apart_md, normals_md) ** 2
        told = lengths_m > reach(1 - SLACK) ** 2  # the same picture twice differs in rounding only
        return float(np.sqrt(np.mean(across_m[told] / lengths_m[told]))) if told.any() else 1.0

    def visits(self, vectors_nd: npt.NDArray[np.float32], cosine: float) -> tuple[Rows, Rows, Mask, int]:
        """Every vector with each of its cells: (row, cell, whether it lives there), and how many were cut off.

        `cosine` is the least that counts as near.
        """
        probes = min(PROBES, len(self.centres_kd))
        near_np, cells_np = self._index.search(vectors_nd, probes)
        own_n = cells_np[:, 0]
        gaps_np = near_np[:, :1] - near_np
        apart_np = np.sqrt(np.maximum(0, 2 - 2 * self._cosines_kk[own_n[:, None], cells_np]))
        visited_np = gaps_np <= apart_np * (reach(cosine) * self.border + SLACK)
        visited_np[:, 0] = True
        rows, place = np.nonzero(visited_np)
        cut_off = int(visited_np[:, -1].sum()) if probes < len(self.centres_kd) else 0
        return rows, cells_np[rows, place].astype(np.int64), place == 0, cut_off


def reach(cosine: float) -> float:
    """The distance of two unit vectors."""
    return float(np.sqrt(max(0.0, 2 - 2 * cosine)))


def unit(vectors_nd: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows of length one; a row of zeros stays as it is."""
    return np.asarray(vectors_nd / lengths(vectors_nd), np.float32)


def lengths(vectors_nd: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(rows, 1), never zero. `np.linalg.norm` would have all squares in memory at once."""
    squares_n1 = np.einsum("nd,nd->n", vectors_nd, vectors_nd)[:, None]
    return np.asarray(np.maximum(np.sqrt(squares_n1), np.finfo(np.float32).tiny), np.float32)


def index_of(vectors_nd: npt.NDArray[np.float32], device: Device) -> Any:
    """A flat inner-product index, on the GPU where the worker has one.

    Raises `SluiceError` where a GPU was asked for and FAISS cannot use it.
    """
    import faiss

    index = gpu.placed(faiss.IndexFlatIP(vectors_nd.shape[1]), device)
    index.add(vectors_nd)
    return index


def cosine_pairs(
    vectors_nd: npt.NDArray[np.float32],
    cosine: float,
    most: int,
    seed: int = 0,
    device: Device | None = None,
    living_n: Mask | None = None,
) -> tuple[Pairs, int]:
    """Pairs of unit vectors whose cosine is at least `cosine`, and how many vectors `PROBES` kept from a cell.

    `living_n`: of two vectors that are false in it, nothing is said; another process has them.
    """
    import faiss

    device = device or Device()
    faiss.omp_set_num_threads(device.threads)
    count = len(vectors_nd)
    living_n = np.ones(count, dtype=bool) if living_n is None else living_n
    everything = np.arange(count)
    cut_off, found = 0, []
    if count <= FLAT_ROWS:
        found = [*_search(vectors_nd, everything, everything, cosine, most, device)] if count else []
    else:
        # As many cells as a cell has vectors: finding the cell and searching it then cost the same.
        cells = isqrt(count)
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(count, size=min(count, cells * PER_CELL), replace=False))
        partition = Cells.trained(vectors_nd[chosen], cells, seed, device)
        rows, cell, own, cut_off = partition.visits(vectors_nd, cosine)
        order = np.argsort(cell, kind="stable")
        rows, own = rows[order], own[order]
        ends = np.cumsum(np.bincount(cell, minlength=cells))
        for inside, mine in zip(np.split(rows, ends[:-1]), np.split(own, ends[:-1]), strict=True):
            if mine.any():
                found += _search(vectors_nd, inside, inside[mine], cosine, most, device)
    found = [_limited(*_joined(found, np.dtype(np.float32)), most, nearest_first=False)]  # of all cells together
    first, second, near = _once(found, np.dtype(np.float32))
    kept = living_n[first] | living_n[second]
    return (first[kept], second[kept], near[kept]), cut_off


def _search(
    vectors_nd: npt.NDArray[np.float32], asking: Rows, base: Rows, cosine: float, most: int, device: Device
) -> Iterator[Pairs]:
    """For each of `asking` its neighbours among `base`: (asking, other, cosine)."""
    index = index_of(vectors_nd[base], device)
    for start in range(0, len(asking), AT_ONCE):
        rows = asking[start : start + AT_ONCE]
        if device.kind == "cuda":
            row, column = gpu.within(index, vectors_nd[base], vectors_nd[rows], cosine - SLACK, most + 1)
        else:
            limits, _, column = index.range_search(vectors_nd[rows], cosine - SLACK)
            row = np.repeat(np.arange(len(rows)), np.diff(limits.astype(np.int64)))
        a, b = rows[row], base[column]
        values = np.einsum("nd,nd->n", vectors_nd[a], vectors_nd[b])
        near_enough = values >= np.float32(cosine)
        yield _limited(a[near_enough], b[near_enough], values[near_enough], most, nearest_first=False)


# -- pairs -------------------------------------------------------------------------------------------------------------


def _limited(rows: Rows, others: Rows, values: npt.NDArray[Any], most: int, nearest_first: bool) -> Pairs:
    """Every row's neighbours, itself left out: all, or the half that is nearest and the half of the smallest uids.

    `nearest_first`: small values are near; otherwise large ones are. Row by row, not yet each pair once.
    """
    apart = rows != others
    rows, others, values = rows[apart], others[apart], values[apart]
    by_uid = np.lexsort((others, rows))
    rows, others, values = rows[by_uid], others[by_uid], values[by_uid]
    sizes = _sizes(rows)
    if not len(sizes) or sizes.max() <= most:
        return rows, others, values
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    near = np.empty_like(rank)
    near[np.lexsort((others, values if nearest_first else -values, rows))] = rank
    kept = (np.repeat(sizes, sizes) <= most) | (rank < most // 2) | (near < most - most // 2)
    return rows[kept], others[kept], values[kept]


def _sizes(rows: Rows) -> Rows:
    """How long each run of equals is, in sorted rows."""
    return np.unique(rows, return_counts=True)[1]


def _spans(starts: Rows, lengths: Rows) -> tuple[Rows, Rows]:
    """Which span, and each index in it, of spans of consecutive indices."""
    which = np.repeat(np.arange(len(starts)), lengths)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + starts[which]


def _joined(found: list[Pairs], kind: np.dtype[Any]) -> Pairs:
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, kind)
    first, second, values = (np.concatenate(columns) for columns in zip(*found, strict=True))
    return first, second, values


def _once(found: list[Pairs], kind: np.dtype[Any]) -> Pairs:
    rows, others, values = _joined(found, kind)
    first, second = np.minimum(rows, others), np.maximum(rows, others)
    order = np.lexsort((second, first))
    first, second, values = first[order], second[order], values[order]
    fresh = np.ones(len(first), dtype=bool)
    fresh[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return first[fresh], second[fresh], values[fresh]
