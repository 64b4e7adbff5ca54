"""Takedowns: bytes and words are gone from everything, wherever they were, and nothing brings them back."""

from __future__ import annotations

import gc
import io
import json
import shutil
import socket
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from click.testing import CliRunner

from pipeline import Catalog, Dag, SluiceError, run, show, upkeep
from pipeline.cli import main
from pipeline.records import Generation
from pipeline.run import LEASES
from pipeline.store import Store
from pipeline.takedown import erasure, tables
from pipeline.takedown.matching import Asked
from pipeline.takedown.tombstones import check_finished, tombstones, unfinished
from tests import s3 as moto
from tests.inline import Inline
from tests.takedowns import TEXT, adoptable, go, members, picture, table, uid_of, url_of, vector_of

GONE = (4, 10, 16, 21)
"""4, 16 and 21 are kept; 34 has the bytes of 4, and 10 the host cats.example.org."""
COPIES = (34,)
HOSTS = ("http://art.example.org/", "http://cats.example.org/")
ROT = b"PAR1"
"""What is left of a table that a test damaged; a repair leaves it where an old generation names it."""


def newest(store: Store, node: str) -> Generation:
    found = store.newest(node)
    assert found is not None
    return found


def quiet(phase: str, done: int, total: int) -> None:
    assert 0 <= done <= total, phase


def take_down(root: str | Path, asked: Asked, copies: bool = True) -> erasure.Found:
    store = Store(str(root))
    found = erasure.search(store, asked, copies, quiet)
    erasure.take_down(store, found, "because", quiet)
    return found


def uids(*numbers: int) -> Asked:
    return Asked(uids=tuple(uid_of(number) for number in numbers))


def is_without_bytes(root: str | Path, *numbers: int) -> None:
    """No tar of the root has a byte of these images, whoever names it."""
    sums = {sha256(picture(number)).hexdigest() for number in numbers}
    keys = {uid_of(number) for number in numbers}
    tars = set()
    for tar, name, data in members(root):
        tars.add(tar)
        assert sha256(data).hexdigest() not in sums, f"{tar} has the bytes of {name}"
        assert name.partition(".")[0] not in keys, f"{tar} has {name}"
    assert len(tars) > 2


