"""Tables of URLs in, one row per URL out: who is who, what is refused, and what it says about it."""

from decimal import Decimal
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SluiceError
from stages.kit import exchange
from tests.stages.ingest.conftest import Ingest, parquet

CAT, DOG = "https://a.example/cat.jpg", "http://b.example:8080/dog.png?size=2"


def identity(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def test_a_url_and_a_text_are_known_by_their_hash(ingest: Ingest, tmp_path: Path) -> None:
    generation = ingest(parquet(tmp_path / "t.parquet", url=[f"  {CAT}\n"], caption=[" a cat "], license=["CC0"]))
    (image,), (caption,) = ingest.rows(generation, "image"), ingest.rows(generation, "caption")
    assert image == {
        "uid": identity(CAT),
        "url": CAT,
        "license": "CC0",
        "caption": " a cat ",
        "captions": 1,
        "source_file": str(tmp_path / "t.parquet"),
        "source_row": 0,
    }
    assert caption == {
        "uid": identity(CAT),
        "caption_id": identity(" a cat "),
        "caption": " a cat ",
        "source": "web",
        "caption_cleaned": False,
        "caption_raw_sha256": None,
    }


def test_repeats_of_a_url_become_one_image_with_the_captions_of_all(ingest: Ingest, tmp_path: Path) -> None:
    table = parquet(
        tmp_path / "t.parquet",
        url=[CAT, DOG, CAT, CAT, CAT],
        caption=["a cat", None, "a cat", "eine Katze", ""],
        n=[1, 2, 3, 4, 5],
    )
    generation = ingest(table)
    assert generation.statuses == {"ok": 2, "merged": 3}
    assert ingest.pairs(generation) == {(CAT, "a cat"), (CAT, "eine Katze"), (DOG, None)}
    by_url = {row["url"]: row for row in ingest.rows(generation, "image")}
    assert (by_url[CAT]["n"], by_url[CAT]["caption"], by_url[DOG]["caption"]) == (1, "a cat", None)
    assert [row["caption"] for row in ingest.rows(generation, "caption") if row["uid"] == identity(CAT)] == [
        "a cat",
        "eine Katze",
    ]
    (without,) = [row for row in ingest.rows(generation, "caption") if row["uid"] == identity(DOG)]
    assert without["caption_id"] == identity("")


def test_captions_come_from_several_columns_and_from_lists(ingest: Ingest, tmp_path: Path) -> None:
    table = parquet(
        tmp_path / "t.parquet",
        url=[CAT, DOG],
        alt=["one", None],
        sentences=[["two", "one", None, "three"], []],
        title=["zero", "a dog"],
    )
    generation = ingest(table, caption=["title", "alt", "sentences"])
    captions = ingest.rows(generation, "caption")
    assert [row["caption"] for row in captions if row["uid"] == identity(CAT)] == ["zero", "one", "two", "three"]
    assert [row["caption"] for row in captions if row["uid"] == identity(DOG)] == ["a dog"]


def test_images_without_captions_can_be_asked_for(ingest: Ingest, tmp_path: Path) -> None:
    generation = ingest(parquet(tmp_path / "t.parquet", url=[CAT, CAT], text=["a", "b"]), caption=None)
    assert ingest.pairs(generation) == {(CAT, None)}
    assert ingest.rows(generation, "image")[0]["text"] == "a", "a column that is no caption is carried"


def test_every_row_that_is_refused_says_why_and_where(ingest: Ingest, tmp_path: Path) -> None:
    urls = [CAT, None, "   ", "ftp://a/b.jpg", "not a url", "http://[::1", "http://a/\u0001.jpg", "http://", DOG]
    table = parquet(tmp_path / "t.parquet", url=urls, caption=["x"] * 8 + ["y" * 10_001])
    generation = ingest(table)
    assert generation.statuses == {"ok": 1, "no_url": 2, "bad_url": 5, "caption_too_long": 1}
    errors = {row["row"]: row for row in ingest.rows(generation, "errors")}
    assert sorted(errors) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert errors[1]["error"] == f"no_url: {table} row 1: the row has no URL"
    assert errors[3]["error"].endswith("'ftp://a/b.jpg' has the scheme 'ftp'; expected http or https")
    assert errors[6]["error"].endswith("has control characters")
    assert "'" + "y" * 200 + "'… has more than 10000 characters" in errors[8]["error"]
    assert errors[1]["uid"] is None
    assert errors[8]["uid"] == identity(DOG)


@pytest.mark.fault(28)
def test_a_caption_of_ten_megabytes_is_refused_and_its_image_lives_by_its_other_row(
    ingest: Ingest, tmp_path: Path
) -> None:
    generation = ingest(parquet(tmp_path / "t.parquet", url=[CAT, CAT], caption=["x" * 10_000_000, "a cat"]))
    assert generation.statuses == {"ok": 1, "caption_too_long": 1}
    assert ingest.pairs(generation) == {(CAT, "a cat")}
    assert sum(file.bytes for record in generation.records for file in record.files) < 50_000


@pytest.mark.fault(26)
def test_control_characters_leave_a_caption_and_are_flagged(ingest: Ingest, tmp_path: Path) -> None:
    table = parquet(tmp_path / "t.parquet", url=[CAT, DOG], caption=["a\0 c\x1bat\x9f", "tab\tand\nline"])
    captions = {row["caption"]: row for row in ingest.rows(ingest(table), "caption")}
    assert captions["a cat"]["caption_cleaned"]
    assert not captions["tab\tand\nline"]["caption_cleaned"]


@pytest.mark.fault(29)
def test_bytes_that_are_no_utf8_are_replaced_and_their_hash_is_kept(ingest: Ingest, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"url,caption,note\n" + CAT.encode() + b",caf\xe9,\xff!\n" + DOG.encode() + b",fine,\n")
    generation = ingest(path)
    captions = {row["caption"]: row for row in ingest.rows(generation, "caption")}
    assert captions["caf\ufffd"]["caption_raw_sha256"] == sha256(b"caf\xe9").hexdigest()
    assert captions["fine"]["caption_raw_sha256"] is None
    assert {row["note"] for row in ingest.rows(generation, "image")} == {"\ufffd!", ""}


@pytest.mark.fault(27)
def test_a_right_to_left_override_stays(ingest: Ingest, tmp_path: Path) -> None:
    generation = ingest(parquet(tmp_path / "t.parquet", url=[CAT], caption=["evil\u202egpj.exe"]))
    assert ingest.pairs(generation) == {(CAT, "evil\u202egpj.exe")}


# -- columns -----------------------------------------------------------------------------------------------------------


def test_columns_keep_their_types_and_give_way_to_names_that_mean_something(ingest: Ingest, tmp_path: Path) -> None:
    table = pa.table(
        {
            "URL": [CAT],
            "TEXT": ["a cat"],
            "WIDTH": pa.array([640], pa.int32()),
            "uid": ["original"],
            "similarity": pa.array([0.3], pa.float32()),
            "tags": [["a", "b"]],
            "kind": pa.array(["x"]).dictionary_encode(),
            "__index_level_0__": [7],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    generation = ingest(tmp_path / "t.parquet", url="URL", caption="TEXT")
    image = ingest.table(generation, "image")
    assert image.column_names == [
        *("uid", "url", "source_WIDTH", "source_uid", "similarity", "tags", "kind", "caption"),
        *("captions", "source_file", "source_row"),
    ]
    assert image.schema.field("source_WIDTH").type == pa.int32()
    assert image.schema.field("kind").type == pa.string()
    assert image.column("tags").to_pylist() == [["a", "b"]]


def test_types_that_only_store_a_value_otherwise_become_plain(ingest: Ingest, tmp_path: Path) -> None:
    columns = {
        "url": pa.array([CAT], pa.large_string()),
        "caption": pa.array(["x"], pa.string_view()),
        "price": pa.array([Decimal("1.50")], pa.decimal128(5, 2)),
        "digest": pa.array([b"0123"], pa.binary(4)),
        "id": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)], pa.binary(16))),
        "labels": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())),
        "box": pa.array([{"names": ["n"]}], pa.struct([("names", pa.list_(pa.large_string()))])),
        "when": pa.array([0], pa.timestamp("ms", "UTC")),
        "vector": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
        "nothing": pa.nulls(1),
    }
    (row,) = ingest.rows(ingest(parquet(tmp_path / "t.parquet", **columns)), "image")
    assert (row["price"], row["digest"], row["id"]) == ("1.50", b"0123", bytes(16))
    assert (row["labels"], row["box"]) == ([{"key": "a", "value": 1}], {"names": ["n"]})
    assert (row["when"].year, row["vector"], row["nothing"]) == (1970, [1.0, 2.0], None)


