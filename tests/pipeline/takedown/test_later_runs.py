"""After a takedown: no run, retry or repair brings anything back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline import Dag, run, upkeep
from pipeline.plan import survey
from pipeline.store import Store
from pipeline.takedown.matching import Asked
from tests.inline import Inline
from tests.pipeline.takedown.erased import (
    COPIES,
    GONE,
    INDEXED,
    every_offset_leads_to_its_image,
    is_clean,
    is_without_bytes,
    newest,
    take_down,
    uids,
)
from tests.takedowns import go, members, uid_of, url_of


def test_no_later_run_asks_for_them_and_the_same_bytes_are_not_kept(root: Path, tmp_path: Path) -> None:
    take_down(root, uids(4, 9))
    generations, asked = go(root, "urls.rows=70", f"pool.answers={tmp_path / 'up'}")
    assert len(asked) == 70 - 3
    assert {url_of(4), url_of(9), url_of(34)}.isdisjoint(asked)
    assert url_of(64) in asked, "nobody knew that it has the bytes of 4"
    assert generations["pool"].statuses == {"success": 60, "http_503": 6, "taken_down": 4}
    is_without_bytes(root, 64)
    is_clean(root, 4, 9, 34)
    store = Store(str(root))
    every_offset_leads_to_its_image(store, generations["pool"])


def test_a_retry_of_failed_rows_leaves_them_alone(root: Path, tmp_path: Path) -> None:
    answers = tmp_path / "up"
    go(root, f"pool.answers={answers}")
    take_down(root, uids(9, 19))
    answers.touch()
    generations, asked = go(root, f"pool.answers={answers}", retry=("pool",))
    assert sorted(asked) == sorted([url_of(29), url_of(39)])
    assert generations["pool"].statuses == {"success": 38, "taken_down": 2}


def test_what_a_retry_replaced_is_counted_once(root: Path, tmp_path: Path) -> None:
    answers = tmp_path / "up"
    go(root, f"pool.answers={answers}")
    answers.touch()
    go(root, f"pool.answers={answers}", retry=("pool",))
    store = Store(str(root))
    assert newest(store, "pool").statuses == {"success": 40}
    take_down(root, uids(9, 4), copies=False)
    assert newest(store, "pool").statuses == {"success": 38, "taken_down": 2}
    is_clean_of = [name for _, name, _ in members(root) if name.startswith((uid_of(9), uid_of(4)))]
    assert is_clean_of == []
    generations, asked = go(root, f"pool.answers={answers}", retry=("pool",))
    assert (asked, generations["pool"].statuses) == ([], {"success": 38, "taken_down": 2})


def test_a_domain_stays_away(root: Path) -> None:
    take_down(root, Asked(domains=("CATS.example.org.".lower().rstrip("."),)), copies=False)
    _, asked = go(root, "urls.rows=60", "urls.first=0")
    assert asked
    assert not [url for url in asked if "cats." in url]
    generations, asked = go(root, "urls.first=200")
    assert len(asked) == 32
    assert generations["pool"].statuses["taken_down"] == 8
    assert not [url for url in asked if "cats." in url]


@pytest.mark.parametrize("node", ["urls", "pool"])
def test_a_repair_brings_nothing_back(root: Path, node: str) -> None:
    take_down(root, uids(*GONE))
    store = Store(str(root))
    for record in newest(store, node).records:
        file = record.file("caption") or record.file("image")
        assert file is not None
        Path(store.full(store.place(record, file))).write_bytes(b"PAR1")
    damages = upkeep.verify(store)
    assert damages
    assert upkeep.repair(store, damages).left == []
    for _ in range(2):
        _, asked = go(root)
        assert {url_of(number) for number in (*GONE, *COPIES)}.isdisjoint(asked)
    is_clean(root, *GONE, *COPIES)


def test_shards_that_rotted_after_a_takedown_are_made_anew_as_the_error_says(root: Path) -> None:
    take_down(root, uids(*GONE))
    store = Store(str(root))
    file = newest(store, "shards").records[0].file("shard")
    assert file is not None
    Path(store.full(f"shards/{file.path}")).write_bytes(b"rot")
    (line,) = upkeep.repair(store, upkeep.verify(store)).left
    assert f"delete {store.url('shards')}/generations and `sluice run` makes it anew" in line
    shutil.rmtree(root / "shards/generations")
    generations, _ = go(root)
    assert generations["shards"].statuses == {"written": 28 - 5}
    Path(store.full(f"shards/{file.path}")).unlink()
    is_clean(root, *GONE, *COPIES)


def test_new_input_after_a_takedown_is_sharded_with_the_rest(root: Path) -> None:
    """No phase that was done on more rows is mixed with one that is done on fewer."""
    take_down(root, uids(*GONE))
    generations, _ = go(root, "shards.samples_per_shard=5")
    assert generations["shards"].statuses == {"written": 28 - 5}
    generations, _ = go(root, "kept.rules=[{downloaded: \"status = 'success' AND n >= 0\"}]")
    assert generations["shards"].statuses == {"written": 36 - 5}
    shutil.rmtree(root / "shards/generations")
    generations, _ = go(root)
    assert generations["shards"].statuses == {"written": 28 - 5}


def test_a_plan_says_that_a_takedown_changed_a_node(root: Path) -> None:
    """What nothing could be cut from is made anew, and so is what read more than the content of its inputs covers."""
    store, dag = Store(str(root)), Dag.parse(INDEXED + "  exif: {from: pool, steps: [tests.takedowns.ExifLength]}\n")
    run(dag, str(root), executor=Inline(store))
    take_down(root, uids(*GONE))
    plans = survey(dag, store)
    assert plans["index"].reasons == ["a takedown erased what it had made"]
    assert plans["index"].state in ("resume", "run")
    assert plans["exif"].reasons[0] == "bytes of its inputs changed, as by a takedown or a repair"
    assert {plans[node].reasons[0] for node in ("urls", "pool", "scores", "kept", "shards")} == {"nothing changed"}
