"""Rows of a part from several nodes, and the pixels behind them."""

import io
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import SluiceError
from pipeline.attempt import Attempt
from pipeline.records import Record
from pipeline.rows import Decoder, PartRows, RowBatch, ahead, centre_square, cut, decode
from pipeline.stage import PIXELS, Column, Device, Task
from pipeline.store import Store


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (32, 16)) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, colour).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def column(name: str, node: str, grain: str = "image") -> Column:
    return Column(name, node, grain, pa.null())


def write(store: Store, node: str, part: str = "000-00000", **tables: pa.Table) -> Record:
    with Attempt(store, node, "parts", Task(part), f"{node}-{part}") as attempt:
        for kind, table in tables.items():
            attempt.write(kind, table)
        return attempt.commit()


def pool(store: Store, images: list[bytes | None]) -> Record:
    with Attempt(store, "pool", "parts", Task("000-00000"), "pool") as attempt:
        rows = []
        with attempt.create("tar") as tar:
            for number, data in enumerate(images):
                row = {"uid": f"u{number}", "offset": tar.tell() if data else None, "nbytes": data and len(data)}
                rows.append({**row, "stored_sha256": data and sha256(data).hexdigest()})
                tar.write(data or b"")
        attempt.write("image", pa.Table.from_pylist(rows))
        return attempt.commit()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_tables_of_one_pool_zip_by_position(store: Store) -> None:
    one = write(store, "a", image=pa.table({"uid": ["x", "y"], "n": [1, 2]}))
    other = write(store, "b", image=pa.table({"uid": ["x", "y"], "n": [3, 4]}))
    rows = PartRows.load(store, {"a": [one], "b": [other]}, [column("n", "a"), column("n", "b")])
    assert rows.image.to_pydict() == {"uid": ["x", "y"], "a.n": [1, 2], "b.n": [3, 4]}


def test_a_retried_part_is_read_from_the_older_one_by_uid(store: Store) -> None:
    retried = write(store, "a", "000-00000.r1", image=pa.table({"uid": ["z", "x"], "n": [1, 2]}))
    other = write(store, "b", image=pa.table({"uid": ["x", "y", "z"], "m": [10, 20, 30]}))
    rows = PartRows.load(store, {"a": [retried], "b": [other]}, [column("n", "a"), column("m", "b")])
    assert rows.image.to_pydict() == {"uid": ["z", "x"], "a.n": [1, 2], "b.m": [30, 10]}


def test_tables_of_different_pools_do_not_zip(store: Store) -> None:
    one = write(store, "a", image=pa.table({"uid": ["x", "y"], "n": [1, 2]}))
    other = write(store, "b", image=pa.table({"uid": ["x", "w"], "m": [3, 4]}))
    with pytest.raises(SluiceError, match="has no row for uid y; its tables are of different pools"):
        PartRows.load(store, {"a": [one], "b": [other]}, [column("n", "a"), column("m", "b")])


def test_captions_know_their_image(store: Store) -> None:
    image = pa.table({"uid": ["x", "y", "z"]})
    caption = pa.table({"uid": ["x", "x", "y", "z", "z"], "caption_id": list("abcde")})
    rows = PartRows(image, caption, None)
    assert rows.image_of.tolist() == [0, 0, 1, 2, 2]
    assert rows.captions_of(np.array([0, 2])).tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("uids", [["y", "x"], ["x"], ["x", "y", "x"]])
def test_captions_that_are_not_grouped_by_image_are_refused(uids: list[str]) -> None:
    caption = pa.table({"uid": uids, "caption_id": ["c"] * len(uids)})
    with pytest.raises(SluiceError, match="not grouped by image"):
        PartRows(pa.table({"uid": ["x", "y"]}), caption, None)


@pytest.mark.parametrize("threads", [1, 2])
def test_pixels_come_from_the_tar_and_failed_rows_have_none(store: Store, threads: int) -> None:
    record = pool(store, [jpeg((200, 0, 0)), None, jpeg((0, 0, 200), (64, 64))])
    rows = PartRows.load(store, {"pool": [record]}, [column(PIXELS, "pool")])
    decoder = Decoder(store, rows, Device(threads=threads))
    try:
        slices = cut(np.arange(3), 2)
        batches = [RowBatch(rows.image.take(chosen), pictures()[None]) for chosen, pictures in ahead(decoder, slices)]
        red, nothing = batches[0].images()
        (blue,) = batches[1].images()
    finally:
        decoder.close()
    assert nothing is None
    assert red is not None
    assert blue is not None
    assert (red.shape, blue.shape) == ((16, 32, 3), (64, 64, 3))
    assert np.abs(red.mean(axis=(0, 1)) - [200, 0, 0]).max() < 6
    assert batches[0].pixels(8).shape == (2, 8, 8, 3)
    assert batches[0].pixels(8)[1].max() == 0


def test_a_corrupt_image_is_named_with_the_repair(store: Store, tmp_path: Path) -> None:
    record = pool(store, [jpeg((200, 0, 0))])
    (tar,) = (tmp_path / "pool" / "data").glob("*.tar")
    data = bytearray(tar.read_bytes())
    data[100] ^= 1
    tar.write_bytes(bytes(data))
    rows = PartRows.load(store, {"pool": [record]}, [column(PIXELS, "pool")])
    decoder = Decoder(store, rows, Device())
    with pytest.raises(SluiceError, match=r"image u0 is corrupt; `sluice verify .* --repair`"):
        decoder.start(np.arange(1))()
    decoder.close()


def test_only_the_formats_of_the_web_are_decoded() -> None:
    sink = io.BytesIO()
    Image.new("RGB", (4, 4)).save(sink, "TIFF")
    with pytest.raises(OSError, match="cannot identify"):
        decode(sink.getvalue())


def test_a_step_that_did_not_ask_for_pixels_gets_none() -> None:
    with pytest.raises(SluiceError, match="did not say in `reads`"):
        RowBatch(pa.table({"uid": ["x"]}), None).images()


def test_a_step_with_prepared_images_gets_no_whole_ones_and_others_are_prepared_when_asked_for() -> None:
    image, table = np.zeros((4, 4, 3), np.uint8), pa.table({"uid": ["x", "y"]})
    with pytest.raises(SluiceError, match=r"as it said in `prepares`, and not whole; ask for images\(prepare\)"):
        RowBatch(table, None, {np.flipud: [image, None]}).images()
    whole = RowBatch(table, [image, None], {np.flipud: [image, None]})
    assert whole.images(np.flipud)[0] is image
    assert [one is None or one.shape for one in whole.images(np.transpose)] == [(3, 4, 4), True]


def test_a_matrix_has_nan_where_a_row_is_null() -> None:
    column_ = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    matrix = RowBatch(pa.table({"v": column_}), None).matrix("v")
    assert np.array_equal(matrix, np.array([[1, 2], [np.nan, np.nan], [3, 4]], np.float32), equal_nan=True)


def test_the_centre_is_cut_out() -> None:
    image = np.zeros((20, 60, 3), dtype=np.uint8)
    image[:, 20:40] = 255
    assert centre_square(image, 20).min() == 255
    assert centre_square(image, 10).shape == (10, 10, 3)
