"""Vectors of images take the places that are theirs, and nobody learns to predict them."""

from __future__ import annotations

import pytest
import torch

from models.fusion.prefix import labels_of, spliced

PLACES = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 1, 0]]).bool()


def test_vectors_come_in_order_and_all_else_stays() -> None:
    embedded, features = torch.randn(3, 5, 4), torch.randn(4, 4)
    found = spliced(embedded, PLACES, features)
    assert torch.equal(found[PLACES], features)
    assert torch.equal(found[~PLACES], embedded[~PLACES])


def test_gradients_reach_the_vectors_and_not_the_embeddings_under_them() -> None:
    embedded, features = torch.randn(3, 5, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    weights = torch.randn(3, 5, 4)
    (spliced(embedded, PLACES, features) * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(features.grad, weights[PLACES])  # type: ignore[arg-type]
    assert torch.equal(embedded.grad, weights * ~PLACES[..., None])  # type: ignore[arg-type]


def test_no_vectors_at_all_are_part_of_the_graph_with_a_gradient_of_zero() -> None:
    maker = torch.nn.Linear(3, 4)
    features = maker(torch.randn(1, 3))[:0]
    spliced(torch.randn(3, 5, 4), torch.zeros_like(PLACES), features).sum().backward()  # type: ignore[no-untyped-call]
    assert maker.weight.grad is not None
    assert not maker.weight.grad.any()


@pytest.mark.parametrize("count", [0, 3, 5])
def test_more_or_fewer_vectors_than_places_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"4 places for images, and {count} vectors for them; set data.images.tokens"):
        spliced(torch.zeros(3, 5, 4), PLACES, torch.zeros(count, 4))


def test_labels_are_what_follows_where_it_is_learnt_and_never_an_image() -> None:
    ids = torch.tensor([[7, 9, 9, 1, 2], [3, 4, 5, 6, 7], [9, 1, 2, 9, 3]])
    learnt = torch.tensor([[0, 0, 0, 0, 1], [1, 1, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()
    assert labels_of(ids, learnt, PLACES).tolist() == [
        [-100, -100, -100, 2, -100],
        [4, -100, -100, 7, -100],
        [1, 2, -100, 3, -100],
    ]
