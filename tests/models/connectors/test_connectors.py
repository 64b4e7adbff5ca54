"""Connectors give what the systems that they are of give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.internvl.modeling_internvl import InternVLModel
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from models.connectors.pixel_shuffle import PixelShuffle, shuffled
from models.connectors.projections import Linear, Mlp


def test_two_layers_are_llava_s_projector() -> None:
    heads: Any = {"num_attention_heads": 1}
    towers = CLIPVisionConfig(hidden_size=6, **heads), LlamaConfig(hidden_size=10, **heads)
    config = LlavaConfig(vision_config=towers[0], text_config=towers[1])
    theirs, own = LlavaMultiModalProjector(config), Mlp(6, 10)
    own.load_state_dict(theirs.state_dict())
    features = torch.randn(3, 5, 6)
    torch.testing.assert_close(own(features), theirs(features))


def test_one_layer_is_linear() -> None:
    own, rows = Linear(6, 10), torch.randn(2, 3, 6)
    zero = own(torch.zeros(2, 3, 6))
    torch.testing.assert_close(own(3 * rows) - zero, 3 * (own(rows) - zero))


@pytest.mark.parametrize("side", [1, 2, 4])
def test_shuffling_keeps_every_number_and_puts_neighbours_together(side: int) -> None:
    places = torch.cartesian_prod(torch.arange(8), torch.arange(8)).float()[None]  # line and column of each patch
    found = shuffled(places, side)
    assert found.shape == (1, 64 // side**2, 2 * side**2)
    lines, columns = found[0].view(-1, side**2, 2).unbind(-1)
    assert (lines // side == (lines // side)[:, :1]).all()
    assert (columns // side == (columns // side)[:, :1]).all()
    first = lines[:, 0] // side * (8 // side) + columns[:, 0] // side
    assert first.tolist() == list(range(64 // side**2))  # line by line


def test_shuffled_are_those_of_internvl_but_for_their_order_within() -> None:
    features = torch.randn(2, 16, 3)
    theirs = InternVLModel.pixel_shuffle(None, features.view(2, 4, 4, 3), 0.5).reshape(2, 4, 12)  # type: ignore[arg-type]
    own = shuffled(features, 2)
    for square in range(4):
        assert sorted(own[0, square].tolist()) in [sorted(theirs[0, other].tolist()) for other in range(4)]


def test_patches_that_are_no_square_are_refused_in_a_line() -> None:
    with pytest.raises(ValueError, match="17 patches are no squares of 2 x 2; leave the class token out"):
        shuffled(torch.zeros(1, 17, 4), 2)
    with pytest.raises(ValueError, match="9 patches"):
        shuffled(torch.zeros(1, 9, 4), 2)


def test_pixel_shuffle_makes_a_quarter_of_the_vectors_and_all_of_it_learns() -> None:
    connector = PixelShuffle(6, 10)
    found = connector(torch.randn(3, 16, 6))
    assert found.shape == (3, 4, 10)
    found.square().sum().backward()
    assert all(own.grad is not None and own.grad.abs().sum() > 0 for own in connector.parameters())
