"""Two runs compared: what was asked, what each left, and exactly the pairs on which they differ."""

import json
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline import Dag, cli, run
from pipeline.catalog import Catalog
from pipeline.diff import Diff, diff
from pipeline.errors import SluiceError
from pipeline.store import Store
from pipeline.verdicts import ABSENT
from tests.inline import Inline
from tests.pipeline.seeing import Runs, uid


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page on which no cell is folded."""
    monkeypatch.setattr(cli.out, "_width", 250)


def asked(root: str, *options: str) -> Result:
    return CliRunner().invoke(cli.main, ["diff", root, *options], catch_exceptions=False, terminal_width=200)


def verdicts(root: str, run: str) -> dict[tuple[str, str], str | None]:
    with Catalog(root, run) as catalog:
        table = catalog.sql("SELECT uid, caption_id, dropped_by FROM kept")
    return {(row["uid"], row["caption_id"]): row["dropped_by"] for row in table.to_pylist()}


PAIRS_OF_RUNS = [("0001", "0002"), ("0002", "0003"), ("0003", "0004"), ("0001", "0004"), ("0004", "0001")]


@pytest.mark.parametrize("pair", PAIRS_OF_RUNS)
def test_the_pairs_that_differ_are_those_that_differ(runs: Runs, pair: tuple[str, str]) -> None:
    before, after = (verdicts(runs.root, run) for run in pair)
    expected = Counter(
        (before.get(key, ABSENT), after.get(key, ABSENT))
        for key in before.keys() | after.keys()
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    )
    (found,) = diff(runs.root, *pair, sample=100).selections
    assert {(was, now): count for was, now, count in found.moves} == expected
    assert found.pairs == (len(before), len(after))
    assert found.kept == (list(before.values()).count(None), list(after.values()).count(None))
    lost = {(one.uid, one.caption_id) for one in found.lost}
    assert lost == {key for key, verdict in before.items() if verdict is None and after.get(key, ABSENT) is not None}
    gained = {(one.uid, one.caption_id) for one in found.gained}
    assert gained == {key for key, verdict in after.items() if verdict is None and before.get(key, ABSENT) is not None}
    for step in found.steps:
        for count, said in ((step.before, before), (step.after, after)):
            assert count is not None
            assert count.dropped == list(said.values()).count(step.rule)


def test_parts_that_both_runs_share_are_not_joined_but_count(tmp_path: Path) -> None:
    """Rules that look at one row alone leave the parts of the first run as they are; a retry replaces rows in them."""
    text = """
    dag: shared
    nodes:
      urls: {steps: [{tests.toys.Numbers: {rows: 40, parts: 4}}]}
      pool: {from: urls, steps: [{tests.toys.Fetch: {fails: 10, answers: ANSWERS}}]}
      kept: {from: pool, steps: [{stages.select.Select: {rules: [{ok: status = 'success'}, {low: n < 25}]}}]}
    """
    dag, root = Dag.parse(text.replace("ANSWERS", str(tmp_path / "answers"))), str(tmp_path / "root")
    run(dag, root, executor=Inline(Store(root)))
    (tmp_path / "answers").touch()
    run(dag, root, executor=Inline(Store(root)), retry=["pool"])
    found = diff(root, "1", "2", sample=9)
    assert found.nodes["kept"].parts_reused == 4
    (selection,) = found.selections
    assert selection.pairs == (40, 40)
    assert selection.moves == (("ok", None, 3), ("ok", "low", 1))
    assert selection.kept == tuple(list(verdicts(root, one).values()).count(None) for one in ("0001", "0002"))
    assert {one.values["pool.status"] for one in selection.gained} == {("http_503", "success")}
    assert [(step.before and step.before.left, step.after and step.after.left) for step in selection.steps] == [
        (36, 40),
        (22, 25),
    ]


def test_a_run_is_the_same_as_itself(runs: Runs) -> None:
    found = diff(runs.root, "4", "0004")
    assert found.same
    assert found.selections == ()
    assert "nothing differs" in asked(runs.root, "4", "4").output
    assert all(node.parts_reused == node.after.parts for node in found.nodes.values() if node.after)


@pytest.fixture(scope="module")
def retried(runs: Runs) -> Diff:
    return diff(runs.root, "1", "2")


def test_a_retry_reuses_what_there_is_and_changes_what_stands_on_it(retried: Diff) -> None:
    assert not retried.same
    assert retried.nodes["urls"].same
    pool = retried.nodes["pool"]
    assert pool.before is not None
    assert pool.after is not None
    assert (pool.before.statuses["http_503"], pool.after.statuses.get("http_503", 0)) == (6, 0)
    assert (pool.before.rows, pool.after.rows) == (48, 48)
    assert (pool.parts_reused, pool.before.parts, pool.after.parts) == (4, 4, 8)
    assert pool.reasons == ()
    assert retried.nodes["scores"].reasons == ("input pool has other content",)


def test_a_value_that_changed_is_shown_as_it_was_and_as_it_is(retried: Diff) -> None:
    (selection,) = retried.selections
    gained = next(one for one in selection.gained if one.before == "downloaded")
    assert gained.values == {"pool.status": ("http_503", "success")}
    assert gained.uid in {uid(n) for n in range(0, 48, 18)}


def test_another_rule_and_new_input_are_said(runs: Runs) -> None:
    assert diff(runs.root, "3", "4").nodes["kept"].reasons == ("rule even: n % 2 = 0 → n % 2 = 0 OR n % 3 = 0",)
    more = diff(runs.root, "2", "3").nodes["urls"]
    assert [reason.rpartition("/")[2] for reason in more.reasons] == ["b.parquet is new"]
    assert (more.before and more.before.rows, more.after and more.after.rows) == (49, 58)


def test_shards_are_compared_by_their_bytes(runs: Runs) -> None:
    (found,) = diff(runs.root, "3", "4").shards
    before, after = (_shards(runs, one) for one in ("0003", "0004"))
    assert (found.removed, found.added, found.same) == (len(before), len(after), 0)
    assert (found.bytes_removed, found.bytes_added) == (sum(before), sum(after))
    (same,) = diff(runs.root, "4", "4").shards
    assert (same.same, same.added, same.removed) == (len(after), 0, 0)


def _shards(runs: Runs, one: str) -> list[int]:
    """The sizes (bytes) of a run's shards, by what lies on the disk."""
    with Catalog(runs.root, one) as catalog:
        return [Path(path).stat().st_size for path in catalog.sql("SELECT path FROM shards").column(0).to_pylist()]


