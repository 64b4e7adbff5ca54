"""The small local web: planted as promised, the same every time, and up for as long as it is needed."""

import hashlib
import http.client
import io
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.miniweb import SHARES, Answer, CannotListen, Damage, Folder, Miniweb, Page, plan, serve
from infra.miniweb.scenes import captions

PROJECT = Path(__file__).parent.parent.parent
Reply = tuple[int, str | None, bytes]


@pytest.fixture(scope="module")
def web() -> Iterator[Miniweb]:
    with Miniweb(pages=400, seed=5) as web:
        yield web


def get(base: str, *paths: str, method: str = "GET") -> list[Reply]:
    """The replies to requests over one connection."""
    with closing(http.client.HTTPConnection(urlsplit(base).netloc, timeout=30)) as connection:
        replies = []
        for path in paths:
            connection.request(method, path)
            answer = connection.getresponse()
            replies.append((answer.status, answer.headers["Content-Type"], answer.read()))
        return replies


def of(web: Miniweb, damage: Damage) -> list[Page]:
    return [page for page in web.pages if page.damage is damage]


def body(web: Miniweb, page: Page) -> bytes:
    assert page.path is not None
    ((status, kind, data),) = get(web.base, page.path)
    assert (status, kind) == (200, "image/jpeg")
    return data


