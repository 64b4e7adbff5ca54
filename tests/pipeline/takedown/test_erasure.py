"""Takedowns: bytes and words are gone from everything, wherever they were; all else stays."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from pipeline import Catalog, SluiceError, show
from pipeline.records import Generation
from pipeline.store import Store
from pipeline.takedown import erasure, tables
from pipeline.takedown.matching import Asked
from pipeline.takedown.tombstones import tombstones
from tests import s3 as moto
from tests.pipeline.takedown.erased import (
    COPIES,
    GONE,
    every_offset_leads_to_its_image,
    is_clean,
    newest,
    quiet,
    take_down,
    uids,
)
from tests.takedowns import go, members, picture, table, uid_of, url_of


def test_bytes_and_words_leave_every_file_of_the_root(root: Path) -> None:
    sums = {sha256(data).hexdigest() for _, _, data in members(root)}
    assert all(sha256(picture(number)).hexdigest() in sums for number in GONE), "the scan sees them before"
    found = take_down(root, uids(*GONE))
    is_clean(root, *GONE, *COPIES)
    assert found.images == len(GONE) + len(COPIES)


def test_everything_else_stays_as_it_was_and_is_not_computed_again(root: Path) -> None:
    store = Store(str(root))
    before = {(name, data) for _, name, data in members(root)}
    hashes = {node: newest(store, node).content_hash for node in store.nodes()}
    take_down(root, uids(*GONE))
    gone = {uid_of(number) for number in (*GONE, *COPIES)}
    assert {(name, data) for _, name, data in members(root)} == {
        (name, data) for name, data in before if name.partition(".")[0] not in gone
    }
    assert {node: newest(store, node).content_hash for node in store.nodes()} == hashes
    assert [newest(store, node).number for node in ("urls", "pool", "scores", "kept", "shards", "model")] == [
        2, 2, 2, 2, 2, 1,
    ]  # fmt: skip
    assert [one.id for one in store.runs()] == ["0002", "0001"]
    generations, asked = go(root)
    assert asked == []
    assert {name: g.number for name, g in generations.items()} == {
        "urls": 2, "pool": 2, "scores": 2, "kept": 2, "shards": 2, "model": 1,
    }  # fmt: skip


def test_a_uid_is_looked_for_by_filters_in_the_shards_that_are_cut_and_in_those_that_are_not(root: Path) -> None:
    def filtered(shards: Generation) -> list[bool]:
        files = [root / "shards" / file.path for record in shards.records if (file := record.file("samples"))]
        columns = [pq.ParquetFile(file).metadata.row_group(0).column(0) for file in files]
        return [column.path_in_schema == "uid" and column.bloom_filter_offset is not None for column in columns]

    store = Store(str(root))
    before = filtered(newest(store, "shards"))
    take_down(root, uids(*GONE))
    after = filtered(newest(store, "shards"))
    assert len(after) == len(before) > 1
    assert all([*before, *after])


def test_rows_stay_with_a_status_and_all_numbers_still_add_up(root: Path) -> None:
    store = Store(str(root))
    old = newest(store, "pool").statuses
    take_down(root, uids(*GONE, 9))
    pool = newest(store, "pool")
    assert old == {"success": 36, "http_503": 4}
    assert pool.statuses == {"success": 31, "http_503": 3, "taken_down": 6}
    rows = {row["uid"]: row for row in table(store, pool, "image").to_pylist()}
    assert len(rows) == 40
    assert rows[uid_of(4)]["status"] == "taken_down"
    assert rows[uid_of(4)]["source_row"] == 1004, "the owner can find it in the input"
    with Catalog(str(root)) as catalog:
        counts = "SELECT status, count(DISTINCT uid) AS images FROM samples GROUP BY ALL ORDER BY ALL"
        assert catalog.sql(counts).to_pylist() == [
            {"status": "http_503", "images": 3},
            {"status": "success", "images": 31},
            {"status": "taken_down", "images": 6},
        ]
        kept = catalog.sql("SELECT count(*) AS pairs FROM samples WHERE kept").to_pylist()[0]["pairs"]
        funnel = catalog.funnel("kept").to_pylist()
        assert catalog.sql("SELECT sum(samples) AS n FROM shards").to_pylist()[0]["n"] == kept // 2
    assert [step["rule"] for step in funnel] == ["downloaded", "bright", "taken_down"]
    assert funnel[-1]["pairs_left"] == kept
    assert funnel[-1]["dropped"] == 2 * 5, "4, 10, 16, 21 and the copy 34; 9 was never kept"
    assert show.funnel(newest(store, "kept"))[-1] == ("taken_down", kept + 10, 10)
    statuses = newest(store, "kept").statuses
    assert (statuses["kept"], sum(statuses.values())) == (kept, 80)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the closing of tars to the collector
def test_the_shards_are_read_by_webdataset_and_the_indexes_point_at_the_bytes(root: Path) -> None:
    take_down(root, uids(*GONE))
    store = Store(str(root))
    shards = newest(store, "shards")
    (sizes,) = [record for record in shards.records if record.file("sizes")]
    braces = store.full(f"shards/{sizes.notes['path']}")
    read = list(webdataset.WebDataset(braces, shardshuffle=False, empty_check=False))
    counted = json.loads((Path(braces).parent / "sizes.json").read_text())
    assert len(read) == sum(counted.values()) == sizes.notes["samples"]
    assert {uid_of(number) for number in GONE}.isdisjoint(sample["__key__"] for sample in read)
    texts = {sample["__key__"]: sample["txt"] for sample in read}
    gc.collect()
    for record in shards.records:
        if record.file("samples"):
            file = record.file("shard")
            assert file is not None
            data = store.get(store.place(record, file))
            for row in store.read_table(record, "samples").to_pylist():
                text = data[row["txt_offset"] :][: row["txt_nbytes"]]
                assert text == texts[row["uid"]]
                assert data[row["image_offset"] :][:3] == b"\xff\xd8\xff"
            assert counted[row["shard"]] == record.rows["samples"]
    every_offset_leads_to_its_image(store, newest(store, "pool"))


def test_older_generations_and_what_nobody_names_are_cleaned_and_stay_askable(root: Path) -> None:
    go(root, "kept.rules=[{all: \"status = 'success'\"}]")
    go(root)
    store = Store(str(root))
    assert store.newest_number("shards") == 3
    with store.fs.open(store.full("shards/data/spool-killed.tar"), "wb") as handle:
        handle.write(next(store.get(store.place(r, r.files[0])) for r in newest(store, "pool").records))
    take_down(root, uids(*GONE))
    is_clean(root, *GONE, *COPIES)
    for one in store.runs():
        with Catalog(str(root), one.id) as catalog:
            assert catalog.sql("SELECT count(*) AS n FROM samples").to_pylist() == [{"n": 80}]
    assert go(root)[1] == []


def test_a_training_that_has_not_ended_begins_anew(root: Path) -> None:
    """It has seen the images, and the shards that it went on from are others now."""
    store = Store(str(root))
    before = store.committed("scores")
    for key in {*before, "feed"}:
        store.put(f"scores/checkpoints/{key}/checkpoints/000000000100/complete.json", b"{}")
    take_down(root, uids(*GONE))
    ended = before & store.committed("scores")  # others were written anew under another key
    assert ended
    assert set(store.names("scores/checkpoints")) == ended


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Asked(urls=(url_of(4), "http://elsewhere.org/x")), {4, 34}),
        (Asked(urls=(url_of(4).replace("http://", "HTTPS://") + "#top",)), {4, 34}),
        (Asked(urls=(url_of(4).replace("example.org/", "EXAMPLE.org:80/"),)), {4, 34}),
        (Asked(urls=(url_of(4).replace(".jpg", ".JPG"),)), set()),
        (Asked(sha256s=(sha256(picture(6)).hexdigest(),)), {6, 36}),
        (Asked(domains=("cats.example.org",)), set(range(0, 40, 5))),
        (Asked(domains=("ats.example.org", "org.example", "cats.example.or")), set()),
    ],
)
def test_what_is_asked_is_found_by_every_name(root: Path, asked: Asked, expected: set[int]) -> None:
    store = Store(str(root))
    found = erasure.search(store, asked, copies=not asked.domains, progress=quiet)
    meant = {uid for located in found.located.values() for uid in located.to_pylist()}
    assert meant == {uid_of(number) for number in expected}
    assert tombstones(store) == []


def test_the_same_bytes_elsewhere_stay_unless_they_are_asked_for(root: Path) -> None:
    take_down(root, uids(4), copies=False)
    is_clean_of = [name for _, name, _ in members(root) if name.startswith(uid_of(4))]
    others = [name for _, name, _ in members(root) if name.startswith(uid_of(34))]
    assert (is_clean_of, len(others) > 0) == ([], True)


def test_a_table_that_cannot_be_searched_is_an_error_not_a_clean_bill(root: Path) -> None:
    path = next((root / "pool/data").glob("*.parquet"))
    path.write_bytes(b"PAR1")
    with pytest.raises(SluiceError, match=r"cannot be searched .*verify .* --repair"):
        erasure.search(Store(str(root)), uids(4), True, quiet)


def test_erasing_nulls_every_type_and_is_done_once() -> None:
    schema = pa.schema(
        [
            ("uid", pa.string()),
            ("vector", pa.list_(pa.float16(), 2)),
            ("boxes", pa.list_(pa.struct([("x", pa.int32())]))),
            pa.field("text", pa.string(), nullable=False),
            ("url", pa.string()),
            ("status", pa.string()),
        ]
    )
    said = {"vector": [1.0, 2.0], "boxes": [{"x": 1}], "text": "t", "url": "https://x:y@a.org:81/p?q#f"}
    rows = [{"uid": n, **said, "status": "success"} for n in "abc"]
    nothing = {"vector": None, "boxes": None, "text": None, "url": "https://a.org:81/"}
    before = pa.Table.from_pylist(rows, schema=schema)
    after = tables.erased(before, pa.array(["b", "c"]), pa.array(["c"]))
    assert after.to_pylist() == [
        rows[0],
        {"uid": "b", **nothing, "status": "taken_down"},
        {"uid": "c", **nothing, "status": "success"},
    ]
    assert tables.erased(after, pa.array(["b", "c"]), pa.array(["c"])).equals(after)
    assert tables.erased(before, pa.array(["x"])) is before


@pytest.fixture(scope="module")
def server() -> Iterator[moto.S3]:
    with moto.serving() as found, found.environment():
        yield found


def test_on_s3_as_well(server: moto.S3) -> None:
    root = f"{server.bucket('takedown')}/root"
    small = ("urls.rows=12", "urls.parts=2")
    go(root, *small)
    take_down(root, uids(4, 10))
    is_clean(root, 4, 10)
    assert go(root, *small)[1] == []
