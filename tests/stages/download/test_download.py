"""The stage as the engine uses it: a part in, a tar, statistics and a table out."""

import asyncio
import gc
import io
import json
import os
import pickle
import signal
import tarfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pytest
from pydantic import ValidationError

from infra.miniweb import Scripted
from infra.miniweb.http import Connection
from pipeline.content import content_hash, covered
from pipeline.errors import SluiceError
from pipeline.identity import node_identity
from pipeline.stage import Column
from stages.download import Download
from stages.download.body import Body
from stages.download.leases import Alone
from stages.download.statuses import is_status
from stages.download.worker import Worker
from tests.stages.download.conftest import opened
from tests.stages.download.doubles import Part, encoded, fetch_one, part_of, picture, pixels, uid


@pytest.fixture
def urls(server: Scripted) -> list[str | None]:
    """Six that succeed among six that do not."""
    good = [server.serve(f"/good/{seed}.jpg", encoded(picture(700, 500, seed))) for seed in range(4)]
    animated = encoded(picture(), "GIF", save_all=True, append_images=[picture(seed=9)])
    return [
        good[0],
        server.url("/missing.jpg?token=secret"),
        server.serve("/anim.gif", animated, "Content-Type: image/gif\r\n"),
        None,
        good[1],
        server.serve("/page.jpg", b"<html>"),
        server.serve("/good/4.png", encoded(picture(64, 48, 4).convert("RGBA"), "PNG")),
        "file:///etc/passwd",
        good[2],
        server.serve("/half.jpg", encoded(picture(400, 300))[:4000]),
        good[3],
        "http://me:secret@example.org/x.jpg?token=secret",
    ]


STATUSES = [
    "success", "http_404", "success", "bad_url", "success", "not_an_image", "success", "blocked_scheme", "success",
    "truncated_image", "success", "bad_url",
]  # fmt: skip


def test_every_row_ends_with_its_status_in_the_order_of_the_part(worker: Worker, urls: list[str | None]) -> None:
    part = part_of(urls)
    table = worker(part)
    assert table.schema.equals(Download.adds, check_metadata=True)
    assert table.column("status").to_pylist() == STATUSES
    assert table.column("key").to_pylist() == part.image.column("uid").to_pylist()
    assert all(is_status(status) for status in STATUSES)
    for row in table.to_pylist():
        good = row["status"] == "success"
        assert (row["error_message"] is None) == good
        assert (row["offset"] is not None) == (row["width"] is not None) == (row["nbytes"] is not None) == good
        assert "secret" not in (row["error_message"] or "")
        assert row["seconds"] >= 0
        assert row["fetched_at"] is not None


def test_the_tar_holds_the_successes_in_row_order_and_every_offset_holds(
    worker: Worker, urls: list[str | None]
) -> None:
    part = part_of(urls)
    rows = [row for row in worker(part).to_pylist() if row["status"] == "success"]
    data = part.bytes("tar")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = tar.getnames()
    assert names == [f"{row['key']}.{kind}" for row in rows for kind in ("jpg", "json", "txt")]
    for row in rows:
        jpeg = data[row["offset"] : row["offset"] + row["nbytes"]]
        assert sha256(jpeg).hexdigest() == row["stored_sha256"]
        assert pixels(jpeg).shape == (row["height"], row["width"], 3)
    assert rows[0]["sha256"] == sha256(encoded(picture(700, 500, 0))).hexdigest()
    assert (rows[0]["width"], rows[0]["height"], rows[0]["original_width"]) == (512, 366, 700)
    assert (rows[1]["format"], rows[1]["frames"], rows[1]["content_type"]) == ("GIF", 2, "image/gif")