def size(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.size


def test_the_shares_are_exact() -> None:
    pages = plan(2400, 17)
    counts = Counter(page.damage for page in pages)
    assert counts == {Damage.NONE: 1836} | {damage: round(share * 2400) for damage, share in SHARES.items()}
    assert sum(page.boilerplate for page in pages) == 240
    assert counts[Damage.NOT_FOUND] == 120


@pytest.mark.parametrize("pages", [1, 2, 7, 20, 99])
def test_a_web_of_any_size_is_planned(pages: int) -> None:
    assert [page.number for page in plan(pages, 3)] == list(range(pages))


def test_one_seed_is_one_plan_and_another_seed_another() -> None:
    assert plan(300, 17) == plan(300, 17)
    assert [page.damage for page in plan(300, 17)] != [page.damage for page in plan(300, 18)]


def test_two_instances_give_equal_tables_and_equal_bytes() -> None:
    def digest() -> str:
        hasher = hashlib.sha256()
        with Miniweb(pages=60, seed=9) as web:
            paths = [page.path for page in web.pages if page.path and page.damage is not Damage.HANG_UP]
            for reply in get(web.base, *paths):
                hasher.update(repr(reply).encode())
            hasher.update(repr(web.table.to_pylist()).replace(web.base, "").encode())
        return hasher.hexdigest()

    assert digest() == digest()


@pytest.mark.parametrize(
    ("damage", "status", "kind"),
    [
        (Damage.NONE, 200, "image/jpeg"),
        (Damage.NOT_FOUND, 404, "text/plain"),
        (Damage.SERVER_ERROR, 500, "text/plain"),
        (Damage.HTML, 200, "text/html"),
    ],
)
def test_every_damage_answers_as_planned(web: Miniweb, damage: Damage, status: int, kind: str) -> None:
    paths = [page.path for page in of(web, damage)[:20] if page.path]
    assert {reply[:2] for reply in get(web.base, *paths)} == {(status, kind)}


def test_a_hang_up_says_nothing(web: Miniweb) -> None:
    pages = of(web, Damage.HANG_UP)
    assert pages
    for page in pages:
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            get(web.base, str(page.path))


def test_a_truncated_image_opens_and_does_not_load(web: Miniweb) -> None:
    for page in of(web, Damage.TRUNCATED):
        with pytest.raises(OSError, match="truncated"):
            size(body(web, page))


def test_tiny_images_are_tiny_and_others_are_not(web: Miniweb) -> None:
    assert all(max(size(body(web, page))) < 64 for page in of(web, Damage.TINY))
    assert all(min(size(body(web, page))) >= 64 for page in of(web, Damage.NONE)[:20])


def test_a_copy_has_the_bytes_of_its_source_under_another_address(web: Miniweb) -> None:
    copies = of(web, Damage.COPY)
    assert copies
    for page in copies:
        source = web.pages[page.source]
        assert source.path != page.path
        assert source.damage is Damage.NONE
        assert body(web, page) == body(web, source)


def test_a_repeat_has_the_address_of_its_source_and_another_true_caption(web: Miniweb) -> None:
    repeats = of(web, Damage.REPEAT)
    assert len({page.source for page in repeats}) == len(repeats) == 20
    for page in repeats:
        source = web.pages[page.source]
        assert page.path == source.path
        assert page.caption != source.caption
        assert page.caption in captions(source.scene)


def test_captions_are_true_or_boilerplate(web: Miniweb) -> None:
    assert all((page.caption in captions(page.scene)) != page.boilerplate for page in web.pages)


def test_the_table_reads_back_with_a_row_per_page(tmp_path: Path) -> None:
    with Miniweb(tmp_path / "new" / "web", pages=400, seed=5) as web:
        table = pq.read_table(tmp_path / "new" / "web" / "urls.parquet")
        assert os.listdir(tmp_path / "new" / "web") == ["urls.parquet"]
    assert table == web.table
    assert table.schema.names == ["url", "alt", "page_id"]
    assert table["page_id"].to_pylist() == list(range(400))
    urls = table["url"].to_pylist()
    assert [not url for url in urls] == [page.damage is Damage.NO_URL for page in web.pages]
    assert all(url.startswith(f"{web.base}/5/") for url in urls if url)
    assert len({url for url in urls if url}) == 400 - 20 - 2


def test_no_address_tells_its_damage(web: Miniweb) -> None:
    for url in filter(None, web.table["url"].to_pylist()):
        assert Path(urlsplit(url).path).stem.isdecimal()
        assert url.endswith(".jpg")


def test_it_survives_two_thousand_requests_over_many_connections(web: Miniweb) -> None:
    paths = [page.path for page in of(web, Damage.NONE)[:50] if page.path]
    with ThreadPoolExecutor(20) as threads:
        rounds = list(threads.map(lambda _: get(web.base, *paths), range(40)))
    assert all(replies == rounds[0] for replies in rounds)
    assert {status for status, _, _ in rounds[0]} == {200}


def test_head_has_the_headers_alone_and_other_methods_are_refused(web: Miniweb) -> None:
    path = str(of(web, Damage.NONE)[0].path)
    assert get(web.base, path, method="HEAD") == [(200, "image/jpeg", b"")]
    assert get(web.base, path, method="POST")[0][0] == 405


def test_other_paths_are_not_found(web: Miniweb) -> None:
    assert {reply[0] for reply in get(web.base, "/", "/robots.txt", "/5/9999999.jpg", "/6/0000001.jpg")} == {404}


def test_a_taken_port_is_one_line_with_the_port_and_the_remedy(web: Miniweb) -> None:
    port = urlsplit(web.base).port
    with pytest.raises(CannotListen, match=rf"port {port} .*address already in use.*--port"), Miniweb(port=port or 0):
        pass


def test_a_web_has_no_address_before_it_serves() -> None:
    with pytest.raises(RuntimeError, match="enter it with `with`"):
        _ = Miniweb(pages=1).base


def test_any_function_can_be_served() -> None:
    with serve(lambda path: Answer(path.encode(), "text/plain", 418)) as base:
        assert get(base, "/a%20b", "/c") == [(418, "text/plain", b"/a b"), (418, "text/plain", b"/c")]
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(base)


def test_a_handler_that_fails_is_a_500_and_the_server_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    def handler(path: str) -> Answer:
        if path == "/bad":
            raise ValueError("no such thing")
        return Answer(b"fine")

    with serve(handler) as base:
        assert [status for status, _, _ in get(base, "/bad", "/good")] == [500, 200]
    assert "no such thing" in caplog.text


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


def miniweb(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "infra.miniweb", str(folder), "--pages", "20", *arguments]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


READER = """
import sys, urllib.request, pyarrow.parquet as pq
urls = pq.read_table(sys.argv[1])["url"].to_pylist()
print(sum(bool(url) for url in urls), urls[0].startswith("http://127.0.0.1:"))
urllib.request.urlopen(urls[0].rpartition("/")[0].rpartition("/")[0] + "/17/none.jpg")
"""


def test_it_serves_while_a_command_runs_and_takes_its_exit_status(tmp_path: Path) -> None:
    reader = ["--port", "0", "--", sys.executable, "-c", READER, str(tmp_path / "urls.parquet")]
    with miniweb(tmp_path, *reader) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "20 True\n")
    assert "HTTP Error 404" in err  # it answered
    with miniweb(tmp_path, "--port", "0", "--", "sh", "-c", "kill -9 $$") as process:
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL


def test_a_command_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with miniweb(tmp_path, "--port", "0", "--", "no-such-command") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 127
    assert err.splitlines()[1:] == ["cannot run 'no-such-command': No such file or directory; name a command after --"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_alone_it_serves_until_it_is_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    with miniweb(tmp_path, "--port", "0") as process:
        assert process.stderr is not None
        told = process.stderr.readline()
        base = told.split(" on ")[1].split(",")[0]
        assert get(base, "/")[0][0] == 404
        process.send_signal(number)
        assert process.wait(timeout=30) == 0


def test_the_command_line_names_a_taken_port_and_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with miniweb(tmp_path, "--port", str(port)) as process:
            _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(err.splitlines()) == 1
    assert f"port {port}" in err
    assert "--port" in err
    assert not (tmp_path / "urls.parquet").exists()


def test_sigterm_ends_the_command_too(tmp_path: Path) -> None:
    with miniweb(tmp_path, "--port", "0", "--", "sh", "-c", "sleep 0.5; echo up; exec sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
