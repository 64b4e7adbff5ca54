"""Images come out as Pillow would make them, of one size, whatever went in; and nothing that goes in costs too much."""

from __future__ import annotations

import io
import math
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models.data import images as subject
from models.data.collate import ENCODED, Decoded, Room
from models.data.images import (
    crop_later,
    image_of,
    normalise,
    preprocessor_config,
    random_box,
    save_preprocessor,
    training_crop,
)
from models.data.shards import Damaged, Sample
from models.recipe import Images
from models.towers.preprocess import Preprocessing
from tests.benchmarks.photographs import photograph
from tests.models.data.tars_made import picture

WHOLE = Images(side=32, crop=(1, 1))


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """uint8 (height, width, 3), as smooth as a photograph."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(image_hwc: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image_hwc).save(sink, kind, **options)
    return sink.getvalue()


def sample(data: bytes, ending: str = "jpg") -> Sample:
    return Sample("key", {"txt": b"", ending: data})


@given(st.integers(20, 90), st.integers(20, 90), st.integers(16, 64), st.integers(0, 1000))
def test_pixels_are_pillows_bicubic_ones_of_the_box(width: int, height: int, side: int, seed: int) -> None:
    image = noise(width, height)
    images = Images(side=side, crop=(0.4, 1))
    left, top, wide, tall = random_box(width, height, images.crop, Random(seed))
    found = training_crop(sample(encoded(image)), images, Random(seed)).resized()
    assert (found.shape, found.dtype) == ((3, side, side), torch.uint8)
    wanted = Image.fromarray(image[top : top + tall, left : left + wide]).resize((side, side), Image.Resampling.BICUBIC)
    off = np.abs(found.permute(1, 2, 0).numpy().astype(int) - np.asarray(wanted))
    assert off.max() <= 3
    assert off.mean() < 0.5


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 1 << 30))
def test_a_box_lies_within_the_image_and_is_never_slim(
    width: int, height: int, low: float, high: float, seed: int
) -> None:
    shares = min(low, high), max(low, high)
    left, top, wide, tall = random_box(width, height, shares, Random(seed))
    assert 0 <= left <= left + wide <= width
    assert 0 <= top <= top + tall <= height
    assert wide >= 1 <= tall
    if min(wide, tall) > 8:
        assert 0.6 < wide / tall < 1.6
        if width == height:  # where a box fits, it has its share
            assert shares[0] * 0.8 < wide * tall / (width * height) < shares[1] * 1.2 + 0.01


def test_boxes_reach_every_corner_and_every_share() -> None:
    boxes = [random_box(100, 100, (0.25, 1), Random(seed)) for seed in range(500)]
    assert min(box[0] for box in boxes) == min(box[1] for box in boxes) == 0
    assert max(box[0] + box[2] for box in boxes) == max(box[1] + box[3] for box in boxes) == 100
    areas = np.array([box[2] * box[3] for box in boxes]) / 1e4
    assert areas.min() < 0.3
    assert areas.max() > 0.95
    ratios = np.log([box[2] / box[3] for box in boxes])
    assert abs(ratios.mean()) < 0.03


def test_a_flip_mirrors_what_would_have_been_there_and_happens_as_often_as_asked() -> None:
    data = encoded(noise(40, 32))
    flipped = 0
    for seed in range(200):
        plain = training_crop(sample(data), Images(side=32, flip=0), Random(seed)).resized()
        found = training_crop(sample(data), Images(side=32, flip=0.3), Random(seed)).resized()
        mirrored = torch.equal(found, plain.flip(2))
        assert mirrored or torch.equal(found, plain)
        flipped += mirrored
    assert 35 <= flipped <= 85


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_crop_that_waits_does_not_hold_the_whole_image(format: str) -> None:
    crop = training_crop(sample(encoded(noise(60, 60), format)), Images(side=32, crop=(0.3, 0.4)), Random(1))
    assert crop.pixels_hwc.base is None


def test_the_same_dice_give_the_same_bits_and_others_do_not() -> None:
    data = encoded(noise(60, 60))
    images = Images(side=32, crop=(0.3, 1))
    one, again, other = (training_crop(sample(data), images, Random(seed)).resized() for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("size", [(640, 480), (1200, 900), (1200, 400)])
def test_large_jpegs_at_reduced_scale_look_as_decoded_whole(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of boxes that begin and end between the blocks of 8 px: others are moved by less than a pixel of the reduced."""
    monkeypatch.setattr(subject, "random_box", lambda *given: tuple(side // 8 * 8 for side in random_box(*given)))
    data, images = photograph(size, seed=1), Images(side=96, crop=(0.9, 1))
    scales, draft = [], JpegImageFile.draft

    def watched(image: JpegImageFile, mode: str, size: tuple[int, int]) -> object:
        before, made = image.width, draft(image, mode, size)
        scales.append(round(before / image.width))
        return made

    monkeypatch.setattr(JpegImageFile, "draft", watched)
    reduced = training_crop(sample(data), images, Random(5)).resized().float()
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: None)
    whole = training_crop(sample(data), images, Random(5)).resized().float()
    assert scales[0] >= 2
    assert 10 * math.log10(255**2 / float((reduced - whole).square().mean())) > 38


def test_a_small_image_is_enlarged() -> None:
    assert training_crop(sample(encoded(noise(5, 7))), WHOLE, Random(0)).resized().shape == (3, 32, 32)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    plain = noise(32, 32)
    grey = np.asarray(Image.fromarray(plain).convert("L"))
    if mode == "I;16":
        data = encoded(grey.astype(np.uint16) * 257)
    else:
        sink = io.BytesIO()
        Image.fromarray(plain).convert(mode).save(sink, "JPEG" if mode == "CMYK" else "PNG", quality=95)
        data = sink.getvalue()
    found = training_crop(sample(data), WHOLE, Random(0)).resized().float().numpy()
    coloured = mode in ("P", "RGBA", "CMYK")
    wanted = plain.transpose(2, 0, 1) if coloured else np.stack([grey] * 3)
    if mode != "1":
        assert np.abs(found - wanted).mean() < (20 if mode in ("P", "CMYK") else 2)


def test_transparency_lies_over_white() -> None:
    image = np.zeros((32, 32, 4), np.uint8)
    image[:16, :, 3] = 255
    found = training_crop(sample(encoded(image)), WHOLE, Random(0)).resized()
    assert found[:, :16].max() == 0
    assert found[:, 16:].min() == 255


# -- hostile ones ------------------------------------------------------------------------------------------------------


def refused(data: bytes) -> str:
    with pytest.raises(Damaged) as found:
        training_crop(sample(data), WHOLE, Random(0)).resized()
    assert found.value.reason == "undecodable image"
    assert "\n" not in str(found.value)
    return str(found.value)


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size; of black, it is small."""
    sink = io.BytesIO()
    Image.new("1", (width, height)).save(sink, "PNG", optimize=True)
    return sink.getvalue()


def test_an_image_of_too_many_pixels_is_not_decoded() -> None:
    assert "64000000 pixels" in refused(bomb(8000, 8000)).replace("8000 x 8000", "64000000")


def test_only_one_large_image_is_decoded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "LARGE", 100)
    inside, most = [], [0]
    plain = subject.rgb

    def watched(image: ImageFile) -> np.ndarray:
        inside.append(1)
        most[0] = max(most[0], len(inside))
        made = plain(image)
        inside.pop()
        return made

    monkeypatch.setattr(subject, "rgb", watched)
    data = encoded(noise(300, 300))
    threads = [
        threading.Thread(target=lambda: [training_crop(sample(data), WHOLE, Random(0)).resized() for _ in range(5)])
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


def test_the_largest_image_that_is_decoded_costs_a_bounded_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert training_crop(sample(bomb(7000, 7000)), WHOLE, Random(0)).resized().max() == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000  # KiB; pixels as 4, 3 and 1 bytes


def test_truncated_and_foreign_bytes_are_refused_with_a_reason() -> None:
    whole = encoded(noise(64, 64), "JPEG")
    assert "truncated" in refused(whole[: len(whole) // 2])
    assert "is no JPEG, PNG, WebP or GIF" in refused(b"<html>not found</html>")
    assert "is no JPEG, PNG, WebP or GIF" in refused(b"")
    assert "is no JPEG, PNG, WebP or GIF" in refused(encoded(noise(8, 8), "BMP"))


def test_real_malformed_images_are_decoded_or_refused(shared_data: Path) -> None:
    """Of the corpora of Pillow, image-rs and go-fuzz: whatever they do, it is one or the other."""
    files = sorted(
        path for path in (shared_data / "malformed").rglob("*") if path.is_file() and path.stat().st_size < 200_000
    )
    counts = {True: 0, False: 0}
    for path in files[::4]:
        try:
            found = training_crop(sample(path.read_bytes()), WHOLE, Random(0)).resized()
            assert (found.shape, found.dtype) == ((3, 32, 32), torch.uint8)
            counts[True] += 1
        except Damaged:
            counts[False] += 1
    assert min(counts.values()) > 10


def test_the_image_is_found_by_its_ending_and_its_absence_is_told() -> None:
    assert image_of(Sample("k", {"webp": b"w", "txt": b""})) == b"w"
    assert image_of(Sample("k", {"png": b"p", "jpg": b"j"})) == b"j"
    with pytest.raises(Damaged, match="k: no image: it has txt, cls; expected jpg, png or webp"):
        image_of(Sample("k", {"txt": b"", "cls": b""}))
    with pytest.raises(Damaged, match="k: no image: it has nothing"):
        image_of(Sample("k", {}))


# -- what evaluation does ----------------------------------------------------------------------------------------------


def test_what_is_exported_is_what_transformers_and_evaluation_do(tmp_path: Path) -> None:
    images = Images(side=48, mean=(0.1, 0.2, 0.3), deviation=(0.4, 0.5, 0.6))
    save_preprocessor(images, tmp_path)
    ours, theirs = Preprocessing.load(tmp_path), CLIPImageProcessorPil.from_pretrained(tmp_path)
    image = noise(90, 70)
    prepared = ours(image)
    wanted = theirs(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(ours.normalise(torch.from_numpy(prepared.copy())).permute(2, 0, 1), wanted, atol=1e-5)


def test_training_normalises_as_evaluation_does(tmp_path: Path) -> None:
    images = Images(side=32, mean=(0.1, 0.2, 0.3), deviation=(0.4, 0.5, 0.6))
    pixels = torch.from_numpy(noise(32, 32).copy())
    found = normalise({"pixel_values": pixels.permute(2, 0, 1)[None], "input_ids": torch.ones(1, 2)}, images)
    wanted = Preprocessing.of(preprocessor_config(images), "here").normalise(pixels).permute(2, 0, 1)[None]
    assert torch.allclose(found["pixel_values"], wanted, atol=1e-5)
    assert torch.equal(found["input_ids"], torch.ones(1, 2))


def test_a_square_image_of_the_right_size_is_trained_on_as_it_is_evaluated(tmp_path: Path) -> None:
    data = picture(3, 32, 32)
    trained = training_crop(sample(data), WHOLE, Random(1)).resized()
    save_preprocessor(WHOLE, tmp_path)
    evaluated = Preprocessing.load(tmp_path)(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    box = random_box(32, 32, WHOLE.crop, Random(1))
    if box == (0, 0, 32, 32):
        assert np.array_equal(trained.permute(1, 2, 0).numpy(), evaluated)


@pytest.mark.parametrize("missing", [0, 1])
def test_what_is_cropped_later_counts_as_all_that_its_sample_holds(missing: int) -> None:
    room = Room({"pixel_values": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)})
    data = encoded(noise(40, 40))
    beside = bytes(ENCODED - len(data) - missing)
    crop_later(Sample("key", {"jpg": data, "npy": beside}), WHOLE, Random(0), room, 0)
    assert room.full == (not missing)
    assert room.finish() == []
    assert room["pixel_values"].any()


def test_what_is_decoded_later_counts_as_its_pixels() -> None:
    found = list[int]()

    class Heard(Room):
        def later(self, at: int, nbytes: int, decode: Callable[[], Decoded]) -> None:
            found.append(decode().nbytes)

    room = Heard({"pixel_values": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)})
    crop_later(sample(encoded(noise(40, 40))), WHOLE, Random(0), room, 0)
    assert found[0] in (40 * 40 * 3, 40 * 40 * 4)
