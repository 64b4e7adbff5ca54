"""Leaks are found by name, whatever was done to them; look-alikes and everything else stay."""

import io
import json
import random
import tarfile
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from infra.miniweb.copies import opened, recoloured, reencoded, resized
from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.identity import find_resources, generation_key, node_identity
from pipeline.rows import PartRows
from pipeline.stage import PIXELS, Column, Task
from pipeline.store import Store
from stages.decontaminate import Decontaminate, index, items
from stages.decontaminate.decontaminate import _Part
from tests.stages.decontaminate.sets import cropped, encoded, folder, look_alike, parquet, run, scene
from tests.stages.dedup.pools import WIDTH, Item, spread, uid_of

NONE = {"leaks_from": None, "leak_similarity": None, "leak_evidence": None}
COLUMNS = [
    Column("sha256", "pool", "image", pa.string()),
    Column("phash", "pool", "image", pa.uint64()),
    Column("image_embedding", "scores", "image", pa.list_(pa.float16(), WIDTH)),
    Column(PIXELS, "pool", "image", pa.null()),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def item(number: int, data: bytes | None, **more: Any) -> Item:
    return Item(uid_of(number), data, **more)


def axis(which: int) -> np.ndarray:
    found: np.ndarray = np.eye(WIDTH, dtype=np.float32)[which]
    return found


def test_leaks_are_found_whatever_was_done_to_them_and_look_alikes_stay(tmp_path: Path) -> None:
    where = folder(tmp_path / "coco", {f"images/{n:02d}.jpg": scene(n) for n in range(6)})
    (tmp_path / "coco" / "metadata.jsonl").write_text(json.dumps({"file_name": "images/00.jpg"}))
    dice = random.Random(3)
    changed = [change(opened(scene(n)), dice)[0] for n, change in enumerate((reencoded, resized, recoloured), 1)]
    rows = [
        item(0, scene(0)),
        *(item(n, data) for n, data in enumerate(changed, 1)),
        item(4, cropped(scene(4))),
        item(5, None),
        *(item(6 + n, look_alike(n)) for n in range(4)),
        item(10, scene(7)),
    ]
    found, records, _ = run(tmp_path / "root", Decontaminate(sets={"coco": where}), spread(rows, 2))
    named = {number: found[uid_of(number)] for number in range(11)}
    assert [named[n]["leaks_from"] for n in range(5)] == [f"coco/images/{n:02d}.jpg" for n in range(5)]
    assert [named[n]["leak_evidence"] for n in range(5)] == ["sha256", *["pixels"] * 4]
    assert named[0]["leak_similarity"] == 1
    assert all(0.5 <= named[n]["leak_similarity"] <= 1 for n in range(1, 5))
    assert all(named[n] == NONE for n in range(5, 11))
    assert {status: sum(r.statuses.get(status, 0) for r in records) for status in ("leak", "ok", "no_image")} == {
        "leak": 5, "ok": 5, "no_image": 1,
    }  # fmt: skip
    assert records[0].notes["items"] == {"coco": 6}


def test_bytes_count_as_they_were_fetched_and_as_they_are_stored() -> None:
    columns = {"sha256": ["a", "b", "c", "a"], "stored_sha256": ["d", "e", "f", "a"], "offset": [0, 1, 2, None]}
    table = pa.table({"uid": list("wxyz"), **{f"pool.{name}": values for name, values in columns.items()}})
    part = _Part(PartRows(table, None, None), {column.name: column for column in COLUMNS})
    known = [index.Known("coco", name, None, None, None, name) for name in "ae"]
    part.match_bytes(SimpleNamespace(of_bytes={"a": 0, "e": 1}, items=known))  # type: ignore[arg-type]
    assert [leak and leak.title for leak in part.leaks] == ["coco/a", "coco/e", None, None]


def test_an_item_that_is_a_crop_of_the_image_is_found_too(tmp_path: Path) -> None:
    where = folder(tmp_path / "coco", {"0.jpg": cropped(scene(1), 0.05, 0.05, 0.05, 0.05)})
    found, _, _ = run(tmp_path / "root", Decontaminate(sets={"coco": where}), {"000-0": [item(0, scene(1))]})
    assert found[uid_of(0)]["leaks_from"] == "coco/0.jpg"


def test_items_of_tars_are_found_and_the_first_of_equals_is_named(tmp_path: Path) -> None:
    path = tmp_path / "flickr" / "0.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for n in (0, 1):
            info = tarfile.TarInfo(f"{n:04d}.jpg")
            info.size = len(scene(n))
            tar.addfile(info, io.BytesIO(scene(n)))
    sets = {"flickr": str(path), "coco": folder(tmp_path / "coco", {"b.jpg": scene(0), "a.jpg": scene(0)})}
    rows = [item(0, scene(0)), item(1, cropped(scene(1)))]
    found, records, _ = run(tmp_path / "root", Decontaminate(sets=sets), {"000-0": rows})
    assert [found[uid_of(n)]["leaks_from"] for n in (0, 1)] == ["flickr/0.tar/0000.jpg", "flickr/0.tar/0001.jpg"]
    assert records[0].notes["items"] == {"flickr": 2, "coco": 2}
    found, _, _ = run(tmp_path / "other", Decontaminate(sets={"coco": sets["coco"]}), {"000-0": rows})
    assert found[uid_of(0)]["leaks_from"] == "coco/a.jpg"


def test_hashes_and_embeddings_without_pixels_speak_for_themselves(tmp_path: Path) -> None:
    columns = {"id": ["hash", "bytes", "vector"], "phash": pa.array([0b1111, None, None], pa.uint64())}
    columns["sha256"] = [None, sha256(b"those bytes").hexdigest(), None]
    columns["embedding"] = pa.array([None, None, axis(3).tolist()], pa.list_(pa.float32()))
    parquet(tmp_path / "hashes" / "known.parquet", columns)
    rows = [
        item(0, scene(0), phash=0b1001, vector=axis(0)),
        item(1, scene(1), phash=0b1000, vector=axis(1)),
        item(2, scene(2), phash=2**40 - 1, vector=0.7 * axis(3) + 0.714 * axis(4)),
        item(3, scene(3), phash=2**50 - 1, vector=0.5 * axis(3) + 0.866 * axis(4)),
        item(4, scene(4), phash=2**60 - 1),
        item(5, b"those bytes", phash=2**61 - 1, vector=axis(6)),
    ]
    stage = Decontaminate(
        sets={"known": str(tmp_path / "hashes")}, perceptual_bits=2, embedding="scores.image_embedding"
    )
    found, _, _ = run(tmp_path / "root", stage, {"000-0": rows})
    assert [tuple(found[uid_of(n)].values()) for n in range(6)] == [
        ("known/hash", pytest.approx(62 / 64), "phash"),
        (None, None, None),
        ("known/vector", pytest.approx(0.7, abs=1e-3), "cosine"),
        (None, None, None),
        (None, None, None),
        ("known/bytes", 1.0, "sha256"),
    ]


def test_a_near_embedding_of_an_item_with_pixels_is_looked_at(tmp_path: Path) -> None:
    where = folder(tmp_path / "coco", {"a.jpg": scene(0), "b.jpg": scene(1)})
    np.savez(
        tmp_path / "coco" / "vectors.npz", embeddings=np.stack([axis(0), axis(1)]), ids=np.array(["a.jpg", "b.jpg"])
    )
    mirrored = encoded(opened(scene(1)).transpose(Image.Transpose.FLIP_LEFT_RIGHT))  # no copy, at a glance or later
    rows = [item(0, look_alike(0), vector=axis(0)), item(1, mirrored, vector=axis(1)), item(2, scene(5))]
    stage = Decontaminate(sets={"coco": where}, embedding="image_embedding")
    found, records, _ = run(tmp_path / "root", stage, {"000-0": rows})
    assert all(row == NONE for row in found.values())
    assert records[0].notes["looked"] >= 2
    assert records[0].notes["items"] == {"coco": 2}
    trusting = stage.model_copy(update={"verify": "none"})
    found, _, _ = run(tmp_path / "other", trusting, {"000-0": rows})
    assert [found[uid_of(n)]["leaks_from"] for n in range(3)] == ["coco/a.jpg", "coco/b.jpg", None]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": ["a"], "phash": pa.array([1], pa.uint64())}, "some hold perceptual hashes; say within how many bits"),
        ({"id": ["a"], "embedding": [[1.0]]}, "some hold embeddings; name the pool's column"),
    ],
)
def test_what_would_not_be_compared_is_refused(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    parquet(tmp_path / "set" / "x.parquet", columns)
    with pytest.raises(SluiceError, match=said):
        run(tmp_path / "root", Decontaminate(sets={"x": str(tmp_path / "set")}), {"000-0": [item(0, scene(0))]})


def test_embeddings_of_another_model_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "set" / "x.parquet", {"id": ["a"], "embedding": [[1.0, 2.0]]})
    stage = Decontaminate(sets={"x": str(tmp_path / "set")}, embedding="image_embedding")
    with pytest.raises(SluiceError, match="their embeddings have 2 numbers, the column has 16"):
        run(tmp_path / "root", stage, {"000-0": [item(0, scene(0), vector=axis(0))]})


