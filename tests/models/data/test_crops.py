"""Views of an image: as many as asked for, of their sizes, changed by the dice alone."""

from __future__ import annotations

import io
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.data.collate import Room
from models.data.crops import FIRST, SMALL, Change, ManyCrops, changed_by, jittered
from models.data.images import normalise
from models.data.shards import Damaged, Sample
from models.recipe import Data
from tests.models.data.tars_made import picture


def reader(**changes: Any) -> ManyCrops:
    data = {
        "kind": "crops",
        "images": {"side": 32, "crop": [0.4, 1.0], "flip": 0.5},
        "crops": {"count": 3, "side": 16, "crop": [0.05, 0.4]},
    }
    return ManyCrops(Data.model_validate(data | changes))


def views(sample: Sample, seed: int, **changes: Any) -> dict[str, torch.Tensor]:
    collate = reader(**changes)
    room = Room({name: torch.full((1, *shape), 7, dtype=torch.uint8) for name, shape in collate.room().items()})
    collate.row(sample, Random(seed), room, 0)
    return room


def ramp() -> Sample:
    """Red grows from left to right, green from top to bottom."""
    rows, columns = np.mgrid[0:100, 0:100]
    sink = io.BytesIO()
    Image.fromarray(np.stack([columns * 2.5, rows * 2.5, 0 * rows], -1).astype(np.uint8)).save(sink, "PNG")
    return Sample("key", {"png": sink.getvalue()})


def test_two_large_and_some_small_views_that_the_dice_decide() -> None:
    sample = Sample("key", {"jpg": picture(3, 100, 80)})
    found = views(sample, 0)
    assert {name: tuple(rows.shape) for name, rows in found.items()} == {
        "pixel_values": (1, 2, 3, 32, 32),
        "small_pixel_values": (1, 3, 3, 16, 16),
    }
    again, other = views(sample, 0), views(sample, 1)
    for name, rows in found.items():
        assert torch.equal(rows, again[name])
        assert not torch.equal(rows, other[name])
        assert len({view.numpy().tobytes() for view in rows[0]}) == len(rows[0])
    assert set(views(sample, 0, crops={"count": 0})) == {"pixel_values"}


def test_large_views_show_more_of_an_image_than_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.data.crops.changed_by", lambda image, change, dice: image)
    shares: dict[str, list[float]] = {"pixel_values": [], "small_pixel_values": []}
    for seed in range(40):
        for name, rows in views(ramp(), seed).items():
            for view in rows[0].float():
                wide, high = (view[0].max() - view[0].min()) / 250, (view[1].max() - view[1].min()) / 250
                shares[name].append(float(wide * high))
    assert min(shares["pixel_values"]) > 0.33
    assert 0.03 < min(shares["small_pixel_values"]) < max(shares["small_pixel_values"]) < 0.45


def test_a_mirrored_view_is_mirrored_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.data.crops.changed_by", lambda image, change, dice: image)
    reds = [view[0].float() for seed in range(60) for view in views(ramp(), seed)["pixel_values"][0]]
    falling = sum(float(red[:, 0].mean()) > float(red[:, -1].mean()) for red in reds)
    assert 40 <= falling <= 80


def test_changes_come_as_often_as_they_should() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    rough = np.abs(np.diff(np.asarray(image).astype(int), axis=0)).mean()
    grey = smooth = 0
    for seed in range(200):
        found = np.asarray(changed_by(image, SMALL, Random(seed))).astype(int)
        grey += bool((found.max(-1) == found.min(-1)).all())
        smooth += np.abs(np.diff(found, axis=0)).mean() < 0.6 * rough
    assert 22 <= grey <= 60  # one in five
    assert 60 <= smooth <= 130  # half are blurred, by a radius that shows or not
    solar = np.asarray(changed_by(image, Change(0.0, 1.0), _Never())).astype(int)
    original = np.asarray(image).astype(int)
    assert (solar == np.where(original < 128, original, 255 - original)).all()
    blurred = np.asarray(changed_by(image, FIRST, _Never())).astype(int)
    assert np.abs(np.diff(blurred, axis=0)).mean() < 0.9 * np.abs(np.diff(original, axis=0)).mean()


class _Never(Random):
    """Chances below 1 do not come true; drawn numbers are in the middle."""

    def random(self) -> float:
        return 0.999999

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def test_a_hue_turned_by_nothing_and_strengths_of_one_leave_colours_alone() -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    found = np.asarray(jittered(image, _Never(0))).astype(int)
    assert np.abs(found - np.asarray(image).astype(int)).max() <= 6  # of the way to HSV and back
    assert len({jittered(image, Random(seed)).tobytes() for seed in range(10)}) == 10


def test_what_is_no_image_is_counted() -> None:
    with pytest.raises(Damaged, match="undecodable image"):
        views(Sample("key", {"jpg": b"nothing"}), 0)
    with pytest.raises(Damaged, match="no image"):
        views(Sample("key", {"txt": b"nothing"}), 0)


def test_all_views_are_normalised_alike() -> None:
    data = Data.model_validate({"kind": "crops", "images": {"side": 32, "mean": [0.5] * 3, "deviation": [0.25] * 3}})
    batch = {"pixel_values": torch.full((1, 2, 3, 4, 4), 255), "small_pixel_values": torch.zeros(1, 5, 3, 2, 2)}
    found = normalise(batch, data.images)
    assert (found["pixel_values"] == 2).all()
    assert (found["small_pixel_values"] == -2).all()