def test_an_id_of_the_input_is_carried_as_source_uid(ingest: Ingest, tmp_path: Path) -> None:
    generation = ingest(parquet(tmp_path / "t.parquet", url=[CAT], caption=["x"], n=[12]), source_uid="n")
    assert ingest.rows(generation, "image")[0]["source_uid"] == "12"


def test_files_with_different_columns_share_them(ingest: Ingest, tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", url=[CAT], caption=["x"], n=[1], empty=pa.nulls(1))
    parquet(tmp_path / "b.parquet", url=[DOG], caption=["x"], empty=["no"])
    rows = {row["url"]: row for row in ingest.rows(ingest(tmp_path / "*.parquet"), "image")}
    assert (rows[CAT]["n"], rows[DOG]["n"]) == (1, None)
    assert (rows[CAT]["empty"], rows[DOG]["empty"]) == (None, "no")


def test_a_conflict_of_types_names_the_file_and_the_column(ingest: Ingest, tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", url=[CAT], caption=["x"], n=[1])
    parquet(tmp_path / "b.parquet", url=[DOG], caption=["x"], n=["one"])
    with pytest.raises(SluiceError, match=r"b\.parquet: column 'n' is string, but int64 in .*a\.parquet"):
        ingest(tmp_path / "*.parquet")


@pytest.mark.parametrize(
    ("columns", "parameters", "message"),
    [
        ({"URL": [CAT], "caption": ["x"]}, {}, "url: .* has no column 'url'; did you mean 'URL'"),
        ({"url": [CAT], "captions": ["x"]}, {}, "caption: .* has no column 'caption'; did you mean 'captions'"),
        ({"url": [CAT], "caption": ["x"]}, {"source_uid": "id"}, "source_uid: .* has no column 'id'"),
        ({"url": [CAT], "caption": [{"en": "x"}]}, {}, "column 'caption' is struct<en: string>; expected text"),
        ({"url": [CAT], "caption": ["x"], "n": [1], "N": [2]}, {}, "columns 'n' and 'N' would both be 'N'"),
    ],
)
def test_columns_that_do_not_fit_are_told_before_anything_runs(
    ingest: Ingest, tmp_path: Path, columns: dict[str, Any], parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(SluiceError, match=message):
        ingest(parquet(tmp_path / "t.parquet", **columns), **parameters)
    assert not ingest.executor.calls


def test_files_that_are_not_there_or_of_no_known_format_are_told(ingest: Ingest, tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match="no file matches"):
        ingest(tmp_path / "*.parquet")
    (tmp_path / "t.xlsx").write_bytes(b"x")
    with pytest.raises(SluiceError, match=r"t\.xlsx has no ending of a known format; expected \.parquet"):
        ingest(tmp_path / "t.xlsx")


# -- parts -------------------------------------------------------------------------------------------------------------


def table(path: Path, count: int, start: int = 0) -> Path:
    numbers = range(start, start + count)
    return parquet(path, url=[f"https://a.example/{n}.jpg" for n in numbers], caption=[f"number {n}" for n in numbers])


def test_parts_are_buckets_of_uids_in_order(ingest: Ingest, tmp_path: Path) -> None:
    generation = ingest(table(tmp_path / "t.parquet", 1000), rows_per_part=150)
    assert [record.part for record in generation.records] == [f"000-{bucket:05d}" for bucket in range(8)]
    for bucket, record in enumerate(generation.records):
        uids = ingest.store.read_table(record, "image", ["uid"]).column("uid").to_pylist()
        assert uids == sorted(uids)
        assert {int(uid[0], 16) >> 1 for uid in uids} == {bucket}
    assert generation.images == 1000


def test_more_buckets_than_one_exchange_can_cut_take_another(
    ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "STEP", 2)
    generation = ingest(table(tmp_path / "t.parquet", 300), rows_per_part=10)
    assert len(generation.records) == 32
    assert generation.statuses == {"ok": 300}
    assert len(ingest.pairs(generation)) == 300
    assert len(ingest.executor.calls["urls"]) == 1 + 4 + 16 + 32


def test_limit_takes_the_first_rows_in_the_order_of_the_files(ingest: Ingest, tmp_path: Path) -> None:
    for index in range(4):
        table(tmp_path / f"{index}.parquet", 10, start=10 * index)
    generation = ingest(tmp_path / "*.parquet", limit=25)
    assert ingest.pairs(generation) == {(f"https://a.example/{n}.jpg", f"number {n}") for n in range(25)}
    assert sum(generation.statuses.values()) == 25


def test_an_empty_table_gives_one_empty_part(ingest: Ingest, tmp_path: Path) -> None:
    schema = pa.schema([("url", pa.string()), ("caption", pa.string()), ("n", pa.int64())])
    pq.write_table(schema.empty_table(), tmp_path / "t.parquet")
    generation = ingest(tmp_path / "t.parquet")
    assert generation.images == 0
    assert ingest.table(generation, "image").schema.field("n").type == pa.int64()


def test_the_same_content_elsewhere_is_the_same_work(ingest: Ingest, tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", 50)
    before = ingest(path)
    ingest.executor.calls.clear()
    after = ingest(path.rename(tmp_path / "moved.parquet"))
    assert not ingest.executor.calls
    assert after.content_hash == before.content_hash


def test_the_output_is_what_it_was(ingest: Ingest, tmp_path: Path) -> None:
    """Golden: a change here needs a new `revision`."""
    path = parquet(tmp_path / "t.parquet", url=[CAT, DOG, CAT, "x"], caption=["a", "b\0", "c", "d"], n=[1, 2, 3, 4])
    generation = ingest(path)
    assert generation.content_hash == "0ab4302db562a037dbc6c3dca5c7a5b8"
