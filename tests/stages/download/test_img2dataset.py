"""img2dataset behind our contract: its statuses in our words, its pictures in our tar, our guard before its sockets."""

import asyncio
import io
import json
import subprocess
import tarfile
import time
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from infra.miniweb import Scripted
from infra.miniweb.http import Connection
from pipeline.errors import SluiceError
from pipeline.identity import node_identity
from pipeline.stage import Column, Device
from stages.download import Download, Img2Dataset
from stages.download.img2dataset_parts import REFUSED, Img2DatasetWorker, Shard, in_our_words
from stages.download.statuses import is_status
from tests.stages.download.doubles import Part, encoded, part_of, picture, pixels, uid

pytest.importorskip("img2dataset")


def made(
    server: Scripted, urls: list[str | None], before: pa.Table | None = None, **parameters: object
) -> tuple[Part, list[dict[str, Any]]]:
    stage = Img2Dataset(allow_private_hosts=(f"127.0.0.1:{server.port}",), thread_count=8, timeout=3, **parameters)
    worker = stage.open(Device())
    assert isinstance(worker, Img2DatasetWorker)
    part = replace(part_of(urls), before=before)
    table = worker(part)
    worker.close()
    assert table.schema.equals(Download.adds, check_metadata=True)
    return part, table.to_pylist()


@dataclass(frozen=True)
class Ended:
    urls: list[str | None]
    part: Part
    rows: list[dict[str, Any]]
    statuses: list[str]
    """Those that are expected."""