def test_a_sample_carries_its_first_caption_and_what_img2dataset_writes(worker: Worker, server: Scripted) -> None:
    both, none = (server.serve(f"/captioned/{name}.jpg", encoded(picture())) for name in ("both", "none"))
    part = part_of([both, none], {both: [None, "first", "second"], none: [None]})
    part.image = part.image.append_column("license", pa.array(["?", None]))
    worker(part)
    with tarfile.open(fileobj=io.BytesIO(part.bytes("tar"))) as tar:
        read = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        content = {name: file.read() for name, file in read.items() if file}
    assert content[f"{uid(both)}.txt"] == b"first"
    assert content[f"{uid(none)}.txt"] == b""
    metadata = json.loads(content[f"{uid(both)}.json"])
    assert metadata == {
        "uid": uid(both), "url": both, "license": "?", "caption": "first", "key": uid(both), "status": "success",
        "error_message": None, "width": 64, "height": 48, "original_width": 64, "original_height": 48, "exif": None,
        "sha256": sha256(encoded(picture())).hexdigest(),
    }  # fmt: skip
    assert json.loads(content[f"{uid(none)}.json"])["caption"] is None


@pytest.mark.parametrize(
    ("claimed", "known"),
    [
        ("Wed, 21 Oct 2015 07:28:00 GMT", datetime(2015, 10, 21, 7, 28, tzinfo=UTC)),
        ("Wed, 21 Oct 2015 07:28:00 +0200", datetime(2015, 10, 21, 5, 28, tzinfo=UTC)),
        ("21 Oct 2015", None),
        ("Wed, 99 Oct 99999 07:28:00 GMT", None),
        ("", None),
    ],
)
def test_dates_are_what_the_host_claimed_and_what_our_clock_said(
    worker: Worker, server: Scripted, claimed: str, known: datetime | None
) -> None:
    url = server.serve(f"/dated/{abs(hash(claimed))}", encoded(picture()), f"Last-Modified: {claimed}\r\n")
    row = fetch_one(worker, url)
    assert row["status"] == "success"
    assert row["last_modified"] == known
    assert abs((row["fetched_at"] - datetime.now(UTC)).total_seconds()) < 60


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the file open
def test_a_sample_says_what_img2dataset_says_and_perhaps_more(worker: Worker, server: Scripted, tmp_path: Path) -> None:
    """The keys that img2dataset writes into a sample's JSON; test_img2dataset.py sees that it does."""
    wds = pytest.importorskip("webdataset")
    part = part_of([server.serve("/keys.jpg", encoded(picture()))])
    worker(part)
    (tmp_path / "part.tar").write_bytes(part.bytes("tar"))
    (sample,) = wds.WebDataset(str(tmp_path / "part.tar"), shardshuffle=False)
    assert {name for name in sample if not name.startswith("__")} == {"jpg", "json", "txt"}
    theirs = {
        "url", "caption", "key", "status", "error_message", "width", "height", "original_width", "original_height",
        "exif", "sha256",
    }  # fmt: skip
    assert theirs | {"uid"} == set(json.loads(sample["json"]))
    assert (sample["__key__"], sample["txt"]) == (part.image.column("uid")[0].as_py(), b"picture 0")


def test_the_statistics_are_img2datasets(worker: Worker, urls: list[str | None]) -> None:
    part = part_of(urls)
    worker(part)
    stats = json.loads(part.bytes("stats.json"))
    assert list(stats) == [
        "count", "successes", "failed_to_download", "failed_to_resize", "duration", "start_time", "end_time",
        "status_dict",
    ]  # fmt: skip
    assert (stats["count"], stats["successes"]) == (12, 6)
    assert (stats["failed_to_download"], stats["failed_to_resize"]) == (4, 2)
    assert stats["status_dict"]["success"] == 6
    assert sum(stats["status_dict"].values()) == 12


def test_a_rerun_gives_the_same_tar_and_the_same_content_hash(server: Scripted, urls: list[str | None]) -> None:
    first, second = part_of(urls), part_of(urls)
    hashes = []
    for part, parameters in ((first, {"concurrency": 1}), (second, {"concurrency": 32})):
        worker = opened(server, threads=1, **parameters)
        hashes.append(content_hash(worker(part)))
        worker.close()
    assert hashes[0] == hashes[1]
    assert first.bytes("tar") == second.bytes("tar")


