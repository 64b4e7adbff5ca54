"""Pairs are as they are without views; views are changed, and as many as asked for."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from models.data.collate import Room
from models.data.shards import Damaged, Sample
from models.data.views import PairsAndViews
from models.recipe import Data
from tests.models.data.tars_made import picture
from tests.models.towers import small

SAMPLE = Sample("key", {"jpg": picture(3, 100, 80), "txt": b"the cat sat"})


def row(sample: Sample, seed: int = 0, **crops: Any) -> tuple[list[str], dict[str, torch.Tensor]]:
    said = {"side": 24, "crop": [0.3, 1.0], "count": 2, "flip": 0.5} | crops
    texts = {"vocabulary": 300, "context": 16}
    data = Data.model_validate({"kind": "pairs_and_views", "images": {"side": 32}, "crops": said, "texts": texts})
    collate = PairsAndViews(data, small.words(300, 16))
    room = Room({name: torch.empty(1, *shape, dtype=torch.uint8) for name, shape in collate.room().items()})
    return collate.row(sample, Random(seed), room, 0).texts, room


def test_a_caption_an_image_and_its_views_that_the_dice_decide() -> None:
    texts, found = row(SAMPLE)
    assert texts == ["the cat sat"]
    shapes = {name: tuple(pixels.shape) for name, pixels in found.items()}
    assert shapes == {"pixel_values": (1, 3, 32, 32), "view_pixel_values": (1, 2, 3, 24, 24)}
    again, other = row(SAMPLE)[1], row(SAMPLE, seed=1)[1]
    for name, pixels in found.items():
        assert torch.equal(pixels, again[name])
        assert not torch.equal(pixels, other[name])
    assert not torch.equal(*found["view_pixel_values"][0])


def test_views_are_mirrored_and_the_image_of_the_pair_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float]] = []

    def cut(image_hwc: Any, views: Any, flip: float, dice: Random) -> torch.Tensor:
        seen.append((views.side, flip))
        return torch.zeros(3, views.side, views.side, dtype=torch.uint8)

    monkeypatch.setattr("models.data.views.cut", cut)
    monkeypatch.setattr("models.data.crops.cut", cut)
    row(SAMPLE)
    assert seen == [(32, 0), (24, 0.5), (24, 0.5)]
    seen.clear()
    row(SAMPLE, flip=None)
    assert seen == [(32, 0), (24, 0), (24, 0)]


def test_what_is_no_image_is_counted() -> None:
    with pytest.raises(Damaged, match="undecodable image"):
        row(Sample("key", {"jpg": b"nothing", "txt": b"a cat"}))
