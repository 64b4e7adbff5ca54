"""A box lies around what is painted, and where nothing is seen there is none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.miniweb import Kind, Miniweb, Plan, table
from infra.miniweb.boxes import boxes, boxes_of
from infra.miniweb.scenes import SHAPES, SIDES, TEXTURES, draw_scene, simplified
from tests.infra.test_render import painted, with_one


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_is_as_large_as_what_is_painted(shape: str, texture: str) -> None:
    scene = replace(with_one(shape=shape, texture=texture, row=0, column=2), width=400, height=300)
    rows, columns = np.nonzero(painted(scene, "blue"))
    (found,) = boxes(scene)
    assert found["label"] == f"blue {shape}"
    seen = [columns.min() / 400, rows.min() / 300, (columns.max() + 1) / 400, (rows.max() + 1) / 300]
    assert found["box"] == pytest.approx(seen, abs=0.012)


def test_there_are_as_many_boxes_as_things_and_in_their_cells() -> None:
    scene = simplified(draw_scene("17/3", SIDES["small"]))
    found = boxes(scene)
    assert [one["label"] for one in found] == [
        f"{group.colour} {group.shape}" for group in scene.groups for _ in range(group.count)
    ]
    for group in scene.groups:
        for one in (one["box"] for one in found if one["label"] == f"{group.colour} {group.shape}"):
            x, y = (one[0] + one[2]) / 2, (one[1] + one[3]) / 2
            assert (x > 0.5, y > 0.5) == (group.column == 2, group.row == 2)


def test_what_nobody_sees_has_no_boxes() -> None:
    plan = Plan(2000)
    for kind, seen in {"clean": True, "mismatch": True, "cropped_copy": True, "not_found": False}.items():
        assert all(bool(boxes_of(page)) == seen for page in plan.of(Kind(kind)))
    for page in plan:
        if boxes_of(page):
            assert "success" in page.facts.ends, page.kind
    assert not any(boxes_of(page) for page in plan.of(Kind.PLACEHOLDER))
    assert not any(boxes_of(page) for page in plan.of(Kind.PNG_NEAR_BOMB))


def test_the_table_has_boxes_where_they_are_asked_for(tmp_path: Path) -> None:
    with Miniweb(tmp_path, pages=60, mix="clean", boxes=True) as web:
        found = pq.read_table(tmp_path / "urls.parquet")
        assert found == web.table
        assert found.schema.names == [*table.SCHEMA.names, "boxes"]
        assert found["boxes"].to_pylist() == [boxes(page.scene) for page in web.pages]
        assert web.answers.schema == table.KEY_SCHEMA
