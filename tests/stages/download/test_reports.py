"""Link rot and placeholders, from a small pool."""

from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from pipeline import cli
from pipeline.catalog import Catalog
from pipeline.errors import SluiceError
from pipeline.store import Store
from stages.download import reports
from tests.pools import write_node, write_run

ROWS = [
    ("https://a.test/1.jpg", "success", "aa"),
    ("http://A.test/2.jpg?x=https://b.test/", "success", "pp"),
    ("https://a.test/3.jpg", "http_404", None),
    ("https://a.test/4.jpg", "http_404", None),
    ("https://a.test/5.jpg", "timeout", None),
    ("https://a.test/6.jpg", "http_410", None),
    ("https://a.test/7.jpg", "dns_error", None),
    ("https://me:secret@b.test:8443/1.jpg", "success", "pp"),
    ("https://c.test/1.jpg", "success", "pp"),
    ("https://c.test/2.jpg", "success", "bb"),
    ("https://c.test/3.jpg", "success", "bb"),
    ("https://d.test/1.jpg", "opted_out", "pp"),
    (None, "bad_url", None),
]


@pytest.fixture
def root(tmp_path: Path) -> str:
    store = Store(str(tmp_path))
    urls, ended, digests = zip(*ROWS, strict=True)
    image = pa.table(
        {
            "uid": [f"{place:032x}" for place in range(len(ROWS))],
            "url": pa.array(urls, pa.string()),
            "status": ended,
            "sha256": pa.array(digests, pa.string()),
            "final_url": pa.array(urls, pa.string()),
        }
    )
    write_node(store, "urls", {"00000": {"image": image.select(["uid", "url"])}})
    write_node(store, "pool", {"00000": {"image": image}}, ["urls"], tar=True)
    write_run(store, ["urls", "pool"])
    return str(tmp_path)


def test_links_by_host_the_most_frequent_first_with_their_worst_failures(root: str) -> None:
    with Catalog(root) as catalog:
        rows = reports.link_rot(catalog, reports.pool_of(catalog)).to_pylist()
    assert [(row["host"], row["urls"], round(row["success"], 3), row["failures"]) for row in rows] == [
        ("a.test", 7, 0.286, "http_404 2, dns_error 1, http_410 1"),
        ("c.test", 3, 1.0, None),
        ("b.test:8443", 1, 1.0, None),
        ("d.test", 1, 0.0, "opted_out 1"),
        (None, 1, 0.0, "bad_url 1"),
    ]  # fmt: skip


def test_statuses_add_up(root: str) -> None:
    with Catalog(root) as catalog:
        rows = reports.statuses(catalog, "pool").to_pylist()
    assert rows[0] == {"status": "success", "urls": 6, "share": pytest.approx(6 / 13), "hosts": 3}
    assert rows[1]["status"] == "http_404"
    assert sum(row["urls"] for row in rows) == len(ROWS)
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_a_file_under_three_urls_is_a_placeholder_and_one_under_two_is_not(root: str) -> None:
    with Catalog(root) as catalog:
        assert reports.placeholders(catalog, "pool").to_pylist() == [
            {"sha256": "pp", "urls": 3, "hosts": 3, "sample": "http://A.test/2.jpg?x=https://b.test/"}
        ]
        assert [row["sha256"] for row in reports.placeholders(catalog, "pool", 2).to_pylist()] == ["pp", "bb"]


def test_a_pool_that_is_not_there_is_answered_with_the_nearest(root: str) -> None:
    with Catalog(root) as catalog:
        assert reports.pool_of(catalog) == "pool"
        with pytest.raises(SluiceError, match="has no pool 'pol'; did you mean 'pool'"):
            reports.pool_of(catalog, "pol")
        with pytest.raises(SluiceError, match="has no pool 'urls'"):
            reports.pool_of(catalog, "urls")


def test_the_command_shows_all_three(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.out, "width", 160)
    links = reports.links
    with cli.out.capture() as shown:
        assert CliRunner().invoke(links, [root]).exit_code == 0
    text = shown.get()
    for words in ("How the links ended", "By host", "a.test", "http_404 2, dns_error 1", "One file under 3 URLs"):
        assert words in text
