"""Lists of what must not be fetched and what must not be kept: how they are read, and that they are obeyed."""

from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pytest
from yarl import URL

from infra.miniweb import Scripted
from pipeline.errors import SluiceError
from pipeline.identity import find_resources, node_identity
from pipeline.stage import Column
from stages.download import Download
from stages.download.addresses import Guard
from stages.download.lists import Blocked, OptOuts
from stages.download.statuses import RETRYABLE
from tests.stages.download.conftest import opened
from tests.stages.download.doubles import encoded, fetch_one, part_of, picture, uid


def written(folder: Path, text: str) -> str:
    path = folder / "list.txt"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("url", "covered"),
    [
        ("http://example.org/x.jpg", True),
        ("https://www.example.org:443/", True),
        ("http://a.b.EXAMPLE.org./x", True),
        ("http://notexample.org/", False),
        ("http://example.org.evil.test/", False),
        ("http://org/", False),
        ("http://photos.test/private/7.jpg?a=b", True),
        ("https://photos.test/private/7.jpg?a=b#part", True),
        ("http://photos.test/private/7.jpg", False),
        ("http://photos.test/private/77.jpg?a=b", False),
        ("http://other.photos.test/private/7.jpg?a=b", False),
        ("http://münchen.test/", True),
        ("http://xn--mnchen-3ya.test/", True),
        ("http://8.8.8.8/", True),
        ("http://0x08080808/", True),
        ("http://8.8.8.88/", False),
        ("http://[2606:4700::1111]/", True),
        ("http://star.test/", True),
    ],
)
def test_a_domain_covers_its_subdomains_and_a_url_itself(tmp_path: Path, url: str, covered: bool) -> None:
    lines = (
        "# who asked us", "", "Example.ORG   # since May", "https://photos.test/private/7.jpg?a=b", "münchen.test",
        "8.8.8.8", "[2606:4700::1111]", "*.star.test.",
    )  # fmt: skip
    listed = OptOuts(written(tmp_path, "\n".join(lines)))
    assert (listed.covers(Guard().check_url(url)) is not None) == covered


@pytest.mark.parametrize(
    "line",
    ["two words", "ftp://example.org/", "http://", ".", "a..b", "example.org/path", "example.org:80", "http://me:x@y/"],
)
def test_a_line_that_names_neither_is_refused_before_anything_starts(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, f"example.org\n{line}\n")
    with pytest.raises(SluiceError) as error:
        Download(opt_out=path).check([Column("url", "urls", "image", pa.string())])
    assert f"{path}, line 2: {line!r}; expected 'example.org' or" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_line_that_is_no_hash_is_refused_before_anything_starts(tmp_path: Path) -> None:
    for line in ("abc", "0" * 63, "g" * 64, "0" * 16 + " 17", "0" * 16 + " x", "0" * 32):
        path = written(tmp_path, f"# hashes\n\n{line}\n")
        with pytest.raises(SluiceError, match=r"line 3: .*; expected 64 hex digits") as error:
            Download(blocked_hashes=path).check([Column("url", "urls", "image", pa.string())])
        assert "\n" not in str(error.value)


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match="opt_out: no such file"):
        Download(opt_out=str(tmp_path / "none.txt")).check([])


def test_what_a_list_says_is_part_of_the_identity_and_its_name_is_not(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("example.org")
    second.write_text("example.org")
    found = [find_resources([Download(opt_out=str(path))])["opt_out"][0][1] for path in (first, second)]
    assert found[0] == found[1]
    assert node_identity([Download(opt_out=str(first))], 0) == node_identity([Download(opt_out=str(second))], 0)
    second.write_text("example.com")
    assert find_resources([Download(opt_out=str(second))])["opt_out"][0][1] != found[0]


def test_what_opted_out_is_never_connected_to(server: Scripted, canary: Scripted, tmp_path: Path) -> None:
    single = server.serve("/optout/one.jpg", encoded(picture()))
    other = server.serve("/optout/other.jpg", encoded(picture()))
    away = server.redirect("/optout/away.jpg", canary.url("/secret"))
    hosts = (f"127.0.0.1:{server.port}", f"127.0.0.1:{canary.port}", f"listed.test:{canary.port}")
    path = written(tmp_path, f"{single}\n{canary.url('/secret')}\nlisted.test\n")
    worker = opened(server, threads=1, opt_out=path, allow_private_hosts=hosts)
    rows = worker(part_of([single, other, away, canary.url("/x", "www.listed.test"), canary.url("/x", "listed.test")]))
    worker.close()
    statuses = rows.column("status").to_pylist()
    assert statuses == ["opted_out", "success", "opted_out", "blocked_port", "opted_out"]
    assert (server.hits["/optout/one.jpg"], server.hits["/optout/other.jpg"], canary.connections) == (0, 1, 0)
    assert "opted_out" not in RETRYABLE


def test_blocked_content_is_neither_kept_nor_named(server: Scripted, tmp_path: Path) -> None:
    """By file, by picture, and by a picture that is about the same; others pass."""
    same, seen = picture(seed=1), picture(seed=2)
    turned = seen.rotate(2)
    bodies = {"file": encoded(picture(seed=0)), "picture": encoded(same, "PNG"), "about": encoded(turned)}
    bodies["free"] = encoded(picture(seed=3))
    urls = [server.serve(f"/blocked/{name}", body) for name, body in bodies.items()]
    plain = opened(server, threads=1)
    free = plain(part_of(urls)).to_pylist()
    exact = fetch_one(plain, server.serve("/blocked/again", encoded(seen, quality=95)))
    plain.close()
    assert [row["status"] for row in free] == ["success"] * 4
    assert 0 < (exact["phash"] ^ free[2]["phash"]).bit_count() <= 10
    lines = (sha256(bodies["file"]).hexdigest().upper(), f"{free[1]['phash']:016x}", f"{exact['phash']:016x} 10")
    worker = opened(server, threads=1, blocked_hashes=written(tmp_path, "\n".join(lines)))
    part = part_of(urls)
    rows = worker(part).to_pylist()
    worker.close()
    assert [row["status"] for row in rows] == ["blocked_hash"] * 3 + ["success"]
    for row in rows[:3]:
        assert {name for name, value in row.items() if value is not None} == {
            "key", "status", "error_message", "final_url", "fetched_at", "seconds",
        }  # fmt: skip
    assert part.members() == [f"{uid(urls[3])}.{ending}" for ending in ("jpg", "json", "txt")]
    assert "blocked_hash" not in RETRYABLE


def test_bits_are_compared_up_to_the_distance_that_a_line_gives(tmp_path: Path) -> None:
    listed = Blocked(written(tmp_path, "00000000000000ff\nffffffff00000000 3\n00000000000000ff 1\n"))
    assert listed.picture(0xFF)
    assert listed.picture(0xFE)
    assert not listed.picture(0xFC)
    assert listed.picture(0xFFFFFFFF00000007)
    assert not listed.picture(0xFFFFFFFF0000000F)
    assert not Blocked(written(tmp_path, "")).picture(0)


def test_the_canonical_url_is_what_is_compared(tmp_path: Path) -> None:
    listed = OptOuts(written(tmp_path, "http://example.org:80/%7Ea/ü.jpg"))
    assert listed.covers(URL("https://example.org/~a/%C3%BC.jpg"))
