"""Groups out of edges: stars, whatever the order of the edges, and no chains."""

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.dedup.stars import Ids, numbered, smallest, stars, to_centre

Edges = list[tuple[int, int]]


def starred(edges: Edges, count: int, strength: npt.NDArray[np.float32] | None = None) -> Ids:
    first, second = (np.array([edge[end] for edge in edges], np.int64) for end in (0, 1))
    return stars(first, second, np.ones(len(edges), np.float32) if strength is None else strength, count)


def one_by_one(edges: Edges, count: int) -> set[int]:
    """The centres, taken one after the other."""
    near: dict[int, set[int]] = {vertex: set() for vertex in range(count)}
    for a, b in edges:
        near[a].add(b)
        near[b].add(a)
    centres: set[int] = set()
    for vertex in sorted(near, key=lambda v: (-len(near[v]), v)):
        if not near[vertex] & centres:
            centres.add(vertex)
    return centres


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, Edges]:
    count = draw(st.integers(2, 30))
    ends = st.integers(0, count - 1)
    pairs = draw(st.sets(st.tuples(ends, ends).filter(lambda pair: pair[0] < pair[1]), max_size=80))
    return count, sorted(pairs)


@settings(deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_every_member_is_a_neighbour_of_its_centre_in_every_order(
    graph: tuple[int, Edges], dice: st.DataObject
) -> None:
    count, edges = graph
    centre = starred(edges, count)
    near = set(edges) | {(b, a) for a, b in edges}
    assert {int(c) for c in centre} == one_by_one(edges, count)
    assert all(centre[c] == c for c in centre)
    assert all((v, int(c)) in near for v, c in enumerate(centre) if v != c)
    dice.shuffle(edges)  # type: ignore[attr-defined]
    turned = [(b, a) for a, b in edges]
    assert np.array_equal(starred(turned, count), centre)


def test_a_chain_falls_apart_where_components_would_swallow_it() -> None:
    chain = [(n, n + 1) for n in range(99)]
    sizes = np.bincount(starred(chain, 100))
    assert sizes.max() == 3
    assert sizes.sum() == 100


def test_an_edge_to_itself_says_nothing() -> None:
    assert starred([(0, 0), (0, 1), (1, 1)], 3).tolist() == [0, 0, 2]


def test_the_original_is_the_centre_of_crops_that_are_not_like_each_other() -> None:
    assert starred([(0, 3), (1, 3), (2, 3)], 4).tolist() == [3, 3, 3, 3]
    assert smallest(np.array([3, 3, 3, 3, 4])).tolist() == [0, 0, 0, 0, 4]


def test_a_copy_goes_to_the_centre_that_it_is_most_like() -> None:
    edges = [(0, 1), (0, 2), (0, 6), (3, 4), (3, 5), (3, 6)]
    weaker = np.array([1, 1, 0.8, 1, 1, 0.9], np.float32)
    assert starred(edges, 7, weaker).tolist() == [0, 0, 0, 3, 3, 3, 3]
    centre = starred(edges, 7)
    assert centre[6] == 0, "of two that are as like, the earlier one"
    first, second = (np.array([edge[end] for edge in edges]) for end in (0, 1))
    like = to_centre(first, second, weaker, starred(edges, 7, weaker))
    assert like.round(2).tolist() == [1, 1, 1, 1, 1, 1, np.float32(0.9).round(2).item()]


def test_uids_are_numbered_in_their_order_even_where_their_first_halves_are_the_same() -> None:
    head, tail = np.array([9, 5, 5], np.uint64), np.array([0, 7, 3], np.uint64)
    first, second, uids = numbered((head, tail), (head[::-1].copy(), tail[::-1].copy()))
    assert first.tolist() == [2, 1, 0]
    assert second.tolist() == [0, 1, 2]
    assert [half.tolist() for half in uids] == [[5, 5, 9], [3, 7, 0]]