def is_clean(root: str | Path, *numbers: int) -> None:
    """No byte, no word and no vector of these images is in any file of the root, whoever names it."""
    is_without_bytes(root, *numbers)
    store = Store(str(root))
    keys = {uid_of(number) for number in numbers}
    words = [f'"secret artist {number}"'.encode() for number in numbers]
    for path in store.fs.find(store.path):
        data = store.fs.cat_file(path)
        if str(path).endswith(".parquet") and "/takedowns/" not in str(path) and data != ROT:
            for row in pq.read_table(io.BytesIO(data)).to_pylist():
                if row.get("uid") in keys:
                    left = {name for name, value in row.items() if value is not None} - tables.STAYS
                    assert left <= {"status", "kept", "dropped_by", "captions", "url"}, (path, row)
                    assert row.get("url") in (None, *HOSTS), (path, row)
                assert not any(row.get("caption") == f"secret {n} {k}" for n in numbers for k in range(2)), path
        assert not any(word in data for word in words), path
    assert upkeep.verify(store) == []
    assert not unfinished(store)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; copied, never changed."""
    folder = tmp_path_factory.mktemp("calm")
    go(folder / "root")
    return folder / "root"


@pytest.fixture
def root(tmp_path: Path, calm: Path) -> Path:
    return Path(shutil.copytree(calm, tmp_path / "root"))


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
    pool = newest(store, "pool")
    for record in pool.records:
        tar = record.file("tar")
        assert tar is not None
        data = store.get(store.place(record, tar))
        for row in store.read_table(record, "image").to_pylist():
            if row["offset"] is not None:
                assert sha256(data[row["offset"] :][: row["nbytes"]]).hexdigest() == row["stored_sha256"]


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


# -- later runs --------------------------------------------------------------------------------------------------------


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
    for record in generations["pool"].records:
        tar = record.file("tar")
        assert tar is not None
        data = store.get(store.place(record, tar))
        for row in store.read_table(record, "image").to_pylist():
            if row["offset"] is not None:
                assert sha256(data[row["offset"] :][: row["nbytes"]]).hexdigest() == row["stored_sha256"]


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


# -- who saw them ------------------------------------------------------------------------------------------------------


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


INDEXED = TEXT + "  index: {from: scores, steps: [tests.takedowns.Indexed]}\n"


def index(root: Path) -> Inline:
    """Run the world with an index; says what was done."""
    executor = Inline(Store(str(root)))
    run(Dag.parse(INDEXED), str(root), executor=executor)
    return executor


def has_no_vector(root: Path, *numbers: int) -> None:
    for path in root.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(vector_of(number) in data for number in numbers), path


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


@pytest.mark.parametrize("after", [False, True])
def test_an_index_is_deleted_wherever_a_takedown_was_killed(tmp_path: Path, root: Path, after: bool) -> None:
    index(root)
    at, step = 1, 29
    while True:
        copy = Path(shutil.copytree(root, tmp_path / str(at)))
        dead = killed_at(at, after, copy)
        store = Store(str(copy))
        for name in store.names(LEASES):
            store.put(f"{LEASES}/{name}", DEAD)
        if tombstones(store):
            erasure.finish(store, quiet)
        else:
            take_down(copy, uids(*GONE))
        has_no_vector(copy, *GONE)
        index(copy)
        has_no_vector(copy, *GONE)
        is_clean(copy, *GONE, *COPIES)
        assert newest(store, "index").statuses == {"indexed": 31}
        shutil.rmtree(copy)
        if not dead:
            break
        at += step
    assert at > 60


# -- killed ------------------------------------------------------------------------------------------------------------


DEAD = json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1}).encode()
"""A lease of a process that cannot be: Linux gives no higher number than 2^22."""


class Killed(BaseException):
    """The process ends here."""


WRITING = ("put", "put_if_absent", "put_file", "put_file_if_absent", "copy", "delete")


def dying(monkeypatch: pytest.MonkeyPatch, at: int, after: bool) -> list[str]:
    """Let the store's `at`-th write end the process, before or after it happened; returns what was called."""
    called: list[str] = []

    def patch(name: str) -> None:
        original = getattr(Store, name)

        def write(self: Store, path: str, *arguments: Any) -> Any:
            if len(called) >= at:
                raise Killed  # nothing is written by the dead
            called.append(f"{name} {path}")
            if len(called) == at and not after:
                raise Killed
            result = original(self, path, *arguments)
            if len(called) == at:
                raise Killed
            return result

        monkeypatch.setattr(Store, name, write)

    for name in WRITING:
        patch(name)
    return called


def killed_at(at: int, after: bool, root: Path) -> bool:
    """Whether a takedown got as far as its `at`-th write and was killed there."""
    with pytest.MonkeyPatch.context() as patch:
        called = dying(patch, at, after)
        try:
            take_down(root, uids(*GONE))
        except Killed:
            return True
    assert len(called) < at
    return False


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.chaos, id="every-step"), pytest.param(41, id="some")]
)
@pytest.mark.parametrize("after", [False, True])
def test_a_takedown_killed_at_any_write_is_finished_by_the_next(
    tmp_path: Path, calm: Path, step: int, after: bool
) -> None:
    at = 1
    while True:
        root = tmp_path / str(at)
        shutil.copytree(calm, root)
        dead = killed_at(at, after, root)
        store = Store(str(root))
        for name in store.names(LEASES):  # this process lives; one that was killed would be known to be dead
            store.put(f"{LEASES}/{name}", DEAD)
        if tombstones(store):
            if unfinished(store):
                with pytest.raises(SluiceError, match=r"takedown 0001 is under way .*--resume"):
                    check_finished(store)
                erasure.finish(store, quiet)
        else:
            assert upkeep.verify(store) == [], "nothing was touched before the tombstone stood"
            take_down(root, uids(*GONE))
        is_clean(root, *GONE, *COPIES)
        assert go(root)[1] == []
        assert store.names(LEASES) == [], "a dead takedown's lease is taken back"
        assert newest(store, "pool").statuses == {"success": 31, "http_503": 4, "taken_down": 5}
        shutil.rmtree(root)
        if not dead:
            break
        at += step
    assert at > 30