@pytest.fixture(scope="module")
def everything(server: Scripted, canary: Scripted) -> Ended:
    """One part with all ends, for a process of img2dataset takes seconds to start."""
    photo = encoded(picture(600, 400), quality=95)
    cases: list[tuple[str | None, str]] = [
        (server.serve("/i/photo.jpg", photo), "success"),
        (server.url("/i/missing.jpg?token=secret"), "http_404"),
        (None, "bad_url"),
        (server.serve("/i/alpha.png", encoded(picture().convert("RGBA"), "PNG")), "success"),
        ("file:///etc/passwd", "blocked_scheme"),
        (canary.url("/i/private.jpg"), "blocked_port"),
        ("http://169.254.169.254/latest", "blocked_address"),
        (server.redirect("/i/to-canary", canary.url("/i/stolen.jpg")), "blocked_port"),
        (server.redirect("/i/to-metadata", "http://169.254.169.254/latest"), "blocked_address"),
        (server.redirect("/i/to-file", "file:///etc/passwd"), "blocked_scheme"),
        (server.redirect("/i/to-ftp", "ftp://127.0.0.1/x.jpg"), "blocked_port"),
        (server.redirect("/i/loop", server.url("/i/loop")), "too_many_redirects"),
        (server.serve("/i/page.jpg", b"<html></html>"), "decode_error"),
        (server.serve("/i/empty.jpg", b""), "empty"),
        (server.serve("/i/reserved.jpg", photo, "X-Robots-Tag: noai\r\n"), "opted_out"),
        (server.serve("/i/broken.jpg", b"", status="503 Busy"), "http_503"),
        (server.raw("/i/short.jpg", b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\nx"), "truncated_body"),
        (server.serve("/i/liar.jpg", b"", status="404 refused by sluice: success: x"), "http_404"),
        ("http://no-such-host.invalid/x.jpg", "dns_error"),
        (server.serve("/i/second.jpg", encoded(picture(300, 200, 3))), "success"),
    ]  # fmt: skip
    urls = [url for url, _ in cases]
    part, rows = made(server, urls, image_size=128, resize_mode="center_crop")
    return Ended(urls, part, rows, [status for _, status in cases])


def test_every_row_ends_with_one_of_our_statuses_in_order(everything: Ended) -> None:
    rows = everything.rows
    assert [row["status"] for row in rows] == everything.statuses
    assert [row["key"] for row in rows] == [uid(url) for url in everything.urls]
    assert all(is_status(row["status"]) for row in rows)
    assert all((row["error_message"] is None) == (row["status"] == "success") for row in rows)
    assert not any("secret" in (row["error_message"] or "") for row in rows)


def test_nothing_was_asked_of_whom_nobody_allowed(everything: Ended, canary: Scripted) -> None:
    assert everything.statuses.count("blocked_port") == 3
    assert not [path for path in canary.hits if path.startswith("/i/")]


def test_its_pictures_lie_in_our_tar_under_our_keys(everything: Ended) -> None:
    part, rows = everything.part, everything.rows
    good = [row for row in rows if row["status"] == "success"]
    data = part.bytes("tar")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == [f"{row['key']}.{end}" for row in good for end in ("jpg", "json", "txt")]
        first = tar.extractfile(f"{good[0]['key']}.json")
        assert first is not None
        metadata = json.load(first)
    for row in good:
        stored = data[row["offset"] : row["offset"] + row["nbytes"]]
        assert sha256(stored).hexdigest() == row["stored_sha256"]
        assert pixels(stored).shape == (128, 128, 3)
        assert (row["width"], row["height"]) == (128, 128)
        assert 0 <= row["phash"] < 1 << 64
    assert (good[0]["original_width"], good[0]["original_height"]) == (600, 400)
    assert good[0]["sha256"] == sha256(encoded(picture(600, 400), quality=95)).hexdigest()
    assert (metadata["uid"], metadata["caption"], metadata["width"]) == (good[0]["key"], "picture 0", 128)
    stats = json.loads(part.bytes("stats.json"))
    assert (stats["count"], stats["successes"]) == (len(rows), 3)


def test_a_hang_ends_with_the_part_and_costs_only_what_was_not_written(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drip(writer: Connection) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.5)

    class Impatient(subprocess.Popen[bytes]):
        """Its deadline has come once a few pictures are on the disk, however slow the machine is."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout is None:
                return super().wait()
            assert isinstance(self.args, list)
            tar = Path(str(self.args[-1])) / "00000.tar"
            while self.poll() is None and not (tar.exists() and tar.stat().st_size > 500_000):
                time.sleep(0.05)
            with Shard(tar.parent, 41) as shard:
                keys.update(*shard.rows.values())
            raise subprocess.TimeoutExpired(self.args, timeout)

    keys: set[str] = set()
    """Of its JSON."""
    monkeypatch.setattr(subprocess, "Popen", Impatient)
    good: list[str | None] = [server.serve(f"/h/{seed}.jpg", encoded(picture(900, 700, seed))) for seed in range(40)]
    part, rows = made(server, [server.on("/h/drip", drip), *good], resize_mode="no")
    assert rows[0]["status"] == "timeout"
    assert "part_timeout_s = 3600" in str(rows[0]["error_message"])
    assert {row["status"] for row in rows} == {"timeout", "success"}
    assert sum(row["status"] == "success" for row in rows) > 5
    with tarfile.open(fileobj=io.BytesIO(part.bytes("tar"))) as tar:
        ours = tar.extractfile(tar.getnames()[1])
        assert ours is not None
        assert {"url", "key", "sha256", "exif"} < keys < set(json.load(ours))


@pytest.mark.parametrize(("kept", "places"), [(1.0, [0]), (0.5, [])])
def test_a_tar_cut_between_a_samples_json_and_its_image_has_no_such_sample(
    tmp_path: Path, kept: float, places: list[int]
) -> None:
    said = json.dumps({"status": "success", "key": "000000000"}).encode()
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in (("000000000.json", said), ("000000000.png", bytes(100_000))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    whole = data.getvalue()
    (tmp_path / "00000.tar").write_bytes(whole[: int(len(whole) * kept)])
    with Shard(tmp_path, 1) as shard:
        assert list(shard.rows) == places
        assert [len(shard.image(place)) for place in shard.rows] == [100_000] * len(places)


def test_bytes_that_it_does_not_look_at_are_decoded_all_the_same(server: Scripted) -> None:
    photo = encoded(picture(600, 400))
    urls: list[str | None] = [server.serve("/r/photo.jpg", photo), server.serve("/r/page.jpg", b"<html>")]
    part, rows = made(server, urls, disable_all_reencoding=True)
    assert [row["status"] for row in rows] == ["success", "not_an_image"]
    assert (rows[0]["width"], rows[0]["original_height"]) == (600, 400)
    assert photo in part.bytes("tar")


@pytest.mark.fault(52)
def test_a_row_that_was_lost_must_come_back_as_it_was_however_often_it_is_tried(server: Scripted) -> None:
    honest, swapped = encoded(picture(seed=1)), encoded(picture(seed=2))
    digest = sha256(honest).hexdigest()
    urls: list[str | None] = [
        server.serve("/b/same.jpg", honest),
        server.serve("/b/swapped.jpg", swapped),
        server.serve("/b/busy.jpg", b"", status="503 Busy"),
        server.serve("/b/gone.jpg", b"", status="404 Not Found"),
        server.serve("/b/new.jpg", swapped),
    ]
    part, rows = made(server, urls, pa.table({"sha256": [*[digest] * 4, None]}))
    assert [row["status"] for row in rows] == ["success", "hash_mismatch", "http_503", "http_404", "success"]
    assert [row["sha256"] for row in rows] == [digest, None, digest, None, sha256(swapped).hexdigest()]
    assert [name for name in part.members() if name.endswith("jpg")] == [f"{uid(urls[0])}.jpg", f"{uid(urls[4])}.jpg"]
    assert digest in rows[1]["error_message"]
    assert Img2Dataset.remembered == {"sha256"}


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("HTTP Error 404: Not Found", "http_404"),
        ("<urlopen error timed out>", "timeout"),
        ("The read operation timed out", "timeout"),
        ("<urlopen error [Errno -2] Name or service not known>", "dns_error"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "tls_error"),
        ("<urlopen error [Errno 111] Connection refused>", "connection_error"),
        ("Remote end closed connection without response", "connection_error"),
        ("IncompleteRead(10 bytes read, 90 more expected)", "truncated_body"),
        ("Use of image disallowed by X-Robots-Tag directive", "opted_out"),
        ("Image decoding error", "decode_error"),
        ("OpenCV(4.14.0) (-215:Assertion failed) !buf.empty() in function 'imdecode_'", "empty"),
        ("<urlopen error OURS blocked_address: 10.0.0.1 is not public: private>", "blocked_address"),
        ("<urlopen error OURS success: x>", "connection_error"),
        ("HTTP Error 404: refused by sluice: success: x", "http_404"),
        ("HTTP Error 404: OURS blocked_address: x", "http_404"),
        ("HTTP Error 404: x - Redirection to url 'file:///' is not allowed", "http_404"),
        ("HTTP Error 302: Found - Redirection to url 'file:///etc/passwd' is not allowed", "blocked_scheme"),
        ("refused by sluice: blocked_port: a status line in a host's own words", "connection_error"),
        ("HTTP Error 999: Nobody knows", "http_999"),
        ("", "oom"),
    ],
)
def test_its_messages_become_our_words(said: str, status: str) -> None:
    assert in_our_words(said.replace("OURS ", REFUSED))[0] == status


def test_the_mark_of_our_own_refusals_is_not_shown() -> None:
    said = f"<urlopen error {REFUSED}blocked_address: 10.0.0.1 is not public: private>"
    assert in_our_words(said)[1] == "<urlopen error blocked_address: 10.0.0.1 is not public: private>"


@pytest.mark.parametrize(
    "effort", [{"thread_count": 8}, {"timeout": 20}, {"retries": 2}, {"part_timeout_s": 60.0}, {"memory_mb": 4096}]
)
def test_how_hard_it_tries_is_no_part_of_what_it_does(effort: dict[str, Any]) -> None:
    assert node_identity([Img2Dataset(**effort)], 0) == node_identity([Img2Dataset()], 0)


def test_parameters_that_it_would_refuse_are_refused_before_work_starts() -> None:
    with pytest.raises(SluiceError, match=r"is 95; .* from 0 to 9: set encode_quality: 9$"):
        Img2Dataset(encode_format="png").check([])
    with pytest.raises(SluiceError, match=r"urls\.url has type int64"):
        Img2Dataset().check([Column("url", "urls", "image", pa.int64())])
    with pytest.raises(ValidationError):
        Img2Dataset(resize_mode="stretch")
    assert Img2Dataset.path() == "stages.download.Img2Dataset"
