"""The small local web: it answers as planned, the same every time, and is up for as long as it is needed."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.miniweb import CannotListen, Family, Folder, Kind, Miniweb, Page
from infra.miniweb.files import BOMB_SIDE, FRAMES, NEAR_BOMB_SIDE
from infra.miniweb.render import jpeg, paint
from infra.miniweb.table import KEY_SCHEMA, SCHEMA
from tests.infra.asking import ask, get, headers, raw

PROJECT = Path(__file__).parent.parent.parent
PAGES = 2000


@pytest.fixture(scope="module")
def web() -> Iterator[Miniweb]:
    with Miniweb(pages=PAGES, seed=5) as web:
        yield web


def first(web: Miniweb, kind: Kind) -> Page:
    return next(web.pages.of(kind))


def body(web: Miniweb, page: Page, kind: str = "image/jpeg") -> bytes:
    assert page.path is not None
    ((status, content_type, data),) = get(web.base, page.path)
    assert (status, content_type) == (200, kind)
    return data


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def apart(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two pictures in levels, after both are brought to 64 x 64 px."""
    small = [np.asarray(image.convert("RGB").resize((64, 64))).astype(int) for image in (one, other)]
    return float(np.abs(small[0] - small[1]).mean())


# -- what every kind answers -------------------------------------------------------------------------------------------


def test_a_clean_page_is_a_jpeg_of_its_scene(web: Miniweb) -> None:
    for _, page in zip(range(5), web.pages.of(Kind.CLEAN), strict=False):
        assert body(web, page) == jpeg(page.scene)
        assert min(opened(body(web, page)).size) >= 64


@pytest.mark.parametrize(
    ("kind", "status", "content_type"),
    [
        (Kind.NOT_FOUND, 404, "text/plain"),
        (Kind.GONE, 410, "text/plain"),
        (Kind.SERVER_ERROR, 500, "text/plain"),
        (Kind.HTML, 200, "text/html"),
        (Kind.SVG, 200, "image/svg+xml"),
        (Kind.EMPTY, 200, "image/jpeg"),
    ],
)
def test_what_is_no_image_answers_as_planned(web: Miniweb, kind: Kind, status: int, content_type: str) -> None:
    replies = get(web.base, *[str(page.path) for page in web.pages.of(kind)])
    assert {reply[:2] for reply in replies} == {(status, content_type)}
    if kind is Kind.EMPTY:
        assert {reply[2] for reply in replies} == {b""}


def test_a_hang_up_says_nothing(web: Miniweb) -> None:
    with pytest.raises(ConnectionError):
        get(web.base, str(first(web, Kind.HANG_UP).path))


def test_a_truncated_image_opens_and_does_not_load(web: Miniweb) -> None:
    data = body(web, first(web, Kind.TRUNCATED_IMAGE))
    image = Image.open(io.BytesIO(data))
    with pytest.raises(OSError, match="truncated"):
        image.load()


def test_tiny_images_are_tiny_and_banners_are_slim(web: Miniweb) -> None:
    assert max(opened(body(web, first(web, Kind.TINY))).size) < 64
    for page in web.pages.of(Kind.BANNER):
        width, height = opened(body(web, page)).size
        assert width >= 4 * height


def test_a_placeholder_is_one_picture_under_many_addresses(web: Miniweb) -> None:
    assert len({body(web, page) for page in web.pages.of(Kind.PLACEHOLDER)}) == 1


def test_an_exact_copy_has_the_bytes_of_its_source(web: Miniweb) -> None:
    for _, page in zip(range(5), web.pages.of(Kind.EXACT_COPY), strict=False):
        assert page.source is not None
        assert body(web, page) == body(web, page.source)


@pytest.mark.parametrize(
    "kind", [Kind.REENCODED_COPY, Kind.RESIZED_COPY, Kind.CROPPED_COPY, Kind.RECOLOURED_COPY, Kind.ALTERED_LEAK]
)
def test_an_altered_copy_has_other_bytes_and_shows_the_same(web: Miniweb, kind: Kind) -> None:
    for _, page in zip(range(6), web.pages.of(kind), strict=False):
        ((status, _, data),) = get(web.base, str(page.path))
        assert status == 200
        assert data != jpeg(page.scene)
        copy, original = opened(data), paint(page.scene)
        assert apart(copy, original) < 30 < apart(copy, paint(first(web, Kind.CLEAN).scene))
        if kind is Kind.REENCODED_COPY:
            assert copy.size == original.size
        elif kind in (Kind.RESIZED_COPY, Kind.CROPPED_COPY):
            assert copy.size != original.size


