"""Copies, groups and an index through `sluice run` with Ray, killed on the way, and asked afterwards."""

import json
from pathlib import Path

from click.testing import CliRunner

from pipeline import Catalog, Dag, run
from pipeline.cli import main
from pipeline.store import Store
from tests.chaos.drive import check, hashes
from tests.chaos.driver import started
from tests.inline import Inline
from tests.stages.dedup.scenes import pairs
from tests.toys import uid_of

ROWS = 2 * len(pairs())
TEXT = f"""
dag: scenes
seed: 3
nodes:
  urls: {{steps: [{{tests.toys.Numbers: {{rows: {ROWS}, parts: 3}}}}]}}
  pool: {{from: urls, steps: [tests.stages.dedup.scenes.Scenes]}}
  scores: {{from: pool, steps: [tests.stages.dedup.scenes.Vectors]}}
  copies:
    from: [pool, scores]
    steps: [{{stages.dedup.NearDuplicates: {{cosine: 0.9, rows_per_cell: 10}}}}]
  same_meaning:
    from: [pool, scores]
    steps:
      - stages.dedup.NearDuplicates:
          {{cosine: 0.97, perceptual_bits: null, verify: none, rows_per_cell: 10, cell_similarity: true}}
  strict: {{from: [pool, copies], steps: [{{stages.dedup.Groups: {{cosine: 0.9, agreement: 0.99}}}}]}}
  kept:
    from: [pool, same_meaning]
    steps:
      - stages.select.Select:
          rules:
            - one_of_a_kind: >-
                uid = first_value(uid) OVER (PARTITION BY duplicate_group ORDER BY cell_similarity NULLS LAST, uid)
  index: {{from: scores, steps: [stages.index.EmbeddingIndex]}}
"""


def test_a_run_that_is_killed_while_it_looks_for_copies_is_resumed_and_finds_them(tmp_path: Path) -> None:
    dag, root, calm = tmp_path / "scenes.yaml", tmp_path / "root", tmp_path / "calm"
    dag.write_text(TEXT)
    run(Dag.parse(TEXT), str(calm), executor=Inline(Store(str(calm))))
    whole = len(Store(str(calm)).committed("copies"))
    with started(["run", dag, root]) as driver:
        driver.until(lambda: len(Store(str(root)).committed("copies")) >= whole // 2, "half of the copies are found")
        driver.kill()
        driver.gone()
    store = Store(str(root))
    before = {path: path.read_bytes() for path in Path(root, "copies", "commits").iterdir()}
    assert whole // 2 <= len(before) < whole
    executor = Inline(store)
    run(Dag.parse(TEXT), str(root), executor=executor)
    assert len(executor.calls["copies"]) == whole - len(before), "what was committed is reused"
    assert all(path.read_bytes() == data for path, data in before.items())
    assert hashes(root) == hashes(calm)
    check(root)
    assert_copies_are_found(str(root))


def assert_copies_are_found(root: str) -> None:
    with Catalog(root) as catalog:
        rows = catalog.sql("SELECT uid, duplicate_group, similarity FROM copies").to_pylist()
        groups = {row["uid"]: row["duplicate_group"] for row in rows}
        together = [groups[uid_of(2 * n)] == groups[uid_of(2 * n + 1)] for n in range(len(pairs()))]
        assert together == [is_copy for _, is_copy, _, _ in pairs()]
        assert len(set(groups.values())) == ROWS - sum(together)
        (edges,) = catalog.sql("SELECT count(*), count(*) FILTER (NOT verified) FROM copies_edges").to_pylist()
        assert list(edges.values()) == [len(pairs()), len(pairs()) - sum(together)]
        strict = catalog.sql("SELECT count(DISTINCT duplicate_group) FROM strict").column(0)[0].as_py()
        assert ROWS - sum(together) < strict < ROWS
        kept = catalog.sql(
            "SELECT count(*), bool_and(m.cell_similarity = least.of_group) FROM kept JOIN same_meaning m USING (uid) "
            "JOIN (SELECT duplicate_group, min(cell_similarity) AS of_group FROM same_meaning GROUP BY ALL) least "
            "USING (duplicate_group) WHERE kept"
        )
        assert list(kept.to_pylist()[0].values()) == [len(pairs()), True]
    shown = CliRunner().invoke(main, ["status", root]).output
    assert f"copies: same bytes 0, near hashes {len(pairs())}, cells " in shown
    found = CliRunner().invoke(main, ["neighbours", root, "--uid", uid_of(4), "-k", "1", "--json"]).stdout
    assert json.loads(found)["uid"] == uid_of(5)
