"""Captions of several sources on the page: what each scored and which were kept, whatever they try to be."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.catalog import Catalog
from pipeline.report import report
from pipeline.report.page import SEGMENTS
from pipeline.report.sources import SourcesReport, sources_report
from pipeline.runs import generations_of, run_of
from pipeline.stage import CAPTIONS
from pipeline.store import Store
from pipeline.views import Schema
from tests.pools import write_node, write_run

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'
UIDS = ["a" * 32, "b" * 32, "c" * 32]
RULES = [{"fits": "fit_score >= 0.5"}, {"short": "length(caption) < 900"}]


def written(root: str) -> Store:
    """Three images, the last without a picture: each with a caption of the web, and one that a model wrote."""
    store = Store(root)
    there = pa.array([0, 0, None], pa.int64())
    image = pa.table({"uid": UIDS, "url": ["http://x/"] * 3, "status": ["success"] * 3, "offset": there})
    image = image.append_column("nbytes", there).append_column("stored_sha256", pa.array(["", "", None], pa.string()))
    image = image.append_column(CAPTIONS, pa.array([1, 1, 1], CAPTIONS.type))  # of the web's, not of all
    web = {"uid": UIDS, "caption_id": ["0", "1", "2"], "caption": ["x", HOSTILE, "z"], "source": ["web"] * 3}
    write_node(store, "pool", {"000-0": {"image": image, "caption": pa.table(web)}}, tar=True)
    pairs = {"uid": [uid for uid in UIDS for _ in range(2)], "caption_id": ["0", "00", "1", "11", "2", "22"]}
    told = {**pairs, "caption": ["x", "xx", HOSTILE, f"{HOSTILE}!", "z", "zz"], "source": ["web", "<b>own</b>"] * 3}
    write_node(store, "captions", {"000-0": {"caption": pa.table(told)}}, inputs=["pool"])
    scores = {**pairs, "fit_score": [0.9, 0.1, 0.2, 0.7, 0.9, 0.9], "other_score": [1.0] * 6}
    write_node(store, "match", {"000-0": {"caption": pa.table(scores)}}, inputs=["captions", "pool"])
    dropped = [None, "fits", "fits", None, None, None]
    judged = {"kept": [one is None for one in dropped], "dropped_by": pa.array(dropped, pa.string())}
    parts = {"000-0": {"caption": pa.table({**pairs, **judged})}}
    found = write_node(store, "kept", parts, inputs=["captions", "pool", "match"], notes={"funnel": FUNNEL})
    steps = [{"stage": "stages.select.Select", "revision": 1, "parameters": {"rules": RULES}}]
    store.seal(found.model_copy(update={"identity": {"steps": steps}, "number": 0}))
    write_run(store, ["pool", "captions", "match", "kept"])
    return store


FUNNEL = [
    {"rule": "fits", "rows": 6, "dropped": 2, "left": 4},
    {"rule": "short", "rows": 4, "dropped": 0, "left": 4},
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return written(str(tmp_path / "root"))


def found(store: Store) -> list[SourcesReport | None]:
    generations = generations_of(store, run_of(store, None))
    with Catalog(store.root) as catalog:
        pools = Schema(store, generations).pools
        assert [pool.node for pool in pools] == ["pool", "captions"]
        return [sources_report(catalog.sql, pool, generations, SEGMENTS) for pool in pools]


def test_every_caption_stands_with_its_source_scores_and_fate(store: Store) -> None:
    of_the_web, of_both = found(store)
    assert of_the_web is None
    assert of_both is not None
    assert of_both.counts == (("<b>own</b>", 2, 1), ("web", 2, 1))
    images = dict(of_both.images)
    assert set(images) == set(UIDS[:2])
    first, second = images[UIDS[0]]
    assert (first.text, first.source, first.kept, first.scores) == ("x", "web", True, (("fit_score", 0.9),))
    assert (second.text, second.source, second.dropped_by) == ("xx", "<b>own</b>", "fits")


def test_hostile_captions_and_sources_are_text(store: Store) -> None:
    page = report(store.root)
    assert "Captions by source" in page
    assert "&lt;b&gt;own&lt;/b&gt;" in page
    assert "&lt;script&gt;alert(1)" in page
    for forbidden in ("<script", "<b>own", 'onerror="'):
        assert forbidden not in page