def test_a_look_alike_is_nearly_its_source_and_not_it(web: Miniweb) -> None:
    for _, page in zip(range(10), web.pages.of(Kind.LOOK_ALIKE), strict=False):
        assert page.source is not None
        one, other = opened(body(web, page)), opened(body(web, page.source))
        assert one.size == other.size
        assert 0.02 < apart(one, other) < 20


def test_an_exact_leak_has_the_bytes_of_the_evaluation_set(web: Miniweb) -> None:
    page = first(web, Kind.EXACT_LEAK)
    assert page.leaked is not None
    assert body(web, page) == jpeg(web.pages.evaluation_scene(page.leaked))


def test_odd_files_are_what_they_are_called(web: Miniweb) -> None:
    def got(kind: Kind, content_type: str = "image/jpeg") -> tuple[Image.Image, Image.Image]:
        page = first(web, kind)
        return Image.open(io.BytesIO(body(web, page, content_type))), paint(page.scene)

    cmyk, scene = got(Kind.CMYK)
    assert cmyk.mode == "CMYK"
    assert apart(cmyk, scene) < 15
    deep, scene = got(Kind.DEEP, "image/png")
    assert deep.tile[0][3] == "RGB;16B"  # type: ignore[attr-defined]
    assert apart(deep, scene) < 1
    palette, scene = got(Kind.PALETTE_ALPHA, "image/png")
    assert palette.mode == "P"
    assert palette.convert("RGBA").getchannel("A").getextrema() == (0, 255)
    assert apart(palette, scene) < 20
    gif, scene = got(Kind.ANIMATED_GIF, "image/gif")
    assert getattr(gif, "n_frames", 1) == FRAMES
    gif.seek(0)
    assert apart(gif, scene) < 15
    gif.seek(FRAMES - 1)
    webp, scene = got(Kind.ANIMATED_WEBP, "image/webp")
    assert getattr(webp, "n_frames", 1) == 3
    assert apart(webp, scene) < 15


def test_every_orientation_turns_its_picture_upright(web: Miniweb) -> None:
    from PIL import ImageOps

    from infra.miniweb.files import UPRIGHT, rotated

    scene = paint(first(web, Kind.ROTATED).scene)
    for orientation in UPRIGHT:
        stored = opened(rotated(scene, orientation, 95))
        assert stored.getexif()[0x0112] == orientation
        upright = ImageOps.exif_transpose(stored)
        assert upright.size == scene.size
        assert apart(upright, scene) < 4
    orientations = {opened(body(web, page)).getexif()[0x0112] for page in web.pages.of(Kind.ROTATED)}
    assert 1 not in orientations


def test_a_polyglot_is_an_archive_too(web: Miniweb) -> None:
    import zipfile

    page = first(web, Kind.POLYGLOT)
    data = body(web, page)
    assert data.startswith(jpeg(page.scene))
    assert zipfile.ZipFile(io.BytesIO(data)).namelist() == ["run.sh"]


