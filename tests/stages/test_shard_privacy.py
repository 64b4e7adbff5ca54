"""What shards do for persons: faces blurred and boxes kept, captions written as they were masked."""

import io
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import SluiceError
from pipeline.records import Generation
from pipeline.stage import Column
from stages.shard import WebDataset
from stages.shard.blur import SHARE, blurred
from tests.pools import write_node
from tests.stages.test_shard import World, identity, kept_where, number

BOX = [0.25, 0.5, 0.5, 0.75]
BOXES = pa.list_(pa.list_(pa.float32(), 4))


def noise(width: int = 160, height: int = 120, mode: str = "RGB", seed: int = 3) -> Image.Image:
    """Soft blots of 4 px: what a blur takes away and a JPEG holds."""
    blots = np.random.default_rng(seed).integers(64, 192, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def inside(box: Sequence[float], width: int, height: int, grown: float = SHARE) -> np.ndarray:
    """bool (height, width): where a box is, grown by a share of its diagonal."""
    left, top, right, bottom = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    grow = grown * float(np.hypot(right - left, bottom - top))
    y, x = np.mgrid[:height, :width] + 0.5
    covered: np.ndarray = (x > left - grow) & (x < right + grow) & (y > top - grow) & (y < bottom + grow)
    return covered


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("tests.stages.test_shard.picture", lambda uid: encoded(noise(seed=int(uid[:4], 16))))
    return World(tmp_path / "root")


def faces(world: World, pool: Generation, boxes: dict[str, list[list[float]] | None]) -> Generation:
    """A table of boxes; images that are not named have none."""
    parts = {}
    for record in pool.records:
        uids = world.store.read_table(record, "image").column("uid")
        found = [boxes.get(uid, []) for uid in uids.to_pylist()]
        parts[record.part] = {"image": pa.table({"uid": uids, "face_boxes": pa.array(found, BOXES)})}
    return write_node(world.store, "faces", parts)


# -- shards ------------------------------------------------------------------------------------------------------------


def test_faces_are_blurred_and_boxes_and_the_new_sum_stand_in_the_json(world: World) -> None:
    pool = world.pool({"000-00000": range(3), "000-00001": range(3, 5)})
    someone = identity("http://a/1")
    boxes = faces(world, pool, {someone: [BOX]})
    kept = kept_where(world, pool)
    plain = dict(world.shards(pool, kept).samples())
    found = dict(world.shards(pool, boxes, kept, blur="face_boxes").samples())
    assert list(found) == list(plain)
    for uid, members in found.items():
        document = json.loads(members["json"])
        assert document.pop("face_boxes") == ([BOX] if uid == someone else [])
        new = document.pop("blurred_sha256")
        assert document == json.loads(plain[uid]["json"])
        if uid != someone:
            assert members["jpg"] == plain[uid]["jpg"]
            assert new is None
        else:
            assert members["jpg"] == blurred(plain[uid]["jpg"], [BOX])
            assert new == sha256(members["jpg"]).hexdigest() != document["sha256"]


def test_blurred_shards_are_the_same_bytes_again_and_lie_elsewhere(world: World, tmp_path: Path) -> None:
    def shards(world: World, boxes: list[list[float]]) -> tuple[list[str], str]:
        pool = world.pool({"000-00000": range(3)})
        table = faces(world, pool, {identity("http://a/1"): boxes})
        found = world.shards(pool, table, kept_where(world, pool), blur="face_boxes")
        return found.sums, Path(found.paths[0]).parent.name

    first, again = shards(world, [BOX]), shards(World(tmp_path / "again"), [BOX])
    other = shards(World(tmp_path / "other"), [[0, 0, 0.5, 0.5]])
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_an_image_that_nobody_looked_at_stops_the_shards(world: World) -> None:
    pool = world.pool({"000-00000": range(3)})
    boxes = faces(world, pool, {identity("http://a/1"): None})
    message = rf"blur: nobody looked for face_boxes in uid {identity('http://a/1')}; add the rule `face_boxes IS NOT"
    with pytest.raises(SluiceError, match=message):
        world.shards(pool, boxes, kept_where(world, pool), blur="face_boxes")
    some = kept_where(world, pool, lambda caption: number(caption) != 1)
    samples = world.shards(pool, boxes, some, blur="faces.face_boxes").samples()
    assert [json.loads(members["json"])["face_boxes"] for _, members in samples] == [[], []]


def test_a_masked_caption_takes_the_place_of_what_was_written(world: World) -> None:
    pool = world.pool({"000-00000": range(3)})
    hidden = {"0 a": "[EMAIL]", "1 a": None}
    masked = world.beside("masked", pool, masked_caption=(lambda text: hidden.get(text, text), pa.string()))
    samples = world.shards(pool, masked, kept_where(world, pool), text="masked_caption").samples()
    assert [members["txt"] for _, members in samples] == [b"[EMAIL]", b"1 b", b"2 a"]
    documents = [json.loads(members["json"]) for _, members in samples]
    assert [document["caption"] for document in documents] == ["[EMAIL]", "1 b", "2 a"]
    assert [[caption["text"] for caption in document["captions"]] for document in documents] == [
        ["[EMAIL]", "0 b"],
        ["1 b"],
        ["2 a", "2 b"],
    ]
    assert all(sorted(caption) == ["caption_id", "source", "text"] for caption in documents[0]["captions"])
    assert b"0 a" not in b"".join(samples[0][1].values())


def test_captions_that_nobody_masked_stop_the_shards(world: World) -> None:
    pool = world.pool({"000-00000": range(3)})
    kept = kept_where(world, pool)
    empty = write_node(
        world.store,
        "masked",
        {"000-00000": {"caption": pa.table({"uid": ["x"], "caption_id": ["y"], "masked_caption": ["z"]})}},
    )
    with pytest.raises(SluiceError, match=r"no node in `from` has the text of the kept pair .* as 'masked_caption'"):
        world.shards(pool, empty, kept, text="masked_caption")


def test_columns_of_the_wrong_kind_are_told_first() -> None:
    inputs = [
        Column("kept", "kept", "caption", pa.bool_()),
        Column("width", "pool", "image", pa.int32()),
        Column("text_boxes", "text", "image", pa.list_(pa.list_(pa.float32(), 8))),
        Column("face_boxes", "faces", "image", BOXES),
        Column("personal_data", "masked", "caption", pa.list_(pa.string())),
        Column("masked_caption", "masked", "caption", pa.string()),
    ]
    for parameters, message in (
        ({"blur": "text_boxes"}, "blur: 'text_boxes' is no list of boxes of an image"),
        ({"blur": "pool.width"}, r"blur: 'pool\.width' is no list of boxes of an image"),
        ({"text": "personal_data"}, "text: 'personal_data' is no text of a caption"),
    ):
        with pytest.raises(SluiceError, match=message):
            WebDataset.model_validate(parameters).check(inputs)
    good = WebDataset(blur="face_boxes", text="masked_caption")
    good.check(inputs)
    assert {"face_boxes", "masked_caption"} <= good.needs()


# -- pixels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode", "options", "near", "change"),
    [
        ("JPEG", "RGB", {"quality": 60, "subsampling": 0}, 8, 0),  # its blocks of 8 px mix what is near
        ("JPEG", "RGB", {"quality": 95}, 16, 7),  # halved colours are halved again
        ("JPEG", "L", {"quality": 95}, 8, 0.3),
        ("PNG", "RGB", {}, 1, 0),
        ("PNG", "P", {}, 1, 0),
        ("GIF", "P", {}, 1, 0),
        ("WEBP", "RGB", {"quality": 95}, 16, 7),
    ],
)
def test_inside_is_smooth_and_outside_stays(
    kind: str, mode: str, options: dict[str, int], near: int, change: float
) -> None:
    data = encoded(noise(mode=mode), kind, **options)
    before, after = pixels(data), pixels(blurred(data, [BOX]))
    box = inside(BOX, 160, 120)
    assert after[box].std(axis=0).max() < before[box].std(axis=0).min() / 2.5
    x, y = near / 160, near / 120
    far = ~inside([BOX[0] - x, BOX[1] - y, BOX[2] + x, BOX[3] + y], 160, 120)
    assert np.abs(after - before)[far].mean() <= change / 2
    assert np.abs(after - before)[far].max() <= 4 * change
    assert Image.open(io.BytesIO(blurred(data, [BOX]))).format == ("PNG" if kind == "GIF" else kind)


