"""Files that come later: what was ingested stays as it is, and nothing is lost, doubled or read again."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import SluiceError
from pipeline.node import Unfinished
from tests.stages.ingest.conftest import Ingest

Row = tuple[str | None, str | None]


def write(folder: Path, name: str, rows: list[Row], **extras: Any) -> Path:
    folder.mkdir(exist_ok=True)
    urls, captions = pa.array([url for url, _ in rows], pa.string()), pa.array([text for _, text in rows], pa.string())
    pq.write_table(pa.table({"url": urls, "caption": captions, **extras}), folder / name)
    return folder / name


def numbered(numbers: range, word: str = "number") -> list[Row]:
    return [(f"https://a.example/{n}.jpg", f"{word} {n}") for n in numbers]


def test_new_files_become_parts_of_their_own_and_old_parts_stay(ingest: Ingest, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data, "b.parquet", numbered(range(40)))
    first = ingest(data / "*.parquet", rows_per_part=10)
    ingest.executor.calls.clear()
    write(data, "a.parquet", numbered(range(40, 60)))
    second = ingest(data / "*.parquet", rows_per_part=10)
    assert second.records[: len(first.records)] == first.records
    assert [record.part for record in second.records[4:]] == ["001-00000", "001-00001"]
    assert second.images == 60
    assert all(part.startswith("001-") for part in ingest.executor.calls["urls"]), "nothing old is done again"
    assert sum(second.statuses.values()) == 60


def test_a_known_url_comes_again_only_with_new_captions(ingest: Ingest, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data, "a.parquet", numbered(range(20)), n=list(range(20)))
    first = ingest(data / "*.parquet", rows_per_part=5)
    same, other, new = numbered(range(3)), numbered(range(3, 6), "another"), numbered(range(20, 22))
    write(data, "b.parquet", same + other + new)
    second = ingest(data / "*.parquet", rows_per_part=5)
    assert second.statuses == {"ok": 22, "merged": 6}
    assert second.images == 22
    assert ingest.pairs(second) == set(numbered(range(22)) + other)
    rows = {row["url"]: row for row in ingest.rows(second, "image")}
    assert rows["https://a.example/4.jpg"]["n"] == 4, "what the first file said of it is kept"
    assert rows["https://a.example/4.jpg"]["caption"] == "number 4"
    replaced = {part for record in second.records for part in record.supersedes}
    held = {
        record.part
        for record in first.records
        for url in ingest.store.read_table(record, "image").column("url").to_pylist()
        if url in {url for url, _ in other}
    }
    assert replaced == held


def test_a_caption_takes_the_place_of_none(ingest: Ingest, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data, "a.parquet", [("https://a.example/", None)])
    ingest(data / "*.parquet")
    write(data, "b.parquet", [("https://a.example/", "at last")])
    assert ingest.pairs(ingest(data / "*.parquet")) == {("https://a.example/", "at last")}


def test_three_increments_overrule_each_other_in_order(ingest: Ingest, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name, captions in (("a", ["one"]), ("b", ["two"]), ("c", ["one", "three"])):
        write(data, f"{name}.parquet", [("https://a.example/", caption) for caption in captions])
        generation = ingest(data / "*.parquet")
    assert [row["caption"] for row in ingest.rows(generation, "caption")] == ["one", "two", "three"]
    assert generation.records[2].supersedes == ("001-00000",)
    assert generation.statuses == {"ok": 1, "merged": 3}


def test_a_file_that_is_gone_ends_the_increments_that_knew_it(ingest: Ingest, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in "abc":
        write(data, f"{name}.parquet", numbered(range(ord(name), ord(name) + 3)))
        ingest(data / "*.parquet")
    (data / "b.parquet").unlink()
    generation = ingest(data / "*.parquet")
    assert {record.part for record in generation.records} == {"000-00000", "001-00000"}
    assert ingest.pairs(generation) == set(numbered(range(97, 100)) + numbered(range(99, 102)))


def test_an_increment_counts_what_the_limit_left(ingest: Ingest, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data, "a.parquet", numbered(range(10)))
    ingest(data / "*.parquet", limit=15)
    write(data, "b.parquet", numbered(range(10, 20)))
    second = ingest(data / "*.parquet", limit=15)
    assert ingest.pairs(second) == set(numbered(range(15)))
    write(data, "c.parquet", numbered(range(20, 30)))
    third = ingest(data / "*.parquet", limit=15)
    assert third.records == second.records


def test_later_files_must_agree_on_types_too(ingest: Ingest, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data, "a.parquet", numbered(range(1)), n=[1])
    ingest(data / "*.parquet")
    write(data, "b.parquet", numbered(range(1, 2)), n=["x"])
    with pytest.raises(SluiceError, match=r"b\.parquet: column 'n' is string, but int64"):
        ingest(data / "*.parquet")


def test_a_part_that_is_missing_is_made_again_to_the_same_content(ingest: Ingest, tmp_path: Path) -> None:
    """What `sluice verify --repair` asks for: the previous generation without the broken record."""
    data = tmp_path / "data"
    write(data, "a.parquet", numbered(range(20)))
    ingest(data / "*.parquet", rows_per_part=5)
    write(data, "b.parquet", numbered(range(10, 30), "another"))
    whole = ingest(data / "*.parquet", rows_per_part=5)
    for broken in (whole.records[1], whole.records[-1]):
        left = whole.model_copy(update={"records": tuple(r for r in whole.records if r != broken)})
        dag_work = ingest.work(data / "*.parquet", previous=left, rows_per_part=5)
        ingest.store.delete(f"urls/commits/{broken.work_key}.json")
        ingest.executor.calls.clear()
        records = dag_work.assemble()
        assert ingest.executor.calls["urls"] == [broken.part]
        assert [(r.part, r.content_hash) for r in records] == [(r.part, r.content_hash) for r in whole.records]


def test_a_plan_sees_what_is_missing_and_writes_nothing(ingest: Ingest, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data, "a.parquet", numbered(range(5)))
    work = ingest.work(data / "*.parquet", plan=True)
    with pytest.raises(Unfinished, match="read0"):
        work.assemble()
    assert not ingest.store.exists("urls")


urls = st.sampled_from([f"https://a.example/{n}" for n in range(12)] + ["bad", "", None])
texts = st.sampled_from(["a", "b", "c", "", None])
files = st.lists(st.lists(st.tuples(urls, texts), max_size=12), min_size=1, max_size=4)


@given(files, st.sampled_from([2, 5, 100]), st.lists(st.booleans(), min_size=3, max_size=3))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_files_arrive_every_row_ends_once_and_no_caption_is_lost(
    tmp_path_factory: pytest.TempPathFactory, contents: list[list[Row]], rows_per_part: int, pauses: list[bool]
) -> None:
    folder = tmp_path_factory.mktemp("split")
    ingest = Ingest(folder / "root")
    for index, rows in enumerate(contents):
        write(folder / "data", f"{index}.parquet", rows)
        if index + 1 == len(contents) or pauses[index]:
            generation = ingest(folder / "data" / "*.parquet", rows_per_part=rows_per_part)
            seen = [row for rows in contents[: index + 1] for row in rows]
            expected = reference(seen)
            assert sum(generation.statuses.values()) == len(seen)
            assert ingest.pairs(generation) == expected
            uids = [row["uid"] for row in ingest.rows(generation, "image")]
            assert len(uids) == len(set(uids)) == generation.images == generation.statuses.get("ok", 0)
            pairs = [(row["uid"], row["caption_id"]) for row in ingest.rows(generation, "caption")]
            assert len(pairs) == len(set(pairs)) == len(expected)


def reference(rows: list[Row]) -> set[tuple[str, str | None]]:
    """What ingest must give, by the shortest road."""
    captions: dict[str, set[str]] = {}
    for url, caption in rows:
        if url and url.startswith("https://"):
            captions.setdefault(url, set()).update({caption} if caption else ())
    return {(url, caption) for url, found in captions.items() for caption in found or (None,)}