def test_bombs_are_small_and_say_what_they_would_be(web: Miniweb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    bomb = body(web, first(web, Kind.PNG_BOMB), "image/png")
    assert len(bomb) < 200
    assert Image.open(io.BytesIO(bomb)).size == (BOMB_SIDE, BOMB_SIDE)
    near = body(web, first(web, Kind.PNG_NEAR_BOMB), "image/png")
    assert len(near) < 300_000
    assert opened(near).size == (NEAR_BOMB_SIDE, NEAR_BOMB_SIDE)


def test_redirects_lead_where_they_say(web: Miniweb) -> None:
    def location(kind: Kind) -> str:
        return headers(web.base, str(first(web, kind).path))["location"]

    page = first(web, Kind.REDIRECT)
    assert location(Kind.REDIRECT) == f"/5/moved/{page.number:07d}.jpg"
    assert get(web.base, location(Kind.REDIRECT)) == [(200, "image/jpeg", jpeg(page.scene))]
    assert location(Kind.REDIRECT_LOOP) == first(web, Kind.REDIRECT_LOOP).path
    assert location(Kind.REDIRECT_TO_METADATA).startswith("http://169.254.169.254/")
    assert location(Kind.REDIRECT_TO_FILE).startswith("file:///")
    assert location(Kind.REDIRECT_TO_FTP).startswith("ftp://")


def test_flaky_and_limited_hosts_give_in(web: Miniweb) -> None:
    for page in web.pages.of(Kind.FLAKY):
        statuses = [status for status, _, _ in get(web.base, *[str(page.path)] * 4)]
        fails = 1 + page.rank % 2
        assert all(status in (500, 502, 503) for status in statuses[:fails])
        assert statuses[fails:] == [200] * (4 - fails)
        assert web.hits[str(page.path)] == 4
    page = first(web, Kind.RATE_LIMITED)
    assert headers(web.base, str(page.path))["retry-after"] == "1"
    assert body(web, page) == jpeg(page.scene)


def test_what_changed_has_another_digest_than_was_seen_and_what_did_not_has_the_same(web: Miniweb) -> None:
    for page in web.pages.of(Kind.CHANGED):
        assert page.seen_sha256 is not None
        assert hashlib.sha256(body(web, page)).hexdigest() != page.seen_sha256
        assert page.caption != page.true_caption
    seen = [page for page in web.pages.of(Kind.CLEAN) if page.seen_sha256 is not None]
    assert 10 < len(seen) < 60
    assert all(hashlib.sha256(body(web, page)).hexdigest() == page.seen_sha256 for page in seen)


def test_reservations_stand_in_the_headers(web: Miniweb) -> None:
    assert headers(web.base, str(first(web, Kind.NOAI).path))["x-robots-tag"] == "noai"
    assert headers(web.base, str(first(web, Kind.NOIMAGEAI).path))["x-robots-tag"] == "noimageai"
    assert headers(web.base, str(first(web, Kind.TDM_RESERVED).path))["tdm-reservation"] == "1"
    assert not {"x-robots-tag", "tdm-reservation"} & set(headers(web.base, str(first(web, Kind.CLEAN).path)))


def test_robots_disallow_a_folder_and_are_out_of_order_on_one_host(web: Miniweb) -> None:
    ((status, kind, text),) = get(web.base, "/robots.txt")
    assert (status, kind) == (200, "text/plain")
    assert str(first(web, Kind.DISALLOWED).path).startswith(text.decode().split("Disallow: ")[1].strip())
    assert get(web.base, "/robots.txt", host="localhost:18080")[0][0] == 503
    assert get(web.base, str(first(web, Kind.ROBOTS_BROKEN).path), host="localhost:18080")[0][0] == 200


def test_lengths_lie_and_tails_are_smuggled(web: Miniweb) -> None:
    page = first(web, Kind.LENGTH_TOO_LONG)
    head, _, sent = raw(web.base, ask(str(page.path))).partition(b"\r\n\r\n")
    assert sent == jpeg(page.scene)
    assert f"Content-Length: {len(sent) + 1000}".encode() in head
    page = first(web, Kind.SMUGGLED)
    head, _, sent = raw(web.base, ask(str(page.path))).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(jpeg(page.scene))}".encode() in head
    assert sent.startswith(jpeg(page.scene) + b"HTTP/1.1 200 OK\r\n")


def test_slow_answers_are_whole_and_stalled_ones_drip(web: Miniweb) -> None:
    page = first(web, Kind.SLOW)
    assert body(web, page) == jpeg(page.scene)
    head, _, sent = raw(web.base, ask(str(first(web, Kind.STALLED).path)), timeout_s=0.5).partition(b"\r\n\r\n")
    assert b"Content-Length: 100000" in head
    assert len(sent) <= 1


def test_an_endless_body_does_not_end_and_a_gzip_bomb_unpacks_to_a_thousandfold(web: Miniweb) -> None:
    received = raw(web.base, ask(str(first(web, Kind.ENDLESS).path)), most=3 << 20)
    assert len(received) >= 3 << 20
    assert b"Transfer-Encoding: chunked" in received[:200]
    head, _, packed = raw(web.base, ask(str(first(web, Kind.GZIP_BOMB).path)), most=1 << 16).partition(b"\r\n\r\n")
    assert b"Content-Encoding: gzip" in head
    unpacked = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(packed)
    assert len(unpacked) > 900 * len(packed)
    assert not any(unpacked)


def test_https_is_not_spoken(web: Miniweb) -> None:
    assert raw(web.base, b"\x16\x03\x01\x02\x00\x01\x00").startswith(b"HTTP/1.1 400")


def test_other_paths_are_not_found(web: Miniweb) -> None:
    assert {reply[0] for reply in get(web.base, "/", "/5/9999999.jpg", "/6/0000001.jpg", "/5/moved/0000001.jpg")} == {
        404
    }


# -- the same, always --------------------------------------------------------------------------------------------------


