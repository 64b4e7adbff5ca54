"""The DAGs for a table of one's own run as shipped, from URLs to shards, with a tiny model in the place of CLIP."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from infra.miniweb import Miniweb, evaluation
from pipeline import Catalog, Dag, run
from pipeline.runs import generations_of
from pipeline.store import Store
from tests.inline import Inline
from tests.models.towers import tiny

PAGES = 90


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What every one of them is told of the small web: where the table is, and what must not leak."""
    folder = tmp_path_factory.mktemp("web")
    with Miniweb(folder, pages=PAGES, seed=3, evaluation=8) as web:
        evaluation.write(web.pages, folder / "held_out")
        yield [
            f"urls.files={folder}/urls.parquet",
            "urls.caption=alt",
            f"pool.allow_private_hosts=['127.0.0.1:{urlsplit(web.base).port}']",
            "pool.timeout_s=5",
            f"leaks.sets={{held_out: {folder}/held_out/images}}",
        ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Random, but that some of its cosines are above LAION's 0.28."""
    folder = tiny.save("clip", tmp_path_factory.mktemp("clip"), seed=7)
    return [f"scores.weights={folder}", f"scores.width={tiny.WIDTH}"]


def done(name: str, root: Path, overrides: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The funnel of each selection; the shards hold what the last one kept, an image each."""
    store = Store(str(root))
    run(Dag.load(name, overrides), store.root, executor=Inline(store))
    shards = generations_of(store, next(store.runs()))["shards"]
    selection = next(node for node in shards.inputs if node != "pool")
    with Catalog(store.root) as catalog:
        kept = catalog.sql(f"SELECT DISTINCT uid FROM {selection} WHERE kept").column("uid").to_pylist()
        leaks = catalog.sql("SELECT count(*) AS n FROM leaks WHERE leaks_from IS NOT NULL").column("n")[0].as_py()
        funnels = {node: catalog.funnel(node).to_pylist() for node in catalog.selections()}
    images = set()
    for path in Path(root).glob("shards/data/**/*.tar"):
        with tarfile.open(path) as tar:
            images |= {member.name.partition(".")[0] for member in tar if member.name.endswith(".jpg")}
    assert images == set(kept)
    assert kept
    assert leaks > 0
    return funnels


def test_web_pairs(told: list[str], tmp_path: Path) -> None:
    (funnel,) = done("web_pairs", tmp_path, told).values()
    dropped = {step["rule"]: step["dropped"] for step in funnel}
    assert all(dropped[rule] > 0 for rule in ("downloaded", "large", "english", "worded", "no_leak", "unique"))


def test_laion_style(told: list[str], model: list[str], tmp_path: Path) -> None:
    (funnel,) = done("laion_style", tmp_path, told + model).values()
    dropped = {step["rule"]: step["dropped"] for step in funnel}
    assert all(dropped[rule] > 0 for rule in ("downloaded", "english", "aligned", "no_watermark"))


def test_datacomp_small(told: list[str], model: list[str], tmp_path: Path) -> None:
    funnels = done("datacomp_small", tmp_path, told + model)
    left = {node: funnel[-1]["pairs_left"] for node, funnel in funnels.items()}
    assert list(funnels) == ["no_filter", "basic", "clip_top_30"]
    assert 0 < left["basic"] < left["no_filter"]
    assert left["clip_top_30"] == left["no_filter"] * 3 // 10
