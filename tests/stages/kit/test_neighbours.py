"""All pairs that are close: what comparing everything with everything gives, in less time."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stage import Device
from stages.kit import neighbours
from stages.kit.neighbours import Cells, cosine_pairs, distinct_pairs, hamming_pairs, unit

ALL = 10_000
"""As many neighbours as there are."""


def codes_around(rng: np.random.Generator, centres: int, each: int, flips: int) -> npt.NDArray[np.uint64]:
    """Codes that differ from one of a few centres in up to `flips` bits."""
    found = []
    for centre in rng.integers(0, 2**64, centres, dtype=np.uint64):
        for _ in range(each):
            bits = rng.choice(64, size=rng.integers(0, flips + 1), replace=False).astype(np.uint64)
            found.append(centre ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0)))
    return rng.permutation(np.array(found, np.uint64))


def brute_hamming(codes: npt.NDArray[np.uint64], within: int) -> set[tuple[int, int, int]]:
    distance = np.bitwise_count(codes[:, None] ^ codes[None, :])
    first, second = np.nonzero(np.triu(distance <= within, 1))
    return {(int(a), int(b), int(distance[a, b])) for a, b in zip(first, second, strict=True)}


def as_set(
    pairs: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int8]],
) -> set[tuple[int, int, int]]:
    listed = [(int(a), int(b), int(d)) for a, b, d in zip(*pairs, strict=True)]
    assert len(set(listed)) == len(listed)
    return set(listed)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(0, 9))
def test_hamming_pairs_are_those_of_brute_force(seed: int, within: int, flips: int) -> None:
    codes = codes_around(np.random.default_rng(seed), centres=6, each=9, flips=flips)
    assert as_set(hamming_pairs(codes, within, ALL)) == brute_hamming(codes, within)


@pytest.mark.parametrize("blocks", [7, 8, 9, 10])
def test_every_number_of_blocks_finds_the_same(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_cost", lambda count, b, within: b != blocks)
    codes = np.unique(codes_around(np.random.default_rng(blocks), centres=10, each=30, flips=8))
    assert as_set(distinct_pairs(codes, 6)) == brute_hamming(codes, 6) != set()


def test_a_thousand_placeholders_give_a_star_and_no_clique() -> None:
    codes = np.concatenate([np.full(1000, 7, np.uint64), codes_around(np.random.default_rng(1), 5, 3, 2)])
    first, second, _ = hamming_pairs(codes, 6, most=16)
    inside = (first < 1000) & (second < 1000)
    assert inside.sum() < 1000 * 16
    assert set(second[first == 0]) == set(range(1, 1000)), "every one of them is tied to the first"
    assert {(int(a), int(b)) for a, b in zip(first[~inside], second[~inside], strict=True)} == {
        (a, b) for a, b, _ in brute_hamming(codes, 6) if b >= 1000
    }


def test_a_crowded_row_keeps_its_nearest_as_well() -> None:
    far = [np.uint64((1 << 6) - 1) << np.uint64(6 * place) for place in range(10)]
    codes = np.array([*far, 1 << 63, 0], np.uint64)  # the last is 6 bits from all but one, which is 1 bit away
    first, second, distance = hamming_pairs(codes, 6, most=4)
    assert (10, 11, 1) in {(int(a), int(b), int(d)) for a, b, d in zip(first, second, distance, strict=True)}


def test_no_codes_have_no_pairs() -> None:
    assert [len(column) for column in hamming_pairs(np.zeros(0, np.uint64), 6, 64)] == [0, 0, 0]
    assert [len(column) for column in hamming_pairs(np.zeros(1, np.uint64), 6, 64)] == [0, 0, 0]


def vectors_around(
    rng: np.random.Generator, clusters: int, each: int, width: int, spread: float
) -> npt.NDArray[np.float32]:
    """Clustered unit vectors; every fourth has a near copy."""
    centres = rng.normal(size=(clusters, 1, width))
    vectors = unit((centres + spread * rng.normal(size=(clusters, each, width))).reshape(-1, width).astype(np.float32))
    copies = vectors[::4] + (0.2 / width**0.5) * rng.normal(size=vectors[::4].shape).astype(np.float32)
    return rng.permutation(np.concatenate([vectors, unit(copies)]))


def brute_cosine(vectors_nd: npt.NDArray[np.float32], cosine: float) -> set[tuple[int, int]]:
    first, second = np.nonzero(np.triu(vectors_nd @ vectors_nd.T >= cosine, 1))
    return {(int(a), int(b)) for a, b in zip(first, second, strict=True)}


@pytest.mark.parametrize("spread", [0.3, 0.7, 5.0])
def test_cosine_pairs_in_cells_are_those_of_brute_force(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "FLAT_ROWS", 500)
    vectors_nd = vectors_around(np.random.default_rng(3), 40, 60, 64, spread)
    expected = brute_cosine(vectors_nd, 0.95)
    (first, second, near), _ = cosine_pairs(vectors_nd, 0.95, ALL)
    found = {(int(a), int(b)) for a, b in zip(first, second, strict=True)}
    assert len(expected) >= 600
    assert found <= expected | {(int(a), int(b)) for a, b, c in zip(first, second, near, strict=True) if c < 0.9501}
    assert len(found & expected) >= 0.995 * len(expected)


def test_every_pair_meets_in_the_cell_of_one_of_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "PROBES", 50)
    vectors_nd = vectors_around(np.random.default_rng(4), 50, 20, 16, 1.0)
    cells = Cells.trained(vectors_nd, 50, seed=1, device=Device())
    rows, cell, own, cut_off = cells.visits(vectors_nd, 0.9)
    lives = dict(zip(rows[own].tolist(), cell[own].tolist(), strict=True))
    visits = set(zip(rows.tolist(), cell.tolist(), strict=True))
    pairs = brute_cosine(vectors_nd, 0.9)
    assert cut_off == 0
    assert len(lives) == len(vectors_nd)
    assert any(lives[a] != lives[b] for a, b in pairs), "no pair lies across a border"
    assert all((a, lives[b]) in visits or (b, lives[a]) in visits for a, b in pairs)


def test_in_many_dimensions_few_vectors_are_near_a_border_and_their_pairs_meet_all_the_same() -> None:
    rng = np.random.default_rng(6)
    vectors_nd = vectors_around(rng, 300, 6, 256, 0.7)
    noise = rng.normal(size=vectors_nd[::4].shape).astype(np.float32)
    vectors_nd[::4] = unit(vectors_nd[1::4] + (0.3 / 256**0.5) * noise)
    cells = Cells.trained(vectors_nd, 20, seed=1, device=Device())
    pairs = brute_cosine(vectors_nd, 0.95)

    def meeting(border: float) -> tuple[int, int]:
        cells.border = border
        rows, cell, own, _ = cells.visits(vectors_nd, 0.95)
        lives = dict(zip(rows[own].tolist(), cell[own].tolist(), strict=True))
        visits = set(zip(rows.tolist(), cell.tolist(), strict=True))
        return len(visits), sum((a, lives[b]) in visits or (b, lives[a]) in visits for a, b in pairs)

    measured, (every, all_pairs), (alone, fewer) = cells.border, meeting(0.5), meeting(0.0)
    visits, met = meeting(measured)
    assert all_pairs == len(pairs) > 500
    assert met >= 0.999 * len(pairs)
    assert visits < every / 2
    assert visits > alone
    assert fewer < met


def test_a_cell_of_copies_gives_a_star_and_no_clique(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "FLAT_ROWS", 100)
    rng = np.random.default_rng(5)
    vectors_nd = unit(np.concatenate([np.ones((900, 8)) + 1e-3 * rng.normal(size=(900, 8)), rng.normal(size=(300, 8))]))
    (first, second, _), _ = cosine_pairs(vectors_nd.astype(np.float32), 0.99, most=16)
    assert len(first) < 1200 * 16
    groups = np.arange(len(vectors_nd))
    for _ in range(20):
        np.minimum.at(groups, second, groups[first])
        np.minimum.at(groups, first, groups[second])
    assert set(groups[:900]) == {0}


def test_visitors_are_compared_with_those_who_live_here_and_not_with_each_other() -> None:
    vectors_nd = unit(np.ones((4, 3), np.float32))
    living = np.array([True, False, False, True])
    (first, second, _), _ = cosine_pairs(vectors_nd, 0.9, ALL, living_n=living)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == {(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)}