def test_two_instances_give_equal_tables_keys_and_bytes_whoever_renders(tmp_path: Path) -> None:
    def digest(processes: int) -> str:
        hasher = hashlib.sha256()
        with Miniweb(pages=100, seed=9, processes=processes) as web:
            silent = (Kind.HANG_UP, Kind.SMUGGLED)  # the connection ends with them
            paths = [
                p.path for p in web.pages if p.path and p.kind not in silent and p.facts.family is not Family.HARMFUL
            ]
            for reply in get(web.base, *paths):
                hasher.update(repr(reply).encode())
            for table in (web.table, web.answers):  # the bare digits of the port would stand in some hash, too
                hasher.update(repr(table.to_pylist()).replace(f":{urlsplit(web.base).port}/", "").encode())
        return hasher.hexdigest()

    assert digest(0) == digest(1)


def test_many_connections_get_the_same_bytes(web: Miniweb) -> None:
    paths = [str(page.path) for _, page in zip(range(50), web.pages.of(Kind.CLEAN), strict=False)]
    with ThreadPoolExecutor(20) as threads:
        rounds = list(threads.map(lambda _: get(web.base, *paths), range(40)))
    assert all(replies == rounds[0] for replies in rounds)
    assert {status for status, _, _ in rounds[0]} == {200}


def test_a_small_cache_changes_nothing_but_the_time() -> None:
    with Miniweb(pages=20, mix="clean", cached_mb=0) as web:
        paths = [str(page.path) for page in web.pages]
        assert get(web.base, *paths) == get(web.base, *paths)


# -- the table, the key, the evaluation set ----------------------------------------------------------------------------


def test_the_table_and_the_key_read_back_with_a_row_per_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.miniweb.table.ROWS", 150)
    with Miniweb(tmp_path / "new" / "web", pages=400, seed=5, key=tmp_path / "key" / "answers.parquet") as web:
        table = pq.ParquetFile(tmp_path / "new" / "web" / "urls.parquet")
        key = pq.read_table(tmp_path / "key" / "answers.parquet")
        assert os.listdir(tmp_path / "new" / "web") == ["urls.parquet"]
        assert os.listdir(tmp_path / "key") == ["answers.parquet"]
        assert table.metadata.num_row_groups == 3
        assert table.read() == web.table
        assert key == web.answers
    assert (web.table.schema, key.schema) == (SCHEMA, KEY_SCHEMA)
    assert web.table["page_id"].to_pylist() == key["page_id"].to_pylist() == list(range(400))
    assert web.table["url"] == key["url"]
    assert web.table["alt"] == key["caption"]
    assert key["kind"].to_pylist() == [page.kind for page in web.pages]


def test_the_key_tells_what_a_grader_needs(web: Miniweb) -> None:
    rows = web.answers.to_pylist()
    for row, page in zip(rows, web.pages, strict=True):
        assert row["damaged"] == page.facts.damaged
        assert len(row["groups"]) == len(page.scene.groups)
        assert all(row["groups"][r["subject"]] and row["groups"][r["object"]] for r in row["relations"])
    mismatch = next(row for row in rows if row["kind"] == "mismatch")
    source = rows[mismatch["source"]]
    assert {group["shape"] for group in mismatch["groups"]} == {group["shape"] for group in source["groups"]}
    assert mismatch["caption"] != mismatch["true_caption"]
    assert mismatch["changed"] in ("colour", "binding", "count", "size", "texture", "place")


def test_nothing_that_a_pipeline_reads_tells_the_kind(web: Miniweb) -> None:
    assert web.table.schema.names == ["url", "alt", "page_id", "seen_sha256"]
    pages = [page.number for page in web.pages.of(Kind.MISMATCH)]
    assert abs(np.mean(pages) / PAGES - 0.5) < 0.05  # they are scattered


