"""Balancing over clusters: groups that were planted are found, and what remains of each is what was asked for."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import SluiceError
from pipeline.stage import Column
from stages.balance import BalanceClusters, clusters
from stages.balance.clusters import tempered
from stages.balance.draws import draws
from tests.stages.balance.pools import Row, run, spread, uid_of

SIZES = (600, 200, 50, 20)
WIDTH = 16


def planted(seed: int = 0) -> tuple[list[Row], dict[str, int]]:
    """Groups of known sizes around axes, and which row is of which."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    group = {}
    for which, size in enumerate(SIZES):
        for _ in range(size):
            vector = np.eye(WIDTH)[which] + 0.05 * rng.normal(size=WIDTH)
            uid = uid_of(len(rows))
            rows.append(Row(uid, vector=vector / np.linalg.norm(vector)))
            group[uid] = which
    return rows, group


def test_what_belongs_together_is_a_cluster_and_large_ones_are_cut_to_cap(tmp_path: Path) -> None:
    rows, group = planted()
    lost = [Row(uid_of(10_000)), Row(uid_of(10_001))]
    found, work = run(tmp_path, BalanceClusters(clusters=4, cap=100), spread([*rows, *lost], 3), "image")
    of = {row["uid"]: row for row in found.to_pylist()}
    names = {group[uid]: row["cluster"] for uid, row in of.items() if uid in group}
    assert len(set(names.values())) == 4
    assert all(of[uid]["cluster"] == names[which] for uid, which in group.items())
    for which, size in enumerate(SIZES):
        mine = [of[uid] for uid in group if group[uid] == which]
        assert {row["cluster_probability"] for row in mine} == {np.float32(min(1, 100 / size))}
        kept = sum(row["cluster_balanced"] for row in mine)
        assert abs(kept - min(100, size)) <= (4 * 100**0.5 if size > 100 else 0)
    assert all(set(of[row.uid].values()) == {row.uid, None} for row in lost)
    records = BalanceClusters(clusters=4, cap=100).assemble(work)
    assert records[0].notes == {"rows": 870, "sampled": 512, "clusters": 4, "largest": 600}


def test_no_layout_changes_a_cluster_or_a_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = planted(1)
    stage = BalanceClusters(cap=20)
    one, work = run(tmp_path / "one", stage, {"000-0": rows}, "image")
    assert stage.assemble(work)[0].notes["clusters"] == 29, "the root of the number of rows"
    monkeypatch.setattr(clusters, "AT_ONCE", 100)
    many, _ = run(tmp_path / "many", stage, spread(rows[::-1], 5), "image")
    assert one.sort_by("uid").equals(many.sort_by("uid").combine_chunks())
    other, _ = run(tmp_path / "other", stage, {"000-0": rows}, "image", seed=5)
    assert not other.column("cluster_balanced").equals(one.column("cluster_balanced"))


def test_the_sample_is_bounded_and_a_share_of_each_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "MOST_SAMPLED", 100)
    rows, group = planted(2)
    stage = BalanceClusters(clusters=2, temperature=1, keep=0.5)
    found, work = run(tmp_path, stage, spread(rows, 2), "image")
    assert stage.assemble(work)[0].notes["sampled"] == 100
    sampled = pa.concat_tables([pq.read_table(path) for path in tmp_path.glob("balance/data/*.sample.parquet")])
    own = draws(0, found.select(["uid"]))
    assert set(sampled.column("draw").to_pylist()).isdisjoint(own), "what is sampled is not kept the more often"
    kept = [row["uid"] for row in found.to_pylist() if row["cluster_balanced"]]
    assert abs(len(kept) - 435) < 4 * (870 * 0.25) ** 0.5
    assert set(found.column("cluster_probability").to_pylist()) == {0.5}
    assert Counter(group[uid] for uid in kept)[0] > 200


counts = st.lists(st.integers(0, 10**7), min_size=1, max_size=40).filter(any)


@given(counts, st.floats(0, 1), st.floats(0.001, 1))
@example([0, 1], 0.0, 0.5)
@example([0, 1], 1.0, 0.5)
def test_a_temperature_keeps_the_share_that_was_asked_for(sizes: list[int], temperature: float, keep: float) -> None:
    size = np.array(sizes)
    found = tempered(size, temperature, keep)
    assert ((found > 0) & (found <= 1)).all()
    assert (found * size).sum() == pytest.approx(keep * size.sum(), rel=1e-6)
    kept = found * size
    order = np.argsort(size)
    assert (np.diff(kept[order]) >= -1e-6 * kept.max()).all(), "a larger cluster never keeps fewer"
    cut = (found < 1 - 1e-9) & (size > 0)
    laws = kept[cut] / size[cut].astype(float) ** temperature
    assert laws.max(initial=0) == pytest.approx(laws.min(initial=laws.max(initial=0)), rel=1e-6)


def test_the_ends_of_the_temperature() -> None:
    sizes = np.array([1000, 100, 10])
    assert tempered(sizes, 1.0, 0.3) == pytest.approx([0.3] * 3)
    assert tempered(sizes, 0.0, 210 / 1110) * sizes == pytest.approx([100, 100, 10])
    assert tempered(sizes, 0.5, 1.0) == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    "what", [{}, {"cap": 5, "temperature": 0.5, "keep": 0.5}, {"temperature": 0.5}, {"cap": 5, "keep": 0.5}]
)
def test_there_is_one_way_to_say_how_much_remains(what: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give either cap, or temperature|belong together"):
        BalanceClusters(**what)


def test_a_pool_without_embeddings_is_refused(tmp_path: Path) -> None:
    columns = [Column("image_embedding", "scores", "image", pa.int32())]
    with pytest.raises(SluiceError, match="'image_embedding' is int32 of images; expected lists of floats"):
        BalanceClusters(cap=1).check(columns)


def test_the_golden_table_holds_or_the_revision_is_raised(tmp_path: Path) -> None:
    assert BalanceClusters.revision == 1
    axes = [0, 0, 0, 0, 1, 1, 2]
    rows = [Row(uid_of(n), vector=np.eye(4)[axis]) for n, axis in enumerate(axes)]
    found, _ = run(tmp_path, BalanceClusters(clusters=3, cap=2), {"000-0": [*rows, Row(uid_of(7))]}, "image", seed=17)
    shown = found.to_pylist()
    groups = [shown[0]["cluster"], shown[4]["cluster"], shown[6]["cluster"]]
    assert sorted(groups) == [0, 1, 2]
    golden = [(groups[axis], chance, kept) for axis, (chance, kept) in zip(axes, GOLDEN, strict=True)]
    assert [tuple(row.values())[1:] for row in shown] == [*golden, (None, None, None)]


GOLDEN = [(0.5, False), (0.5, False), (0.5, False), (0.5, True), (1.0, True), (1.0, True), (1.0, True)]
