"""What a set may hold, and how what several files tell of one item is brought together."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pipeline.errors import SluiceError
from stages.decontaminate.items import Item, check_readable, items_of, kind_of, plain
from tests.stages.decontaminate.sets import encoded, scene

ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


def items(name: str, data: bytes, beside: list[str] | None = None) -> list[Item]:
    return list(items_of("coco", name, io.BytesIO(data), beside))


def saved(array: object, **named: object) -> bytes:
    sink = io.BytesIO()
    if named:
        np.savez(sink, **named)  # type: ignore[arg-type]
    else:
        np.save(sink, array)  # type: ignore[arg-type]
    return sink.getvalue()


def test_images_of_a_tar_are_items_with_a_place(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (("000.jpg", scene(0)), ("000.txt", b"a scene"), ("001.PNG", b"png")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("002.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    data = (tmp_path / "0.tar").read_bytes()
    found = items("0.tar", data)
    assert [item.name for item in found] == ["0.tar/000.jpg", "0.tar/001.PNG"]
    for item, expected in zip(found, (scene(0), b"png"), strict=True):
        assert item.offset is not None
        assert data[item.offset : item.offset + len(expected)] == item.data == expected


def test_a_table_tells_of_bytes_hashes_and_embeddings() -> None:
    sink = pa.BufferOutputStream()
    columns = {
        "uid": ["a", "b"],
        "sha256": ["AB" * 32, None],
        "phash": pa.array([None, 2**63 + 5], pa.uint64()),
        "embedding": [[1.0, 2.0], None],
    }
    pq.write_table(pa.table(columns), sink)
    first, second = items("x.parquet", sink.getvalue().to_pybytes())
    assert (first.name, first.sha256, first.phash) == ("a", "ab" * 32, None)
    assert first.vector is not None
    assert first.vector.tolist() == [1, 2]
    assert (second.name, second.sha256, second.phash, second.vector) == ("b", None, 2**63 + 5, None)


def test_files_of_embeddings_have_ids_in_them_or_beside_them_or_none(tmp_path: Path) -> None:
    save_file({"embeddings": ROWS}, str(tmp_path / "x.safetensors"))
    found = {
        "npy": items("x.npy", saved(ROWS)),
        "beside": items("x.npy", saved(ROWS), ["a", "b", "c"]),
        "npz": items("x.npz", saved(None, embeddings=ROWS, ids=np.array(["a", "b", "c"]))),
        "safetensors": items("x.safetensors", (tmp_path / "x.safetensors").read_bytes(), ["a", "b", "c"]),
    }
    assert [item.name for item in found["npy"]] == ["x.npy/0", "x.npy/1", "x.npy/2"]
    for name in ("beside", "npz", "safetensors"):
        assert [item.name for item in found[name]] == ["a", "b", "c"]
    for of in found.values():
        assert [None if item.vector is None else item.vector.tolist() for item in of] == ROWS.tolist()


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.npy", saved(ROWS[0]), r"coco/x.npy cannot be read \(an array of shape"),
        ("x.npz", saved(None, a=ROWS, b=ROWS), "arrays a, b; expected one named"),
        ("x.npz", saved(None, embeddings=ROWS, ids=np.array(["a"])), "1 ids for 3 rows"),
        ("x.npy", saved(np.array([{}], object)), "cannot be read"),
        ("x.tar", b"no tar", "coco/x.tar cannot be read"),
        ("x.parquet", b"PAR1", "coco/x.parquet cannot be read"),
    ],
)
def test_a_file_that_is_not_what_its_ending_says_is_refused(name: str, data: bytes, said: str) -> None:
    with pytest.raises(SluiceError, match=said):
        items(name, data)


def test_kinds_go_by_the_ending() -> None:
    assert [kind_of(name) for name in ("a.JPG", "b/c.tiff", "d.tar", "e.npz", "metadata.jsonl", "README")] == [
        "image", "image", "tar", "table", "", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["metadata.jsonl"], "coco has no item in its 1 files; expected images, tars"),
        (["a.jpg", "b.heic"], "coco/b.heic cannot be read; save it as PNG"),
    ],
)
def test_nobody_is_left_to_believe_that_something_was_compared(names: list[str], said: str) -> None:
    check_readable("coco", ["a.jpg", "metadata.jsonl"])
    with pytest.raises(SluiceError, match=said):
        check_readable("coco", names)


def test_pictures_become_what_a_pool_has() -> None:
    assert plain(scene(0)) == scene(0)
    rows = np.zeros((20, 30, 4), np.uint8)
    rows[:, 15:] = (200, 0, 0, 255)
    made = np.asarray(Image.open(io.BytesIO(plain(encoded(Image.fromarray(rows), "PNG")))))
    assert made[0, 0].tolist() == [255, 255, 255], "transparency over white"
    assert made[0, -1].tolist() == [200, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(rows).convert("RGB"), "JPEG", exif=exif.tobytes())
    assert Image.open(io.BytesIO(plain(turned))).size == (20, 30)
    assert Image.open(io.BytesIO(plain(encoded(Image.fromarray(rows).convert("RGB"), "BMP")))).format == "PNG"
