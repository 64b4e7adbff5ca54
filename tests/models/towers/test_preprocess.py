"""Images are resized, cut and normalised bit for bit as transformers' slow processors do it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.towers.preprocess import Preprocessing, flexible_size
from tests.models.towers import tiny

SHAPES = [(32, 32), (64, 33), (33, 64), (7, 90), (300, 41), (1, 1)]


def pictures(shapes: list[tuple[int, int]] = SHAPES) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def ours(processor: Any, image: np.ndarray) -> np.ndarray:
    said = json.loads(processor.to_json_string())
    preprocessing = Preprocessing.of(said, "here")
    return preprocessing.normalise(torch.from_numpy(preprocessing(image).copy())).permute(2, 0, 1).numpy()


@pytest.mark.parametrize("kind", [kind for kind in tiny.KINDS if kind != "siglip2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_image_comes_out_as_from_transformers(kind: str, shape: tuple[int, int]) -> None:
    processor = tiny.image_processor(kind)
    (image,) = pictures([shape])
    (expected,) = processor(images=[image], return_tensors="np", input_data_format="channels_last")["pixel_values"]
    assert ours(processor, image) == pytest.approx(expected, abs=2e-6)


def test_an_efficientnet_that_normalises_twice() -> None:
    processor = type(tiny.image_processor("align"))(size={"height": 20, "width": 24}, image_std=[0.5, 0.25, 0.2])
    (image,) = pictures([(40, 40)])
    (expected,) = processor(images=[image], return_tensors="np")["pixel_values"]
    assert ours(processor, image) == pytest.approx(expected, abs=1e-5)


def test_what_is_smaller_than_the_cut_is_set_in_black() -> None:
    processor = type(tiny.image_processor("clip"))(do_resize=False, crop_size={"height": 12, "width": 9})
    for shape in [(5, 6), (20, 4), (13, 13), (12, 9)]:
        (image,) = pictures([shape])
        (expected,) = processor(images=[image], return_tensors="np")["pixel_values"]
        assert ours(processor, image) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("shape", [(2, 40), (300, 9), (40, 1100)])
def test_a_slim_image_is_resized_only_where_it_is_kept(shape: tuple[int, int]) -> None:
    processor = tiny.image_processor("clip")
    y_hw, x_hw = np.mgrid[0 : shape[0], 0 : shape[1]]
    image = np.stack([128 + 100 * np.sin((a * y_hw + b * x_hw) / 5) for a, b in [(1, 0), (0, 1), (1, 2)]], axis=2)
    image = image.astype(np.uint8)
    (expected,) = processor(images=[image], return_tensors="np", do_normalize=False, do_rescale=False)["pixel_values"]
    prepared = Preprocessing.of(json.loads(processor.to_json_string()), "here")(image)
    assert np.abs(prepared.transpose(2, 0, 1).astype(int) - expected).max() <= 2  # two passes, rounded in between


def test_the_slimmest_image_takes_little_memory() -> None:
    resource = pytest.importorskip("resource")
    preprocessing = Preprocessing.of(json.loads(tiny.image_processor("clip").to_json_string()), "here")
    large = replace(preprocessing, size=224, crop=(224, 224))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert large(np.zeros((1, 50_000, 3), np.uint8)).shape == (224, 224, 3)  # whole: 224 x 11.2 million px
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([(16, 256), (14, 64), (8, 16)]))
def test_the_size_in_patches_is_that_of_transformers(height: int, width: int, kind: tuple[int, int]) -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    expected = get_image_size_for_max_num_patches(height, width, *kind)
    assert flexible_size(height, width, *kind) == expected
    assert expected[0] * expected[1] <= kind[0] ** 2 * kind[1]


def test_a_config_of_2021_is_read_as_it_was_meant() -> None:
    """openai/clip-vit-base-patch32 as it lies on the hub."""
    said: dict[str, Any] = {"crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True}
    said |= {"feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": 224}
    said |= {"image_mean": [0.5] * 3, "image_std": [0.2] * 3}
    found = Preprocessing.of(said, "here")
    assert (found.size, found.crop, found.resample) == (224, (224, 224), Image.Resampling.BICUBIC)
    assert found(np.zeros((300, 700, 3), np.uint8)).shape == (224, 224, 3)


def test_a_processor_within_a_processor_is_found(tmp_path: Path) -> None:
    said = json.loads(tiny.image_processor("siglip").to_json_string())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": said, "processor_class": "Mine"}))
    assert Preprocessing.load(tmp_path) == Preprocessing.of(said, "here")


def test_what_is_missing_or_unknown_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no preprocessor_config\.json; save the model's image processor"):
        Preprocessing.load(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json has no image_mean and image_std"):
        Preprocessing.load(tmp_path)
    means = {"image_mean": [0] * 3, "image_std": [1] * 3}
    with pytest.raises(ValueError, match=r"size = \{'max_height': 3\}; expected shortest_edge, or height and width"):
        Preprocessing.of(means | {"size": {"max_height": 3}}, "here")
