"""The class of an image, wherever a sample says it."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from models.data.collate import Room
from models.data.images import training_crop
from models.data.labelled import Labelled, class_of
from models.data.shards import Damaged, Sample
from models.recipe import Data, Images, Labels
from tests.models.data.tars_made import picture

NAMES = ("cat", "dog")


@pytest.mark.parametrize(
    ("members", "labels", "found"),
    [
        ({"cls": b"3"}, Labels(), 3),
        ({"cls": b" 1\n"}, Labels(names=NAMES), 1),
        ({"cls": b"dog"}, Labels(names=NAMES), 1),
        ({"json": b'{"kind": "dog"}'}, Labels(field="kind", names=NAMES), 1),
        ({"json": b'{"kind": 0}'}, Labels(field="kind"), 0),
        ({"cls": b"2"}, Labels(names=NAMES), None),
        ({"cls": b"-1"}, Labels(), None),
        ({"cls": b"cow"}, Labels(names=NAMES), None),
        ({"json": b'{"kind": true}'}, Labels(field="kind", names=NAMES), None),
        ({"json": b'{"kind": null}'}, Labels(field="kind"), None),
        ({"json": b"{"}, Labels(field="kind"), None),
        ({"txt": b"1"}, Labels(), None),
    ],
)
def test_a_class_is_a_number_or_one_of_the_names(members: dict[str, bytes], labels: Labels, found: int | None) -> None:
    if found is None:
        with pytest.raises(Damaged, match=r"key: no class: .* expected"):
            class_of(Sample("key", members), labels)
    else:
        assert class_of(Sample("key", members), labels) == found


def test_a_batch_has_pixels_and_classes(tmp_path: Path) -> None:
    collate = Labelled(Data.model_validate({"kind": "labels", "images": {"side": 16}}))
    room = Room({name: torch.zeros(2, *shape, dtype=torch.uint8) for name, shape in collate.room().items()})
    samples = [Sample(str(number), {"jpg": picture(number), "cls": b"%d" % number}) for number in range(2)]
    rows = [collate.row(sample, Random(0), room, at) for at, sample in enumerate(samples)]
    room.finish()
    assert torch.equal(collate.batch(rows)["classes"], torch.tensor([0, 1]))
    assert room["pixel_values"].shape == (2, 3, 16, 16)
    for sample, pixels in zip(samples, room["pixel_values"], strict=True):
        assert torch.equal(pixels, training_crop(sample, Images(side=16), Random(0)).resized())
