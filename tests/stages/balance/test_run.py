"""Balancing what a selection kept, through a whole run, and selecting by it."""

from pathlib import Path

from pipeline import Catalog, Dag, run
from pipeline.store import Store
from tests.inline import Inline

TEXT = """
dag: balanced
seed: 11
nodes:
  urls: {steps: [{tests.stages.gallery.Links: {rows: 60, parts: 3}}]}
  pool: {from: urls, steps: [{tests.stages.gallery.Gallery: {missing: 7}}]}
  kept:
    from: pool
    steps: [{stages.select.Select: {rules: {downloaded: status = 'success', short: length(caption) < 20}}}]
  balance:
    from: [pool, kept]
    steps: [{stages.balance.BalanceConcepts: {concepts: CONCEPTS, cap: 4, among: kept}}]
  chosen:
    from: [pool, kept, balance]
    steps: [{stages.select.Select: {rules: {kept: kept, balanced: balanced}}}]
"""
ASKED = """
SELECT b.concepts[1] AS concept, count(*) AS pairs, count(*) FILTER (k.kept) AS kept, count(b.balanced) AS drawn,
       count(*) FILTER (c.kept) AS chosen, count(*) FILTER (b.balanced) AS balanced,
       max(b.balance_probability) AS chance
FROM balance b JOIN kept k USING (uid, caption_id) JOIN chosen c USING (uid, caption_id) GROUP BY ALL
"""


def test_what_a_selection_kept_is_counted_and_a_rule_takes_what_was_drawn(tmp_path: Path) -> None:
    concepts = tmp_path / "concepts.txt"
    concepts.write_text("circle\nsquares\ncat\nmat\n")
    dag = Dag.parse(TEXT.replace("CONCEPTS", str(concepts)))
    dag.check()
    executor = Inline(Store(str(tmp_path / "root")))
    run(dag, str(tmp_path / "root"), executor=executor)
    with Catalog(str(tmp_path / "root")) as catalog:
        rows = {row.pop("concept"): row for row in catalog.sql(ASKED).to_pylist()}
    assert set(rows) == {"circle", "squares", "cat", None}
    for concept, row in rows.items():
        assert row["drawn"] == row["kept"]
        assert row["chosen"] == row["balanced"]
        if concept == "cat":
            assert (row["kept"], row["chance"]) == (0, None), "its captions are too long to be kept"
        elif concept is None:
            assert (row["chosen"], row["chance"]) == (0, 0)
        else:
            assert 8 <= row["kept"] < row["pairs"]
            assert abs(row["chance"] - 4 / row["kept"]) < 1e-6
    assert 0 < sum(row["chosen"] for row in rows.values()) < 20
    calls = Inline(Store(str(tmp_path / "root")))
    run(dag, str(tmp_path / "root"), executor=calls)
    assert calls.calls == {}