def test_the_golden_pixels_hold_or_the_revision_is_raised() -> None:
    assert WebDataset.revision == 3
    after = pixels(blurred(encoded(noise(), "PNG"), [BOX]))
    assert after[75, 60].tolist() == pytest.approx(GOLDEN, abs=2)


GOLDEN = [123, 121, 129]


@given(st.lists(st.lists(st.floats(-0.2, 1.2), min_size=4, max_size=4), max_size=3), st.integers(1, 40))
def test_any_boxes_on_any_size_leave_what_they_do_not_touch(boxes: list[list[float]], side: int) -> None:
    image = Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, 30, 3), dtype=np.uint8))
    data = encoded(image, "PNG")
    touched = np.zeros((side, 30), bool)
    for box in boxes:
        grown = SHARE * float(np.hypot((box[2] - box[0]) * 30, (box[3] - box[1]) * side)) + 1
        y, x = np.mgrid[:side, :30] + 0.5
        touched |= (
            (x > box[0] * 30 - grown)
            & (x < box[2] * 30 + grown)
            & (y > box[1] * side - grown)
            & (y < box[3] * side + grown)
        )
    assert (pixels(blurred(data, boxes)) == pixels(data))[~touched].all()


def test_orientation_and_profile_stay_and_other_exif_goes() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker of cameras"
    data = blurred(encoded(noise(), exif=exif, icc_profile=b"a profile", quality=90), [BOX])
    with Image.open(io.BytesIO(data)) as image:
        assert dict(image.getexif()) == {0x0112: 6}
        assert image.info["icc_profile"] == b"a profile"
    assert b"a maker of cameras" not in data


def test_what_is_around_a_box_flows_into_it() -> None:
    image = np.full((120, 160, 3), 255, np.uint8)
    image[inside(BOX, 160, 120)] = 0
    after = pixels(blurred(encoded(Image.fromarray(image), "PNG"), [BOX]))
    assert after[55, 60, 0] > 80
    assert after[75, 60, 0] < 10


def test_a_small_face_is_blurred_too() -> None:
    data = encoded(noise(), "PNG")
    small = [0.5, 0.5, 0.55, 0.5 + 1 / 15]  # 8 x 8 px
    box = inside(small, 160, 120, 0)
    assert pixels(blurred(data, [small]))[box].std(axis=0).max() < pixels(data)[box].std(axis=0).max() / 2
