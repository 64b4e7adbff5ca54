"""Every format says the same, from any store; a damaged file is named, and one that changes stops the run."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.errors import SluiceError
from tests.stages.ingest.conftest import Ingest, parquet

CAT, DOG = "https://a.example/cat.jpg", "http://b.example:8080/dog.png?size=2"
PAIRS = [(CAT, 'a "cat", it says'), (DOG, "zwei\nHunde"), (CAT, "noch eine")]


def write(path: Path, pairs: list[tuple[str, str]]) -> Path:
    bare = path.name.removesuffix(".gz")
    text = ""
    if bare.endswith("parquet"):
        return parquet(path, url=[url for url, _ in pairs], caption=[caption for _, caption in pairs])
    if bare.endswith("json"):
        text = "".join(json.dumps({"url": url, "caption": caption}) + "\n" for url, caption in pairs)
    else:
        with open(path.with_name("plain"), "w", newline="") as handle:
            csv.writer(handle).writerows([("url", "caption"), *pairs])
        text = path.with_name("plain").read_text()
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.ndjson", "t.ndjson.gz", "t.parquet"])
def test_every_format_says_the_same(ingest: Ingest, tmp_path: Path, name: str) -> None:
    generation = ingest(write(tmp_path / name, PAIRS))
    assert ingest.pairs(generation) == set(PAIRS)
    assert generation.statuses == {"ok": 2, "merged": 1}


def test_a_compressed_parquet_file_is_read_as_well(ingest: Ingest, tmp_path: Path) -> None:
    data = write(tmp_path / "t.parquet", PAIRS).read_bytes()
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress(data))
    assert ingest.pairs(ingest(tmp_path / "t.parquet.gz")) == set(PAIRS)


def test_a_tsv_without_header_takes_its_names_from_the_parameters_and_knows_no_quotes(
    ingest: Ingest, tmp_path: Path
) -> None:
    path = tmp_path / "t.tsv"
    path.write_text(f'"Quoted" it begins\t{CAT}\n"only at the start\t{DOG}\n\nthree\tfields\there\n')
    with pytest.raises(SluiceError, match="where the file has no header, name its columns"):
        ingest(path)
    generation = ingest(path, columns=["caption", "url"])
    assert ingest.pairs(generation) == {(CAT, '"Quoted" it begins'), (DOG, '"only at the start')}
    assert generation.statuses == {"ok": 2, "bad_row": 1}
    (error,) = ingest.rows(generation, "errors")
    assert error["error"].endswith("row 2: 'three,fields,here' has 3 fields; expected 2")


def test_json_lines_carry_what_is_nested_as_json_and_late_keys_together(ingest: Ingest, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = [{"url": CAT, "caption": ["a", "b"], "meta": {"x": [1, None]}, "n": 3}]
    lines += [{"url": f"{DOG}&{n}", "caption": "c"} for n in range(1000)]
    lines += [{"url": DOG, "caption": None, "late": True}]
    path.write_text("\ufeff" + "".join(json.dumps(line) + "\n" for line in lines) + "{broken\n[1]\n")
    generation = ingest(path)
    assert generation.statuses == {"ok": 1002, "bad_row": 2}
    images = {row["url"]: row for row in ingest.rows(generation, "image")}
    assert images[CAT]["meta"] == '{"x": [1, null]}'
    assert images[CAT]["n"] == "3"
    assert images[DOG]["source_more"] == '{"late": true}'
    assert {(CAT, "a"), (CAT, "b"), (DOG, None)} <= ingest.pairs(generation)


def test_json_may_spell_half_a_character(ingest: Ingest, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"url": CAT, "caption": "half \ud83d of it"}) + "\n")
    (caption,) = ingest.rows(ingest(tmp_path / "t.jsonl"), "caption")
    assert caption["caption"] == "half \ufffd\ufffd\ufffd of it"
    assert caption["caption_cleaned"]


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.fault(39)
def test_a_truncated_parquet_file_is_named(ingest: Ingest, tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", PAIRS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SluiceError, match=r"t\.parquet is no readable Parquet: "):
        ingest(path)


@pytest.mark.fault(39)
def test_flipped_bits_in_a_parquet_file_never_lose_rows_silently(ingest_in: Any, tmp_path: Path) -> None:
    path = parquet(tmp_path / "good.parquet", url=[f"{CAT}?{n}" for n in range(200)], caption=["x"] * 200)
    data = path.read_bytes()
    outcomes: Counter[str] = Counter()
    for place in range(4, len(data), len(data) // 40):
        flipped = tmp_path / "flipped.parquet"
        flipped.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            generation = ingest_in(f"root{place}")(flipped)
        except SluiceError as error:
            outcomes["refused" if "flipped.parquet" in str(error) else str(error)] += 1
        else:
            outcomes["read" if sum(generation.statuses.values()) == 200 else str(generation.statuses)] += 1
    assert set(outcomes) == {"refused", "read"}
    assert outcomes["refused"] > 5, "the flips must land where they matter"


def test_a_truncated_gzip_file_is_named(ingest: Ingest, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv.gz", [(f"{CAT}?{n}", "x") for n in range(50_000)])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SluiceError, match=r"t\.csv\.gz is no readable CSV: "):
        ingest(path)


@pytest.mark.fault(48)
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_file_that_changes_during_the_run_stops_it(ingest: Ingest, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, PAIRS)
    ingest.before_work = lambda: write(path, [*PAIRS, ("https://late.example/", "late")])
    with pytest.raises(SluiceError, match=f"{name} changed while it was read"):
        ingest(path)


def test_files_on_another_store_are_read_alike(ingest: Ingest) -> None:
    fs = fsspec.filesystem("memory")
    with fs.open("/tables/t.csv", "wb") as handle:
        handle.write(f"url,caption\n{CAT},a cat\n".encode())
    try:
        generation = ingest("memory://tables/*.csv")
        assert ingest.pairs(generation) == {(CAT, "a cat")}
        assert ingest.rows(generation, "image")[0]["source_file"] == "memory:///tables/t.csv"
    finally:
        fs.rm("/tables", recursive=True)