def test_the_evaluation_set_is_a_folder_of_images_with_captions(tmp_path: Path) -> None:
    from infra.miniweb import Plan, evaluation

    plan = Plan(20, 5, evaluation=3)
    evaluation.write(plan, tmp_path)
    entries = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [entry["file_name"] for entry in entries] == ["images/0000.jpg", "images/0001.jpg", "images/0002.jpg"]
    for number, entry in enumerate(entries):
        assert (tmp_path / entry["file_name"]).read_bytes() == jpeg(plan.evaluation_scene(number))
        assert len(set(entry["captions"])) == 5
        assert len(entry["groups"]) == len(plan.evaluation_scene(number).groups)


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_serves_its_files_and_nothing_above(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("no")
    folder = tmp_path / "web"
    (folder / "a b").mkdir(parents=True)
    (folder / "a b" / "ü.png").write_bytes(b"png")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    with Folder(folder) as web:
        assert web.url("a b/ü.png") == f"{web.base}/a%20b/%C3%BC.png"
        assert get(web.base, web.url("a b/ü.png").removeprefix(web.base)) == [(200, "image/png", b"png")]
        away = ["/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/link.txt", "/a%20b", "/", "/%00", "/x"]
        assert {reply[0] for reply in get(web.base, *away)} == {404}


def test_a_folder_of_real_images_is_served(shared_data: Path) -> None:
    with Folder(shared_data / "coco_cc_by") as web:
        path = "images/000000000285.jpg"
        assert get(web.base, f"/{path}") == [(200, "image/jpeg", (shared_data / "coco_cc_by" / path).read_bytes())]


# -- the command line --------------------------------------------------------------------------------------------------


def miniweb(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "infra.miniweb", str(folder / "web"), "--pages", "20", *arguments]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


READER = """
import sys, urllib.request, pyarrow.parquet as pq
urls = pq.read_table(sys.argv[1])["url"].to_pylist()
print(len(urls), urls[0].startswith("http://127.0.0.1:"))
urllib.request.urlopen(urls[0].rpartition("/")[0].rpartition("/")[0] + "/17/none.jpg")
"""


def test_it_serves_while_a_command_runs_and_takes_its_exit_status(tmp_path: Path) -> None:
    reader = ["--port", "0", "--", sys.executable, "-c", READER, str(tmp_path / "web" / "urls.parquet")]
    with miniweb(tmp_path, "--mix", "clean", *reader) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "20 True\n")
    assert "HTTP Error 404" in err  # it answered
    assert (tmp_path / "key" / "key.parquet").exists()
    with miniweb(tmp_path, "--port", "0", "--", "sh", "-c", "kill -9 $$") as process:
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL


def test_its_options_say_what_is_written(tmp_path: Path) -> None:
    options = ["--key", str(tmp_path / "k.parquet"), "--mix", "hostile", "--sides", "large", "--seed", "4"]
    with miniweb(tmp_path, "--port", "0", *options, "--", "true") as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    key = pq.read_table(tmp_path / "k.parquet")
    assert np.median(key["width"].to_numpy()) > 600
    assert "mismatch" not in key["kind"].to_pylist()
    assert all("/4/" in url for url in key["url"].to_pylist() if url)
    with miniweb(tmp_path, "--port", "0", "--evaluation", str(tmp_path / "evaluation"), "--", "true") as process:
        process.communicate(timeout=60)
    assert len(list((tmp_path / "evaluation" / "images").iterdir())) == 200


@pytest.mark.parametrize(
    ("options", "complaint"),
    [(["--pages", "7"], "'7' is not a number of pages; expected 20 to 1,000,000"), (["--mix", "wep"], "'wep'")],
)
def test_wrong_options_are_told(tmp_path: Path, options: list[str], complaint: str) -> None:
    with miniweb(tmp_path, *options) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert complaint in err


def test_a_command_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with miniweb(tmp_path, "--port", "0", "--", "no-such-command") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 127
    assert err.splitlines()[1:] == ["cannot run 'no-such-command': No such file or directory; name a command after --"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_alone_it_serves_until_it_is_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    with miniweb(tmp_path, "--port", "0", "--mix", "clean") as process:
        assert process.stderr is not None
        told = process.stderr.readline()
        base = told.split(" on ")[1].split(",")[0]
        assert get(base, "/", "/17/0000003.jpg")[1][0] == 200  # the process that renders has started
        process.send_signal(number)
        assert process.wait(timeout=30) == 0


def test_the_command_line_names_a_taken_port_and_the_remedy(tmp_path: Path) -> None:
    with Miniweb(pages=20) as taken:
        port = urlsplit(taken.base).port
        with miniweb(tmp_path, "--port", str(port)) as process:
            _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(err.splitlines()) == 1
    assert f"port {port}" in err
    assert "--port" in err
    assert not (tmp_path / "web").exists()


def test_a_taken_port_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with Miniweb(pages=20) as taken:
        second = Miniweb(tmp_path / "web", pages=20, port=urlsplit(taken.base).port or 0)
        with pytest.raises(CannotListen):
            second.__enter__()
    assert not (tmp_path / "web").exists()


def test_sigterm_ends_the_command_too(tmp_path: Path) -> None:
    with miniweb(tmp_path, "--port", "0", "--", "sh", "-c", "sleep 0.5; echo up; exec sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