def test_other_dags_nodes_seeds_and_workers_are_said(tmp_path: Path) -> None:
    texts = (
        "{dag: one, seed: 1, nodes: {urls: {steps: [{tests.toys.Numbers: {rows: 8}}]}, "
        "twice: {from: urls, steps: [tests.toys.Times]}}}",
        "{dag: two, seed: 2, nodes: {urls: {workers: {cpus: 2}, steps: [{tests.toys.Numbers: {rows: 8, parts: 2}}]}, "
        "more: {from: urls, steps: [tests.toys.Times]}}}",
    )
    for text in texts:
        run(Dag.parse(text), str(tmp_path), executor=Inline(Store(str(tmp_path))))
    found = diff(str(tmp_path), "1", "2")
    assert (found.dags, found.seeds) == (("one", "two"), (1, 2))
    assert found.nodes["twice"].after is None
    assert found.nodes["more"].before is None
    assert found.nodes["urls"].reasons == (
        "parts: 4 → 2",
        "workers: None → {'cpus': 2} (where it runs, not what is done)",
    )
    shown = asked(str(tmp_path), "1", "2").output
    for expected in ("run 0001 of one → run 0002 of two", "seed 1 → 2", "gone", "new", "parts: 4 → 2"):
        assert expected in shown


def test_the_page_says_what_matters(runs: Runs) -> None:
    shown = asked(runs.root, "1", "4", "--sample", "3").output
    expectations = ["run 0001 of seen → run 0004 of seen", "http_503 -6", "rule even: n % 2 = 0 → ", "left before"]
    expectations += ["verdicts that differ", "not there", "newly kept", "even: n 3", "same bytes"]
    for expected in expectations:
        assert expected in shown, expected
    assert not {"\x1b", "\u202e"} & set(shown)
    found = json.loads(asked(runs.root, "1", "4", "--json").output)
    assert found["same"] is False
    assert found["selections"][0]["kept"] == [12, 20]


def test_a_run_that_is_not_there(runs: Runs) -> None:
    with pytest.raises(SluiceError, match="has no run '0040'; did you mean '0004'"):
        diff(runs.root, "1", "0040")
    done = asked(runs.root, "1", "newest")
    assert (done.exit_code, len(done.output.strip().splitlines())) == (2, 1)
