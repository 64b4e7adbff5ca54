"""Faces: found where they were drawn and photographed, and not among animals, food and furniture."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFilter

from pipeline.errors import SluiceError
from pipeline.stage import Device
from stages.image_privacy import Faces
from stages.shard.blur import blurred
from tests.stages import onnx_file
from tests.stages.fake_batch import FakeBatch

Pixels = np.ndarray
PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "coco_cc_by" / "images"
LOOK = Faces().open(Device())


def portrait(*faces: tuple[int, int, int], width: int = 320, height: int = 240) -> Pixels:
    """A drawing of faces before a wall, each by its centre and half its width (px)."""
    image = Image.new("RGB", (width, height), (90, 120, 140))
    draw = ImageDraw.Draw(image)

    def oval(left: float, top: float, right: float, bottom: float, fill: tuple[int, int, int]) -> None:
        draw.ellipse((x + left * r, y + top * r, x + right * r, y + bottom * r), fill)

    for x, y, r in faces:
        oval(-1.15, -1.6, 1.15, 0.9, (50, 35, 25))
        oval(-0.5, 0.7, 0.5, 2, (200, 150, 120))
        oval(-1, -1.3, 1, 1.3, (225, 180, 150))
        for side in (-0.42, 0.42):
            oval(side - 0.22, -0.32, side + 0.22, -0.08, (245, 240, 235))
            oval(side - 0.11, -0.31, side + 0.11, -0.09, (40, 30, 20))
            brow = (x + (side - 0.3) * r, y - 0.6 * r, x + (side + 0.3) * r, y - 0.1 * r)
            draw.arc(brow, 200, 340, (60, 40, 30), max(2, r // 12))
        nose = [(x - 0.08 * r, y - 0.1 * r), (x - 0.2 * r, y + 0.35 * r), (x + 0.2 * r, y + 0.35 * r)]
        draw.polygon([*nose, (x + 0.08 * r, y - 0.1 * r)], (205, 155, 125))
        oval(-0.35, 0.6, 0.35, 0.85, (170, 70, 70))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1.2)))


def photograph(number: int) -> Pixels:
    return np.asarray(Image.open(PHOTOGRAPHS / f"{number:012d}.jpg").convert("RGB"))


def rows(*images: Pixels | None, **parameters: Any) -> list[dict[str, Any]]:
    look = Faces(**parameters).open(Device()) if parameters else LOOK
    table = look(FakeBatch(pictures=images))
    assert table.schema == Faces.adds
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def test_the_golden_row_holds_or_the_revision_is_raised() -> None:
    assert Faces.revision == 1
    (row,) = rows(portrait((110, 110, 45)))
    assert row["faces"] == 1
    assert row["face_confidence"] == [pytest.approx(0.92, abs=0.03)]
    assert row["face_boxes"] == [pytest.approx([0.2125, 0.2271, 0.4828, 0.7167], abs=0.03)]


def test_no_face_is_empty_and_no_image_is_null() -> None:
    nothing = {"faces": 0, "face_boxes": [], "face_confidence": []}
    assert rows(None, portrait()) == [dict.fromkeys(nothing), nothing]


def test_boxes_are_shares_of_the_image_whatever_its_size() -> None:
    small = portrait((110, 110, 45))
    large = np.asarray(Image.fromarray(small).resize((1280, 960), Image.Resampling.BICUBIC))
    tall = np.concatenate([small, portrait(height=400)])
    first, second, third = (row["face_boxes"][0] for row in rows(small, large, tall))
    assert first == pytest.approx(second, abs=0.02)
    assert [third[0], third[1] * 640 / 240] == pytest.approx(first[:2], abs=0.03)


def test_every_face_has_its_box_and_the_surest_comes_first() -> None:
    places = [(60, 70, 12), (250, 170, 28), (160, 110, 40)]  # the small one is doubtful
    (row,) = rows(portrait(*places))
    middles = {(round((x0 + x1) * 160), round((y0 + y1) * 120)) for x0, y0, x1, y1 in row["face_boxes"]}
    assert row["faces"] == len(row["face_boxes"]) == 3
    for x, y, r in places:
        assert any(abs(left - x) < r / 2 and abs(top - y) < r / 2 for left, top in middles)
    assert row["face_confidence"][0] >= row["face_confidence"][1] > row["face_confidence"][2]
    assert row["face_boxes"][2][2] < 0.25


def test_a_higher_confidence_finds_less() -> None:
    assert rows(portrait((110, 110, 45)), confidence=0.99)[0]["faces"] == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 640), (3, 500), (500, 3), (33, 17)])
def test_images_of_any_shape_are_looked_at(shape: tuple[int, int]) -> None:
    assert rows(np.full((*shape, 3), 120, np.uint8))[0]["faces"] == 0


def test_a_blurred_face_is_found_no_more() -> None:
    image, sink = portrait((110, 110, 45)), io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=92)
    after = np.asarray(Image.open(io.BytesIO(blurred(sink.getvalue(), rows(image)[0]["face_boxes"]))))
    assert rows(after)[0]["faces"] == 0


def test_the_detector_takes_one_thread_and_leaves_the_environment() -> None:
    code = (
        "import json, os, numpy as np\n"
        "from pipeline.stage import Device\n"
        "from stages.image_privacy import Faces\n"
        "from tests.stages.fake_batch import FakeBatch\n"
        "look = Faces().open(Device())\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "look(FakeBatch(pictures=[np.zeros((240, 320, 3), np.uint8)]))\n"
        "print(json.dumps([len(os.listdir('/proc/self/task')) - before, os.environ['OMP_NUM_THREADS']]))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == [0, "4"]


def red_cells() -> bytes:
    """A model with YuNet's outputs that takes every cell of 8 px for a face that is red, and no larger one."""
    nodes: list[bytes] = []
    weights: dict[str, np.ndarray] = {}
    for stride in (8, 16, 32):
        for name, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            kernel = np.zeros((width, 3, stride, stride), np.float32)
            if stride == 8 and width == 1:
                kernel[:, 2] = 1 / (255 * stride**2)  # the mean of the third channel, which OpenCV has for red
            made = f"{name}_{stride}"
            weights[f"{made} kernel"], weights[f"{made} shape"] = kernel, np.array([1, -1, width], np.int64)
            sides = [stride, stride]
            nodes += [
                onnx_file.node("Conv", ["input", f"{made} kernel"], f"{made} map", kernel_shape=sides, strides=sides),
                onnx_file.node("Transpose", [f"{made} map"], f"{made} last", perm=[0, 2, 3, 1]),
                onnx_file.node("Reshape", [f"{made} last", f"{made} shape"], made),
            ]
    outputs = [f"{name}_{stride}" for name in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32)]
    return onnx_file.model(nodes, weights, ("input", (1, 3, 640, 640)), outputs)


