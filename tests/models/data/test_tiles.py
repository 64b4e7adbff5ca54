"""Images as the models of the LLaVA family see them: as transformers' own image processors make them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import LlavaNextProcessor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models.data.images import normalise, preprocessor_config
from models.data.shards import Damaged
from models.data.tiles import LONGEST, grid_of, seen, tokens_of
from models.recipe import Images
from models.towers.preprocess import Preprocessing

SIDE = 32
GRIDS = ((32, 64), (64, 32), (64, 64), (96, 32), (32, 96))
SIZES = [(32, 32), (64, 64), (33, 31), (40, 90), (90, 40), (200, 64), (64, 200), (17, 120), (120, 17), (31, 95), (7, 5)]
"""Heights and widths."""
PUBLISHED = Images(
    side=336, fit="anyres", tokens=576, grids=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
)
PROCESSORS: dict[str, Any] = {
    "centre": CLIPImageProcessorPil,
    "pad": LlavaImageProcessorPil,
    "stretch": SiglipImageProcessorPil,
    "anyres": LlavaNextImageProcessorPil,
}


def images(fit: Any) -> Images:
    return Images(side=SIDE, fit=fit, tokens=4, grids=GRIDS if fit == "anyres" else ())


def encoded(size: tuple[int, int], seed: int = 0) -> tuple[bytes, Image.Image]:
    """A PNG of a smooth picture, and that picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue(), picture


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", PROCESSORS)
def test_pixels_are_those_of_transformers(fit: str, size: tuple[int, int]) -> None:
    data, picture = encoded(size)
    said = preprocessor_config(images(fit))
    assert f"{said.pop('image_processor_type')}Pil" == PROCESSORS[fit].__name__
    expected = PROCESSORS[fit](**said)(picture, return_tensors="pt")["pixel_values"]
    found = seen(data, images(fit), "a")
    pixels = normalise({"pixel_values": found.tiles_t3ss}, images(fit))["pixel_values"]
    assert found.size == size
    assert pixels.shape == expected.view(-1, 3, SIDE, SIDE).shape
    levels = (pixels - expected.view(-1, 3, SIDE, SIDE)).abs() * 0.27 * 255  # of 255
    assert levels.mean() < (3 if fit == "centre" else 0.6)  # the centre may lie half a pixel elsewhere
    assert fit == "centre" or levels.quantile(0.99) <= 3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", ["centre", "stretch"])
def test_what_a_model_says_of_its_images_lets_it_see_what_it_was_trained_on(fit: str, size: tuple[int, int]) -> None:
    data, picture = encoded(size)
    shown = Preprocessing.of(preprocessor_config(images(fit)), "a model")(np.asarray(picture.convert("RGB")))
    trained_on = seen(data, images(fit), "a").tiles_t3ss[0].permute(1, 2, 0)
    assert shown.shape == (SIDE, SIDE, 3)
    assert np.abs(shown.astype(float) - trained_on.numpy()).mean() < (3 if fit == "centre" else 0.6)


@pytest.mark.parametrize("size", [*SIZES, (336, 336), (480, 640), (1024, 300), (300, 1024), (1000, 3), (3, 1000)])
@pytest.mark.parametrize("chosen", [images("anyres"), PUBLISHED], ids=["small", "published"])
def test_tiles_and_tokens_are_those_of_transformers(chosen: Images, size: tuple[int, int]) -> None:
    assert chosen.tokens is not None
    assert grid_of(size, chosen) == select_best_resolution(size, [list(grid) for grid in chosen.grids])
    patch = chosen.side // round(chosen.tokens**0.5)
    theirs: Any = LlavaNextProcessor.__new__(LlavaNextProcessor)
    theirs.patch_size, theirs.num_additional_image_tokens = patch, 0
    theirs.image_processor = PROCESSORS["anyres"](image_grid_pinpoints=[list(grid) for grid in chosen.grids])
    assert tokens_of(size, chosen) == theirs._get_number_of_features(*size, chosen.side, chosen.side)


def test_a_square_of_one_image_takes_the_tokens_of_a_square() -> None:
    assert tokens_of((123, 45), images("pad")) == tokens_of((123, 45), images("centre")) == 4


@pytest.mark.parametrize("fit", PROCESSORS)
def test_a_long_and_thin_image_takes_no_more_memory_than_others(fit: str) -> None:
    sink = io.BytesIO()
    Image.new("RGB", (30 * LONGEST, 2), "red").save(sink, "PNG")
    found = seen(sink.getvalue(), images(fit), "a")
    assert found.size == (2, 30 * LONGEST)
    assert found.tiles_t3ss.dtype == torch.uint8


@pytest.mark.parametrize("fit", PROCESSORS)
def test_what_is_no_image_is_damaged(fit: str) -> None:
    with pytest.raises(Damaged, match="a: undecodable image"):
        seen(b"\xff\xd8\xff and then nothing", images(fit), "a")
