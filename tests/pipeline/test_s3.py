"""What only S3 can do wrong, and whole DAGs on it: the same hashes as on a local disk."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import pytest

from pipeline import Catalog, Dag, SluiceError, run
from pipeline.records import Generation
from pipeline.store import Store
from pipeline.upkeep import find_garbage, verify
from tests import toys
from tests.inline import Inline
from tests.s3 import S3, Fault, serving

REPOSITORY = Path(__file__).parents[2]
TEXT = """
dag: toys
nodes:
  urls: {steps: [{tests.toys.Numbers: {rows: 40, parts: 4, captions: 2}}]}
  pool: {from: urls, steps: [{tests.toys.Fetch: {fails: 10}}]}
  scores: {from: pool, steps: [tests.toys.Times, tests.toys.Label]}
  listed: {from: [pool, scores], steps: [{tests.toys.Listed: {numbers: NUMBERS}}]}
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serving() as server, server.environment():
        yield server


@pytest.fixture
def root(s3: S3) -> Iterator[str]:
    """A prefix in a new bucket; no faults but those that the test orders."""
    yield f"{s3.bucket(f'b-{uuid4().hex[:8]}')}/deep/root"
    s3.order()


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A DAG whose resource only the driver has."""
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("1\n3\n39\n")
    return TEXT.replace("NUMBERS", str(numbers))


def hashes(generations: Mapping[str, Generation]) -> dict[str, str]:
    return {name: generation.content_hash for name, generation in generations.items()}


def inline(text: str, root: str) -> dict[str, Generation]:
    return run(Dag.parse(text), root, executor=Inline(Store(root))).generations


def sluice(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


# -- exclusive puts ----------------------------------------------------------------------------------------------------


def test_a_server_that_ignores_if_none_match_is_refused(s3: S3, root: str) -> None:
    s3.order(Fault("deaf"))
    with pytest.raises(SluiceError, match=r"is no store for sluice: .* use .* a server that honours If-None-Match"):
        Store(root).probe()
    assert s3.met()["deaf"] >= 2


def test_a_server_that_does_not_say_which_condition_failed_is_understood(s3: S3, root: str) -> None:
    """MinIO's 412 has no `Condition`, by which s3fs knows that the file exists."""
    store = Store(root)
    s3.order(Fault("terse"))
    assert store.put_if_absent("k", b"first") == b"first"
    assert store.put_if_absent("k", b"second") == b"first"
    store.probe()
    assert s3.met()["terse"] >= 3


@pytest.mark.parametrize("kind", ["slow_down", "conflict", "unavailable", "lost_reply"])
def test_a_put_that_fails_at_first_stands_once_in_the_end(s3: S3, root: str, kind: str) -> None:
    """503, 409, 500, and a put that was done but whose reply was lost: the second try meets its own bytes."""
    store = Store(root)
    s3.order(Fault(kind, where="commits/", times=2))  # type: ignore[arg-type]
    assert store.put_if_absent("node/commits/k", b"mine") == b"mine"
    assert s3.met()[kind] == 2
    assert store.put_if_absent("node/commits/k", b"other") == b"mine"


def test_reads_and_listings_outlast_a_store_that_throttles(s3: S3, root: str) -> None:
    store = Store(root)
    store.put("node/commits/k.json", b"{}")
    s3.order(Fault("slow_down", method="GET", times=2), Fault("unavailable", method="HEAD", times=2))
    assert store.names("node/commits") == ["k.json"]
    assert store.exists("node/commits/k.json")
    assert s3.met() == {"slow_down": 2, "unavailable": 2}


def test_a_file_in_many_pieces_is_created_once(s3: S3, root: str, tmp_path: Path) -> None:
    """From 100 MiB s3fs uploads in pieces; then the last request decides."""
    store = Store(root)
    size = 100 << 20
    for name, byte in (("first", b"1"), ("other", b"2")):
        with (tmp_path / name).open("wb") as handle:
            handle.write(byte)
            handle.truncate(size)
    sha = "first's is not compared"
    store.put_file_if_absent("shards/00000.tar", tmp_path / "first", sha)
    assert store.fs.info(store.full("shards/00000.tar"))["size"] == size
    with pytest.raises(SluiceError, match="exists with other bytes"):
        store.put_file_if_absent("shards/00000.tar", tmp_path / "other", sha)
    assert store.get_range("shards/00000.tar", 0, 2) == b"1\0"


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_one_line(s3: S3, text: str) -> None:
    with pytest.raises(SluiceError, match=r"s3://nobodys/root cannot be used: .*bucket does not exist; check its name"):
        inline(text, "s3://nobodys/root")


