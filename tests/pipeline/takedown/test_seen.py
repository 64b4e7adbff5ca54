"""Who had what is taken down is listed: selections, shards, models, indexes, tars of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import Catalog, Dag, run
from pipeline.store import Store
from pipeline.takedown import erasure
from pipeline.takedown.tombstones import tombstones
from tests.inline import Inline
from tests.pipeline.takedown.erased import HOSTS, has_no_vector, index, is_clean, newest, quiet, take_down, uids
from tests.takedowns import adoptable, members, picture, table, uid_of, vector_of


def test_the_selections_shards_and_checkpoints_that_had_them_are_listed(root: Path) -> None:
    store = Store(str(root))
    before = {name: (tar, data) for tar, name, data in members(root) if "/shards/" in tar}
    found = take_down(root, uids(4, 7, 9))
    rows = found.seen.to_pylist()
    assert {(row["what"], row["node"], row["generation"], row["runs"]) for row in rows} == {
        ("selection", "kept", 1, "0001"), ("shard", "shards", 1, "0001"), ("made_from", "model", 1, "0001"),
    }  # fmt: skip
    assert {row["uid"] for row in rows if row["what"] == "selection"} == {uid_of(4), uid_of(34), uid_of(37)} - (
        {uid_of(37)} if 37 % 4 == 3 else set()
    )
    for row in rows:
        if row["what"] == "shard":
            tar, data = before[row["member"]]
            assert tar == row["shard"]
            assert row["uid"] == row["member"].partition(".")[0]
            assert data[:3] == b"\xff\xd8\xff"
    (tombstone,) = tombstones(store)
    assert (tombstone.images, tombstone.asked, tombstone.reason) == (5, {"uids": 3}, "because")
    data = b"".join(store.get(f"takedowns/{name}") for name in store.names("takedowns"))
    assert b"secret" not in data
    assert b"example.org" not in data


def test_a_model_that_never_saw_them_is_not_listed(root: Path) -> None:
    found = take_down(root, uids(7), copies=False)  # dropped by `bright`
    assert {row["what"] for row in found.seen.to_pylist()} == set()


def test_an_adopted_tar_is_its_owners_to_erase_and_is_never_read_there_again(tmp_path: Path) -> None:
    tar = tmp_path / "theirs.tar"
    adoptable(tar)
    text = f"dag: x\nnodes:\n  pool: {{steps: [{{tests.takedowns.Adopted: {{tar: {tar}}}}}]}}\n"
    root, before = tmp_path / "root", tar.read_bytes()
    executor = Inline(Store(str(root)))
    run(Dag.parse(text), str(root), executor=executor)
    found = take_down(root, uids(3))
    (row,) = found.seen.to_pylist()
    assert (row["what"], row["uid"], row["shard"]) == ("adopted", uid_of(3), str(tar))
    assert before[row["offset"] :][: len(picture(3))] == picture(3)
    assert tar.read_bytes() == before
    for again in (0, 1):  # adopted anew, it is withheld as well
        result = run(Dag.parse(text, [f"pool.again={again}"]), str(root), executor=executor)
        assert result.generations["pool"].statuses == {"success": 5, "taken_down": 1}
        rows = table(Store(str(root)), result.generations["pool"], "image").to_pylist()
        assert [row["uid"] for row in rows if row["url"] in HOSTS and row["offset"] is None] == [uid_of(3)]
    assert executor.calls["pool"] == ["000-00000", "000-00000"]


def test_an_index_that_has_them_is_listed_deleted_and_made_anew(root: Path) -> None:
    index(root)
    with pytest.raises(AssertionError):
        has_no_vector(root, 4)
    found = take_down(root, uids(4))
    assert {row["what"] for row in found.seen.to_pylist() if row["node"] == "index"} == {"made_from"}
    has_no_vector(root, 4)
    is_clean(root, 4, 34)
    for one in Store(str(root)).runs():
        with Catalog(str(root), one.id) as catalog:
            assert catalog.sql("SELECT count(*) AS n FROM samples").to_pylist() == [{"n": 80}]
    assert index(root).calls["index"].count("all") == 1, "it was trained anew"
    has_no_vector(root, 4)
    is_clean(root, 4, 34)
    made = newest(Store(str(root)), "index")
    assert made.statuses == {"indexed": 34}
    assert vector_of(5) in b"".join(path.read_bytes() for path in root.glob("index/data/*index.faiss"))
    assert index(root).calls == {}
    again = erasure.search(Store(str(root)), uids(4), True, quiet)
    assert erasure.is_done(Store(str(root)), again)