# -- on S3, and at the command line ------------------------------------------------------------------------------------


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


def sluice(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, list(arguments), catch_exceptions=False, terminal_width=200)
    return done.exit_code, " ".join(done.output.split())


@pytest.mark.parametrize("command", ["takedown", "export", "catalog"])
def test_help_ends_with_an_example(command: str) -> None:
    code, said = sluice(command, "--help")
    assert code == 0
    assert f"Examples: sluice {command} " in said


def test_the_command_says_first_and_does_it_when_told(root: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.txt"
    gone.write_text(f"# a request\n{url_of(4)}   # by mail\n\n{url_of(16)}\n")
    code, said = sluice("takedown", str(root), "--urls", str(gone))
    assert code == 0
    assert "2 urls asked for: 3 images" in said
    assert "nothing was changed; add --yes" in said
    assert f"{uid_of(4)}.jpg at byte" in said
    assert tombstones(Store(str(root))) == []
    code, said = sluice("takedown", str(root), "--urls", str(gone), "--reason", "request 4711", "--yes")
    assert code == 0
    assert "takedown 0001 is done" in said
    is_clean(root, 4, 16, 34)
    code, said = sluice("takedown", str(root))
    assert "request 4711" in said
    assert "erased" in said


def test_a_reason_moves_no_terminal(root: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.txt"
    gone.write_text(f"{uid_of(4)}\n")
    code, said = sluice("takedown", str(root), "--uids", str(gone), "--reason", "ticket [/4711] \x1b[2J", "--yes")
    assert code == 0
    code, said = sluice("takedown", str(root))
    assert code == 0
    assert "ticket [/4711] �[2J" in said
    assert "1 uid " in said


def test_the_same_takedown_again_writes_nothing(root: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.txt"
    gone.write_text(f"{uid_of(4)}\n")
    arguments = ("takedown", str(root), "--uids", str(gone), "--yes")
    assert "1 uid asked for: 2 images of" in sluice(*arguments)[1]
    for _ in range(2):
        before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        code, said = sluice(*arguments)
        assert (code, "all of it was taken down before; nothing is left to do" in said) == (0, True)
        assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        go(root, "kept.rules=[{all: \"status = 'success'\"}]")
    gone.write_text(f"{uid_of(4)}\n{uid_of(5)}\n")
    assert "takedown 0002 is done" in sluice(*arguments)[1]


def test_a_domain_without_a_dot_is_localhost_only(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("LOCALHOST\n")
    assert Asked.read(domains=str(path)).domains == ("localhost",)
    path.write_text("org\n")
    with pytest.raises(SluiceError, match=r"line 1: 'org'; expected 'example.org'"):
        Asked.read(domains=str(path))


@pytest.mark.parametrize(
    ("kind", "line", "expected"),
    [
        ("uids", "xyz", r"--uids .*, line 2: 'xyz'; expected 32 hex digits"),
        ("urls", "example.org/x", "expected 'https://example.org/x.jpg'"),
        ("domains", "https://example.org", "expected 'example.org'"),
        ("sha256s", "0" * 32, "expected 64 hex digits"),
    ],
)
def test_a_line_that_is_no_such_entry_is_named(tmp_path: Path, kind: str, line: str, expected: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"# comment\n{line}\n")
    with pytest.raises(SluiceError, match=expected):
        Asked.read(**{kind: str(path)})


def test_it_waits_for_a_run_that_writes(root: Path) -> None:
    store = Store(str(root))
    store.put(f"{LEASES}/x.lease", b'{"host": "elsewhere", "pid": 1}')
    found = erasure.search(store, uids(4), True, quiet)
    with pytest.raises(SluiceError, match=r"1 run\(s\) that write or were interrupted"):
        erasure.take_down(store, found, "", quiet)
    assert tombstones(store) == []


def test_no_run_begins_while_one_is_unfinished(root: Path) -> None:
    assert killed_at(12, True, root)
    with pytest.raises(
        SluiceError, match=r"takedown 0001 is under way or was interrupted; `sluice takedown .* --resume`"
    ):
        go(root)


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