def test_missing_credentials_are_one_line(s3: S3, text: str, tmp_path: Path) -> None:
    dag = tmp_path / "toys.yaml"
    dag.write_text(text)
    none = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}
    done = sluice("run", str(dag), "s3://nobodys/root", **none)
    assert done.returncode == 2
    assert done.stderr.strip().startswith(
        "error: s3://nobodys/root cannot be used: [Errno 13] Unable to locate credentials"
    )
    assert len(done.stderr.strip().splitlines()) == 1


# -- DAGs --------------------------------------------------------------------------------------------------------------


def test_a_dag_has_the_same_hashes_on_s3_as_on_a_local_disk(text: str, root: str, tmp_path: Path) -> None:
    local = inline(text, str(tmp_path / "root"))
    remote = inline(text, root)
    assert hashes(remote) == hashes(local)
    assert remote["pool"].statuses == {"success": 36, "http_503": 4}
    store = Store(root)
    assert verify(store) == []
    assert find_garbage(store, 1).paths == []
    assert store.names("runs/active") == []
    executor = Inline(store)
    assert not run(Dag.parse(text), root, executor=executor).worked
    assert executor.calls == {}


def test_a_file_that_only_the_driver_has_is_shipped_into_the_root(text: str, root: str, tmp_path: Path) -> None:
    generations = inline(text, root)
    (_, found), *_ = generations["listed"].resources["numbers"]
    store = Store(root)
    assert store.names("resources") == [found[:32]]
    assert store.get(f"resources/{found[:32]}/numbers.txt") == b"1\n3\n39\n"
    rows = [row for r in generations["listed"].records for row in store.read_table(r, "image").to_pylist()]
    assert {row["uid"] for row in rows if row["listed"]} == {toys.uid_of(n) for n in (1, 3, 39)}


def test_a_dag_on_a_store_that_throttles_loses_nothing(s3: S3, text: str, root: str, tmp_path: Path) -> None:
    s3.order(
        Fault("slow_down", where="/data/", times=3),
        Fault("lost_reply", where="/commits/", times=2),
        Fault("conflict", where="/generations/", times=2),
    )
    assert hashes(inline(text, root)) == hashes(inline(text, str(tmp_path / "root")))
    assert s3.met() == {"slow_down": 3, "lost_reply": 2, "conflict": 2}
    assert verify(Store(root)) == []


def test_ray_workers_reach_s3_and_give_the_same_hashes(text: str, root: str, tmp_path: Path) -> None:
    dag = tmp_path / "toys.yaml"
    dag.write_text(text)
    done = sluice("run", str(dag), root)
    assert done.returncode == 0, done.stdout + done.stderr
    local = inline(text, str(tmp_path / "root"))
    store = Store(root)
    assert {name: newest.content_hash for name in local if (newest := store.newest(name))} == hashes(local)
    started = time.monotonic()
    again = sluice("run", str(dag), root)
    assert "nothing to do" in again.stdout, again.stdout + again.stderr
    assert time.monotonic() - started < 30


def test_sql_answers_over_s3(text: str, root: str, tmp_path: Path) -> None:
    """DuckDB's own httpfs would have to be downloaded; fsspec is there."""
    inline(text, root)
    rows = Catalog(root).sql("SELECT status, count(*) AS n FROM pool GROUP BY ALL ORDER BY n").to_pylist()
    assert rows == [{"status": "http_503", "n": 4}, {"status": "success", "n": 36}]
    done = sluice("sql", root, "SELECT count(*) FROM samples WHERE status = 'success'", "--format", "csv")
    assert done.stdout.splitlines()[-1:] == ["72"], done.stdout + done.stderr
