"""Explained, tried and compared on S3 as on a local disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.diff import diff
from pipeline.explain import explain
from pipeline.store import Store
from pipeline.what_if import what_if
from tests.pipeline.seeing import Runs, uid
from tests.s3 import serving


@pytest.fixture(scope="module")
def bucket(runs: Runs) -> Iterator[str]:
    """The same store on S3."""
    with serving() as s3, s3.environment():
        address = s3.bucket("seen") + "/root"
        store = Store(address)
        for path in Path(runs.root).rglob("*"):
            if path.is_file():
                store.fs.pipe_file(store.full(str(path.relative_to(runs.root))), path.read_bytes())
        yield address


def test_a_sample_has_the_same_history(runs: Runs, bucket: str) -> None:
    for name in (uid(7), "own-8", uid(27)[:10]):
        here, there = explain(runs.root, name), explain(bucket, name)
        assert there.captions == here.captions
        assert [place.offset for place in there.places] == [place.offset for place in here.places]
        assert all(place.path.startswith("s3://seen/root/") for place in there.places)


def test_other_rules_give_the_same_funnel_and_sample(runs: Runs, bucket: str) -> None:
    here, there = (what_if(root, {"even": "n % 2 = 1"}, sample=3) for root in (runs.root, bucket))
    assert there.steps == here.steps
    assert [one.caption for one in there.lost] == [one.caption for one in here.lost]


def test_runs_differ_alike(runs: Runs, bucket: str) -> None:
    here, there = (diff(root, "1", "4", sample=3) for root in (runs.root, bucket))
    assert (there.nodes, there.selections, there.shards) == (here.nodes, here.selections, here.shards)
