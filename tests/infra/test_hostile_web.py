"""Every kind of page ends in a pool as its key says, and the server saw what it should have seen, and no more."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest

from infra.miniweb import FACTS, MIXES, Family, Kind, Miniweb
from infra.miniweb.grade import judged
from pipeline import Catalog, Dag, run
from pipeline.store import Store
from tests.inline import Inline

FETCH = """
dag: fetch
nodes:
  urls:
    steps:
      - stages.ingest.UrlTables: {{files: "{folder}/web/urls.parquet", url: url, caption: alt}}
  pool:
    from: urls
    steps:
      - stages.download.Download:
          side: 64
          timeout_s: 10
          max_mb: 5
          expect_sha256: seen_sha256
          allow_private_hosts: ["127.0.0.1:{port}", "localhost:{port}"]
  kept:
    from: pool
    steps:
      - stages.select.Select: {{rules: [{{downloaded: status = 'success'}}]}}
"""


class Fetched:
    """A web after a run over it: how its pages ended, and who was asked for."""

    def __init__(self, web: Miniweb, folder: Path) -> None:
        self.pages = web.pages
        self.hits = Counter(web.hits)
        self.key = pq.read_table(folder / "key.parquet")
        with Catalog(str(folder / "root")) as catalog:
            self.pairs = catalog.sql("SELECT url, caption, status, kept, dropped_by FROM samples")
            self.images: list[dict[str, Any]] = catalog.sql("SELECT * FROM pool").to_pylist()
        self.statuses = {row["page_id"]: row["status"] for row in self.images}


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fetched]:
    folder = tmp_path_factory.mktemp("hostile")
    with Miniweb(folder / "web", pages=150, seed=11, mix="hostile", key=folder / "key.parquet") as web:
        port = urlsplit(web.base).port
        dag = Dag.parse(FETCH.format(folder=folder, port=port))
        run(dag, str(folder / "root"), executor=Inline(Store(str(folder / "root"))))
        yield Fetched(web, folder)


KINDS = [kind for kind in Kind if kind in MIXES["hostile"] or kind is Kind.CLEAN]


@pytest.mark.parametrize("kind", KINDS)
def test_every_page_ends_as_its_key_says(fetched: Fetched, kind: Kind) -> None:
    ends = [fetched.statuses.get(page.number) for page in fetched.pages.of(kind)]
    assert ends
    assert set(ends) <= set(FACTS[kind].ends or (None,))


def test_the_grade_says_so_too(fetched: Fetched) -> None:
    found = judged(fetched.key, fetched.pairs)
    assert {each.kind for each in found.kinds} == set(KINDS)
    assert {each.kind: each.ended for each in found.kinds} == dict.fromkeys(KINDS, 1.0)
    assert found.lost == 0


def test_every_fault_landed_as_often_as_it_was_worth_a_try(fetched: Fetched) -> None:
    def asked(kind: Kind) -> set[int]:
        return {fetched.hits[str(page.path)] for page in fetched.pages.of(kind)}

    for kind in (Kind.NOT_FOUND, Kind.GONE, Kind.HTML, Kind.STALLED, Kind.ENDLESS, Kind.GZIP_BOMB, Kind.PNG_BOMB):
        assert asked(kind) == {1}
    for kind in (Kind.SERVER_ERROR, Kind.HANG_UP, Kind.LENGTH_TOO_LONG):
        assert min(asked(kind)) > 1
    assert asked(Kind.FLAKY) == {2, 3}
    assert asked(Kind.RATE_LIMITED) == {2}
    assert asked(Kind.REDIRECT_LOOP) == {6}


def test_what_must_not_be_asked_for_was_not(fetched: Fetched) -> None:
    for kind in (Kind.DISALLOWED, Kind.ROBOTS_BROKEN, Kind.BLOCKED_ADDRESS, Kind.BAD_NAME, Kind.BAD_TLS):
        assert not any(fetched.hits[str(page.path)] for page in fetched.pages.of(kind))
    assert fetched.hits["/robots.txt"] >= 2


def test_nothing_is_kept_of_what_is_forbidden_or_harmful(fetched: Fetched) -> None:
    for row in fetched.images:
        kind = fetched.pages[row["page_id"]].kind
        if FACTS[kind].family in (Family.FORBIDDEN, Family.HARMFUL) and kind is not Kind.PNG_NEAR_BOMB:
            assert row["nbytes"] is None