def test_without_a_set_it_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match=r"sets names no evaluation set.*sets=\{\} to go without.*`not_compared`"):
        Decontaminate().check(COLUMNS)
    found, records, _ = run(tmp_path / "root", Decontaminate(sets={}), {"000-0": [item(0, scene(0)), item(1, None)]})
    assert all(row == NONE for row in found.values())
    assert records[0].statuses == {"not_compared": 2}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"embedding": "phash"}, "embedding: 'phash' is uint64 of images; expected lists of floats"),
        ({"perceptual_bits": 4, "hash_column": "sha256"}, "hash_column: 'sha256' is string of images, not uint64"),
    ],
)
def test_columns_of_another_kind_are_refused(tmp_path: Path, what: dict[str, Any], said: str) -> None:
    sets = {"coco": folder(tmp_path / "coco", {"a.jpg": b""})}
    Decontaminate(sets=sets, embedding="image_embedding", perceptual_bits=4).check(COLUMNS)
    with pytest.raises(SluiceError, match=said):
        Decontaminate(sets=sets, **what).check(COLUMNS)


def test_a_set_needs_a_name_that_a_column_can_show() -> None:
    with pytest.raises(SluiceError, match="sets: 'coco val' is no name"):
        Decontaminate(sets={"coco val": "x"})