def test_a_yunet_of_ones_own_takes_the_place_of_the_one_that_is_shipped(tmp_path: Path) -> None:
    (tmp_path / "red.onnx").write_bytes(red_cells())
    image = np.zeros((96, 160, 3), np.uint8)
    image[40:48, 64:72, 0] = 255
    image[72:80, 96:104, 2] = 255  # blue
    found = rows(image, None, model=f"file://{tmp_path}/red.onnx", side=160)
    (box,) = found[0]["face_boxes"]
    assert box == pytest.approx([60 / 160, 36 / 96, 68 / 160, 44 / 96], abs=1e-3)  # a cell's offset is its middle
    assert found[0]["face_confidence"] == [pytest.approx(1, abs=1e-3)]
    assert found[1]["faces"] is None
    (tmp_path / "not.onnx").write_bytes(b"no model" * 9)
    with pytest.raises(SluiceError, match=r"^model: .*not\.onnx is no YuNet \([^\n]*\); take one of OpenCV's"):
        rows(model=str(tmp_path / "not.onnx"))


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason=f"no real photographs: {PHOTOGRAPHS} is absent")
def test_photographed_people_are_found_and_animals_food_and_rooms_have_no_face() -> None:
    people = {5001: 17, 790: 3, 872: 2, 199055: 1, 234748: 1, 463690: 4, 519208: 1}
    found = rows(*map(photograph, people))
    assert [row["faces"] for row in found] == pytest.approx(list(people.values()), abs=1)
    nobody = (20247, 30213, 62554, 98261, 107438, 215245, 252332, 403353)
    assert {row["faces"] for row in rows(*map(photograph, nobody))} == {0}


def test_the_table_has_room_for_no_rows() -> None:
    assert LOOK(FakeBatch()) == pa.Table.from_pylist([], schema=Faces.adds)
