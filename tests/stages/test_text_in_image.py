"""Text in images: found where it was rendered and nowhere else, painted over, and what the image is worth then."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from pipeline.rows import RowBatch
from pipeline.stage import Device
from stages.embed import ImageEmbeddings
from stages.score import ClipScore
from stages.text_in_image import RING, MaskedImageEmbeddings, TextInImage, mask_of, painted_over
from tests.models.towers import tiny
from tests.stages.fake_batch import FakeBatch
from tests.stages.gallery import picture

Pixels = np.ndarray
FIGURES = Path(__file__).parents[3] / "shared" / "data" / "openstax_ccby"
PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "coco_cc_by" / "images"
LOOK = TextInImage().open(Device(threads=2))


def scene(text: str | None = None, at: tuple[int, int] = (40, 60), size: int = 32, tilt: float = 0) -> Pixels:
    """240 x 320 px: a red disc on a sky with a slope of colour, and a line of text."""
    ramp = np.linspace(150, 230, 320).astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(ramp, (240, 1))] * 2 + [np.full((240, 320), 240, np.uint8)], axis=2))
    ImageDraw.Draw(image).ellipse((200, 130, 290, 220), fill=(200, 40, 30))
    if text is not None:
        layer = Image.new("L", image.size)
        ImageDraw.Draw(layer).text(at, text, fill=255, font=ImageFont.load_default(size))
        image.paste((10, 10, 40), mask=layer.rotate(tilt, Image.Resampling.BILINEAR))
    return np.asarray(image)


def rows(*images: Pixels | None) -> list[dict[str, Any]]:
    table = LOOK(FakeBatch(pictures=images))
    assert table.schema == TextInImage.adds
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def corners(box: Sequence[float]) -> Pixels:
    """(4, 2) in px of `scene`."""
    found: Pixels = np.reshape(box, (4, 2)) * (320, 240)
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save("clip", tmp_path_factory.mktemp("clip")))


def test_the_golden_row_holds_or_the_revision_is_raised() -> None:
    assert TextInImage.revision == MaskedImageEmbeddings.revision == 1
    (row,) = rows(scene("SALE TODAY"))
    assert row["text_in_image"] == ["SALE TODAY"]
    assert row["text_area"] == pytest.approx(0.0811, abs=0.01)
    assert row["text_confidence"] == pytest.approx(0.99, abs=0.02)
    assert corners(row["text_boxes"][0]) == pytest.approx(GOLDEN, abs=3)


GOLDEN = np.array([(36, 61), (228, 61), (228, 97), (36, 97)])


def test_no_text_is_empty_and_no_image_is_null() -> None:
    nothing = {"text_boxes": [], "text_in_image": [], "text_area": 0, "text_confidence": None}
    assert rows(None, scene(), np.full((9, 9, 3), 7, np.uint8)) == [dict.fromkeys(nothing), nothing, nothing]


def test_lines_come_downwards_each_with_its_box_around_its_letters() -> None:
    image = Image.fromarray(scene("FRESH BREAD", (30, 20)))
    ImageDraw.Draw(image).text((60, 100), "open daily", fill=(0, 60, 0), font=ImageFont.load_default(24))
    (row,) = rows(np.asarray(image))
    assert row["text_in_image"] == ["FRESH BREAD", "open daily"]
    first, second = map(corners, row["text_boxes"])
    assert first[:, 1].max() < second[:, 1].min()
    assert (first.min(axis=0) <= (34, 30)).all()
    assert (second.max(axis=0) >= (160, 118)).all()


def test_slanted_text_has_a_slanted_box() -> None:
    (row,) = rows(scene("WELCOME", (60, 90), 40, tilt=15))
    assert row["text_in_image"] == ["WELCOME"]
    upper_left, upper_right, _, lower_left = corners(row["text_boxes"][0])
    across, down = upper_right - upper_left, lower_left - upper_left
    assert np.degrees(np.arctan2(-across[1], across[0])) == pytest.approx(15, abs=3)
    area = np.linalg.norm(across) * np.linalg.norm(down) / (320 * 240)
    assert row["text_area"] == pytest.approx(area, rel=0.1)


def test_a_disc_is_read_as_a_letter_and_one_letter_is_no_text() -> None:
    assert rows(scene())[0]["text_in_image"] == []
    lenient = TextInImage(letters=1).open(Device())
    assert lenient(FakeBatch(pictures=[scene()]))["text_in_image"].to_pylist() == [["O"]]


@pytest.mark.parametrize("shape", [(1, 1), (7, 200), (1, 5000), (8, 8), (8, 320), (320, 8), (33, 17), (12, 4000)])
def test_images_of_any_shape_are_looked_at(shape: tuple[int, int]) -> None:
    assert rows(np.full((*shape, 3), 120, np.uint8))[0]["text_in_image"] == []


def test_a_banner_is_read() -> None:
    banner = Image.new("RGB", (900, 40), (250, 250, 240))
    ImageDraw.Draw(banner).text((20, 4), "ANNUAL GARDEN MARKET", fill=(0, 0, 0), font=ImageFont.load_default(28))
    assert rows(np.asarray(banner))[0]["text_in_image"] == ["ANNUAL GARDEN MARKET"]


def test_a_reader_that_must_be_surer_finds_less() -> None:
    sure = TextInImage(confidence=1).open(Device())
    assert sure(FakeBatch(pictures=[scene("SALE TODAY")]))["text_in_image"].to_pylist() == [[]]


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason=f"no real photographs: {PHOTOGRAPHS} is absent")
def test_signs_in_photographs_are_read_and_animals_are_not() -> None:
    street, stop, *animals = (
        np.asarray(Image.open(PHOTOGRAPHS / f"{number:012d}.jpg").convert("RGB"))
        for number in (231460, 252332, 20247, 98261)
    )
    first, second, *others = (row["text_in_image"] for row in rows(street, stop, *animals))
    assert "ISTANBUL GRILL" in first
    assert any(line.startswith("Potsdamer") for line in first)
    assert second == ["STOP"]
    assert others == [[], []]


@pytest.mark.skipif(not FIGURES.exists(), reason=f"no real figures: {FIGURES} is absent")
def test_labels_of_a_diagram_are_read_and_painted_over() -> None:
    (path,) = FIGURES.rglob("*Figure_03_02_006.jpg")
    diagram = np.asarray(Image.open(path).convert("RGB"))
    (row,) = rows(diagram)
    assert {"Life Cycle", "Personality/", "Age"} <= set(row["text_in_image"])
    (after,) = rows(painted_over(diagram, row["text_boxes"]))
    assert len(after["text_in_image"]) <= len(row["text_in_image"]) / 4


# -- masking -----------------------------------------------------------------------------------------------------------


def test_a_box_takes_the_colour_around_it_and_the_rest_stays() -> None:
    plain, texted = scene(), scene("SALE TODAY")
    (row,) = rows(texted)
    painted, mask = painted_over(texted, row["text_boxes"]), mask_of(row["text_boxes"], 240, 320) == 1
    assert (painted[~mask] == texted[~mask]).all()
    assert np.abs(painted[mask].astype(int) - plain[mask]).max() <= 32  # the slope of the sky behind the text
    assert painted[mask].std(axis=0).max() == 0
    assert rows(painted)[0]["text_in_image"] == []


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8), max_size=3))
def test_any_boxes_can_be_painted_over(boxes: list[list[float]]) -> None:
    image = scene()[::6, ::6]
    painted = painted_over(image, boxes)
    changed = (painted != image).any(axis=2)
    assert not (changed & (mask_of(boxes, *image.shape[:2]) == 0)).any()
    assert painted.min() >= image.min() - 1
    assert painted.max() <= image.max() + 1


def test_a_box_over_all_of_the_image_takes_its_mean() -> None:
    painted = painted_over(scene(), [[0, 0, 1, 0, 1, 1, 0, 1]])
    assert painted.reshape(-1, 3).std() == pytest.approx(np.rint(scene().mean(axis=(0, 1))).std(), abs=0.5)


def test_neighbouring_boxes_do_not_colour_each_other() -> None:
    image = np.full((40, 100, 3), 100, np.uint8)
    image[:, 30:70] = 0
    halves = [[0.3, 0, 0.5, 0, 0.5, 1, 0.3, 1], [0.5, 0, 0.7, 0, 0.7, 1, 0.5, 1]]
    assert RING < 20
    assert (painted_over(image, halves) == 100).all()


def embeddings(weights: str, images: list[Pixels | None], boxes: list[Any]) -> pa.Array:
    stage = MaskedImageEmbeddings(weights=weights)
    batch = FakeBatch(pa.table({"text_boxes": pa.array(boxes, TextInImage.adds.field(0).type)}), images)
    table = stage.open(Device())(batch)
    assert table.schema == stage.gives()
    return table["masked_image_embedding"].combine_chunks()


def test_only_images_with_text_are_embedded_again(weights: str) -> None:
    box = [[0.1, 0.1, 0.9, 0.1, 0.9, 0.5, 0.1, 0.5]]
    found = embeddings(weights, [None, picture(1), picture(1), None], [None, [], box, box])
    assert found.is_valid().to_pylist() == [False, False, True, False]
    painted = painted_over(picture(1), box)
    (expected,) = ImageEmbeddings(weights=weights).open(Device())(FakeBatch(pictures=[painted]))["image_embedding"]
    assert found[2] == expected


def test_a_caption_that_only_repeats_the_text_scores_less_once_it_is_masked(weights: str) -> None:
    """The caption's embedding is that of the image with its text, as if it told nothing else."""
    texted, plain = scene("SALE TODAY", (20, 40), 50), scene("", (20, 40), 50)
    (row,) = rows(texted)
    whole = ImageEmbeddings(weights=weights).open(Device())(FakeBatch(pictures=[texted, plain]))["image_embedding"]
    table = pa.table(
        {
            "image_embedding": whole[:1],
            "masked_image_embedding": embeddings(weights, [texted], [row["text_boxes"]]),
            "plain_embedding": whole[1:],
            "text_embedding": whole[:1],
        }
    )

    def score(**columns: str) -> float:
        (found,) = ClipScore(**columns, name="score").open(Device())(RowBatch(table, None))["score"].to_pylist()
        return float(found)

    assert score() == pytest.approx(1)
    assert score(image="masked_image_embedding") < 0.999
    assert score(image="masked_image_embedding", text="plain_embedding") > score(text="plain_embedding")