def test_an_item_that_is_no_image_is_named(tmp_path: Path) -> None:
    where = folder(tmp_path / "coco", {"a.jpg": b"no image"})
    with pytest.raises(SluiceError, match=r"sets: coco/a.jpg is no image .*; mend it, or leave it out"):
        run(tmp_path / "root", Decontaminate(sets={"coco": where}), {"000-0": [item(0, scene(0))]})


def test_a_rerun_looks_at_nothing_and_a_new_part_alone_is_compared(tmp_path: Path) -> None:
    where = folder(tmp_path / "coco", {"a.jpg": scene(0)})
    stage = Decontaminate(sets={"coco": where})
    rows = [item(0, scene(0)), item(1, scene(5))]
    _, _, work = run(tmp_path / "root", stage, {"000-0": rows[:1]})
    assert work.done == [("items", "00000"), ("index", "all"), ("parts", "000-0")]
    _, _, work = run(tmp_path / "root", stage, {"000-0": rows[:1]})
    assert work.done == []
    _, _, work = run(tmp_path / "root", stage, {"000-0": rows[:1], "000-1": rows[1:]})
    assert work.done == [("parts", "000-1")]


def test_a_changed_set_is_another_identity(tmp_path: Path) -> None:
    def key(**sets: str) -> str:
        stage = Decontaminate(sets=sets)
        return generation_key(node_identity([stage], 0), find_resources([stage]), {}, {})

    where = folder(tmp_path / "coco", {"a.jpg": scene(0)})
    first, named = key(coco=where), key(flickr=where)
    folder(tmp_path / "coco", {"b.jpg": scene(1)})
    assert len({first, named, key(coco=where), key()}) == 4


def test_a_file_that_changes_under_the_run_is_noticed(tmp_path: Path) -> None:
    where = folder(tmp_path / "coco", {"a.jpg": scene(0)})
    task = Task("0", {"set": "coco", "files": [["a.jpg", "0" * 64]]}, hints={"paths": [f"{where}/a.jpg"]})
    said = r"a.jpg changed while the run began; run again"
    with Attempt(Store(str(tmp_path)), "leaks", "items", task, "x") as attempt, pytest.raises(SluiceError, match=said):
        items.read_items(task, attempt)
    known = index.Known("coco", "a.jpg", "a.jpg", None, None, "0" * 64)
    with pytest.raises(SluiceError, match=r"a.jpg changed since its items were read; run again"):
        index.sight_of(known, {"coco": f"{where}/"})


def test_many_items_are_searched_in_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "FLAT_ROWS", 100)
    where = folder(tmp_path / "coco", {f"{n:02d}.jpg": scene(n) for n in range(12)})
    rows = [item(n, cropped(scene(n))) for n in range(0, 12, 3)]
    found, _, _ = run(tmp_path / "root", Decontaminate(sets={"coco": where}), {"000-0": rows})
    assert [found[uid_of(n)]["leaks_from"] for n in range(0, 12, 3)] == [f"coco/{n:02d}.jpg" for n in range(0, 12, 3)]
    assert list((tmp_path / "root" / "leaks").glob("data/*.cells")), "they are made once"


def test_a_damaged_tar_is_named_with_its_repair(tmp_path: Path) -> None:
    where = folder(tmp_path / "coco", {"a.jpg": scene(0)})
    _, _, work = run(tmp_path / "root", Decontaminate(sets={"coco": where}), {"000-0": [item(0, scene(5))]})
    tar = next(Path(work.store.path).glob("pool/data/*.tar"))
    tar.write_bytes(bytes(len(tar.read_bytes())))
    again = Decontaminate(sets={"coco": where}, most=4)
    work.identity = node_identity([again], 0)
    with pytest.raises(SluiceError, match=r"is corrupt at byte 0; `sluice verify .* --repair`"):
        again.assemble(work)


def test_the_golden_table_holds_or_the_revision_is_raised(tmp_path: Path) -> None:
    assert Decontaminate.revision == 1
    where = folder(tmp_path / "coco", {f"{n}.jpg": scene(n) for n in range(3)})
    rows = [item(0, scene(0)), item(1, cropped(scene(1))), item(2, look_alike(2)), item(3, None)]
    found, _, _ = run(tmp_path / "root", Decontaminate(sets={"coco": where}), {"000-0": rows})
    assert [tuple(found[uid_of(n)].values()) for n in range(4)] == GOLDEN


GOLDEN = [
    ("coco/0.jpg", 1.0, "sha256"),
    ("coco/1.jpg", pytest.approx(0.9, abs=0.1), "pixels"),
    (None, None, None),
    (None, None, None),
]