def test_the_content_hash_covers_what_was_served_and_no_timing() -> None:
    assert covered(Download.adds) == [
        "key", "status", "width", "height", "original_width", "original_height", "sha256", "stored_sha256", "phash",
        "format", "frames",
    ]  # fmt: skip


GIF = bytes.fromhex("47494638396101000100800000ff000000000021f90401000001002c00000000010001000002014c003b")


def test_the_covered_output_is_golden(worker: Worker, server: Scripted) -> None:
    """A change here means that the same web gives another pool: raise `Download.revision` with it."""
    bodies = {"gif": GIF, "page": b"<html></html>", "svg": b"<svg></svg>", "half": GIF[:30], "empty": b""}
    urls = [server.serve(f"/golden/{name}", body) for name, body in bodies.items()]
    table = worker(part_of([*urls, server.url("/golden/missing"), None]))
    # The key depends on the server's port, the stored bytes on libjpeg's version.
    columns = [name for name in covered(table.schema) if name not in ("key", "stored_sha256")]
    assert content_hash(table, columns) == "45434ea050e8e82734c8fa15b3949717"


def test_an_empty_part_and_a_part_of_failures_are_parts_too(worker: Worker) -> None:
    for urls in ([], [None, "x"]):
        part = part_of(urls)
        assert worker(part).column("status").to_pylist() == ["bad_url"] * len(urls)
        with tarfile.open(fileobj=io.BytesIO(part.bytes("tar"))) as tar:
            assert tar.getnames() == []


def test_slow_rows_do_not_change_the_order(worker: Worker, server: Scripted) -> None:
    async def late(writer: Connection) -> None:
        await asyncio.sleep(0.3)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + encoded(picture()))

    urls: list[str | None] = [server.on("/late", late)]
    urls += [server.serve(f"/soon/{place}", encoded(picture(seed=place))) for place in range(30)]
    part = part_of(urls)
    worker(part)
    with tarfile.open(fileobj=io.BytesIO(part.bytes("tar"))) as tar:
        assert tar.getnames()[::3] == [f"{uid(url)}.jpg" for url in urls]


def test_two_parts_at_once_do_not_mix(worker: Worker, urls: list[str | None]) -> None:
    parts = [part_of(urls), part_of(urls[:5]), part_of(list(reversed(urls)))]
    with ThreadPoolExecutor(3) as threads:
        tables = list(threads.map(worker, parts))
    assert [table.column("status").to_pylist() for table in tables] == [STATUSES, STATUSES[:5], STATUSES[::-1]]


def test_a_killed_decoder_costs_a_part_at_most_the_image_in_its_hands(server: Scripted) -> None:
    worker = opened(server, threads=1, decode_timeout_s=2)
    (pid,) = worker.decoder_pids()
    os.kill(pid, signal.SIGSTOP)
    urls: list[str | None] = [server.serve(f"/hang/{place}", encoded(picture(seed=place))) for place in range(8)]
    statuses = worker(part_of(urls)).column("status").to_pylist()
    assert sorted(statuses) == ["decode_timeout"] + ["success"] * 7
    assert worker.decoder_pids() != [pid]
    worker.close()


def test_a_worker_asks_what_the_run_shares(server: Scripted) -> None:
    class Counted(Alone):
        calls = 0

        def call(self, method: str, *arguments: object) -> Future[object]:
            self.calls += 1
            return super().call(method, *arguments)

    kept = Download().shared()
    shared = Counted(kept)
    worker = opened(server, threads=1, robots=True)
    part = part_of([server.serve("/shared/a.jpg", encoded(picture())), server.url("/shared/missing.jpg")])
    assert worker(replace(part, shared=shared)).column("status").to_pylist() == ["success", "http_404"]
    worker.close()
    assert shared.calls > 0
    assert len(kept) == 1


def test_an_error_that_nobody_expected_is_one_rows_and_not_the_parts(
    worker: Worker, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(body: Body) -> bytes:
        raise IndexError("list index out of range")

    urls = [server.url("/nobody/missing.jpg"), server.serve("/nobody/body.jpg", encoded(picture()))]
    monkeypatch.setattr(Body, "finish", finish)
    rows = worker(part_of(urls)).to_pylist()
    assert [row["status"] for row in rows] == ["http_404", "connection_error"]
    assert rows[1]["error_message"] == "IndexError: list index out of range"


def test_losing_the_last_reference_ends_its_processes_and_threads(server: Scripted) -> None:
    before = {thread.name for thread in threading.enumerate()}
    worker = opened(server, threads=2)
    fetch_one(worker, server.url("/missing"))
    pids = worker.decoder_pids()
    del worker
    gc.collect()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    deadline = time.monotonic() + 5
    while {thread.name for thread in threading.enumerate()} - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert {thread.name for thread in threading.enumerate()} <= before


def test_an_error_in_writing_ends_the_part_and_leaves_the_worker_usable(worker: Worker, urls: list[str | None]) -> None:
    class Disk(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    class Full(Part):
        def create(self, suffix: str) -> BinaryIO:
            return Disk()

    whole = part_of(urls)
    with pytest.raises(OSError, match="No space left"):
        worker(Full(whole.image, whole.caption))
    assert worker(part_of(urls)).column("status").to_pylist() == STATUSES


def test_the_stage_is_frozen_picklable_and_named_by_its_package() -> None:
    stage = Download(side=256)
    assert pickle.loads(pickle.dumps(stage)) == stage
    assert Download.path() == "stages.download.Download"
    assert Download.promise == "observed"
    with pytest.raises(ValidationError):
        stage.side = 1  # type: ignore[misc]


def test_what_another_run_may_change_is_retryable_and_the_rest_is_not() -> None:
    retried = {"timeout", "http_500", "http_503", "http_429", "http_408", "dns_error", "lost", "quarantined"}
    settled = {"success", "http_404", "http_410", "opted_out", "not_an_image", "blocked_address", "too_large"}
    assert retried <= Download.retryable
    assert not settled & Download.retryable


@pytest.mark.parametrize("effort", [{"decode_timeout_s": 60}, {"timeout_s": 60}, {"tries": 1}, {"wait_s": 60}])
def test_how_long_it_tries_is_no_part_of_what_it_does(effort: dict[str, int]) -> None:
    assert node_identity([Download(**effort)], 0) == node_identity([Download()], 0)
    assert "decode_timeout" in Download.retryable  # so that more time finds the rows that had too little


@pytest.mark.parametrize(
    "parameters",
    [
        {"side": 0},
        {"quality": 101},
        {"timeout_s": 0},
        {"max_mb": -1},
        {"tries": 0},
        {"concurrency": 0},
        {"max_side": 1},
    ],
)
def test_parameters_out_of_range_are_refused(parameters: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(parameters))):
        Download(**parameters)


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [
        ({"allow_private_hosts": ("localhost",)}, "'127.0.0.1:8000'"),
        ({"user_agent": "a\r\nX-Evil: 1"}, "'sluice/0.1 (me@example.org)'"),
        ({"user_agent": " "}, "'sluice/0.1 (me@example.org)'"),
        ({"user_agent": " /x"}, "'sluice/0.1 (me@example.org)'"),
        ({"allow_private_hosts": "127.0.0.1:8000"}, "a list of host:port: ['127.0.0.1:8000']"),
    ],
)
def test_a_bad_host_or_agent_is_refused_in_one_line_with_an_example(parameters: dict[str, object], shown: str) -> None:
    with pytest.raises(SluiceError) as error:
        Download(**parameters)
    assert shown in str(error.value)
    assert "\n" not in str(error.value)


def test_a_url_column_that_is_no_text_is_refused_before_work_starts() -> None:
    Download().check([Column("url", "urls", "image", pa.string())])
    with pytest.raises(SluiceError, match=r"urls\.url has type int64"):
        Download().check([Column("url", "urls", "image", pa.int64())])
