"""Everything that can be wrong with a DAG is found before anything starts, in one line with a remedy."""

from pathlib import Path

import pytest

from pipeline import Dag, SluiceError

GOOD = """
dag: toys
seed: 3
nodes:
  urls: {steps: [{tests.toys.Numbers: {rows: 8}}]}
  pool: {from: urls, steps: [tests.toys.Fetch]}
  scores: {from: pool, workers: {count: 2, batch_rows: 16}, steps: [tests.toys.Times, tests.toys.Label]}
"""


def wrong(text: str, *overrides: str) -> str:
    with pytest.raises(SluiceError) as caught:
        Dag.parse(text, overrides).check()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_good_dag_has_nothing_wrong_and_an_order() -> None:
    dag = Dag.parse(GOOD)
    dag.check()
    assert list(dag.nodes) == ["urls", "pool", "scores"]
    assert {column.name for column in dag.columns("scores")} == {"product", "label"}
    assert {"url", "caption", "status", "pixels"} <= {column.name for column in dag.columns("pool")}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("tests.toys.Times", "tests.toys.Time", "tests.toys has no 'Time'; did you mean 'Times'?"),
        (
            "tests.toys.Times",
            "stages.txt_quality.X",
            "no module 'stages.txt_quality'; did you mean 'stages.text_quality'?",
        ),
        ("tests.toys.Times", "Times", "'Times' is no import path; write it like stages.download.Download"),
        ("{rows: 8}", "{row: 8}", "has no parameter 'row'; did you mean 'rows'?"),
        ("{rows: 8}", "{rows: many}", "rows = 'many': input should be a valid integer"),
        ("from: pool", "from: pol", "scores takes from 'pol', which is no node; did you mean 'pool'?"),
        ("{from: urls, steps: [tests.toys.Fetch]}", "{from: scores, steps: [tests.toys.Fetch]}", "form a cycle: "),
        ("from: pool, workers", "from: [], workers", "scores has no `from`"),
        ("tests.toys.Times, ", "", "reads 'product', which no node in `from` has"),
        ("count: 2", "cuont: 2", "has no parameter 'cuont'; did you mean 'count'?"),
        ("count: 2", "count: 0", "count = 0: input should be greater than or equal to 1"),
        ("seed: 3", "sead: 3", "the DAG has no key 'sead'; did you mean 'seed'?"),
        ("dag: toys", "dag: my toys", "`dag: 'my toys'` is no name"),
        ("  pool:", "  runs:", "node 'runs' is reserved"),
        ("steps: [tests.toys.Fetch]", "step: [tests.toys.Fetch]", "pool has no key 'step'; did you mean 'steps'?"),
        ("[tests.toys.Fetch]", "[tests.toys.Fetch, tests.toys.Times]", "Fetch must be its node's only step"),
        ("[tests.toys.Fetch]", "[]", "`steps` must be a list of stages"),
        ("tests.toys.Times,", "tests.toys.Times, tests.toys.Times,", "Times adds 'product', which Times has already"),
        ("seed: 3", "seed: 3\nseed: 4", "line 4: 'seed' stands twice"),
        ("seed: 3", "seed: [", "not YAML"),
        ("seed: 3", "? [a, b]\n: 1", "line 3: ['a', 'b'] is no name"),
        ("from: pool", "from: 3", "`from: 3` is no node"),
        ("from: pool", "from: [pool, pool]", "`from` names a node twice: pool, pool"),
        ("tests.toys.Times", "pipeline.stage.PartStage", "pipeline.stage has no 'PartStage'"),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(old: str, new: str, expected: str) -> None:
    assert expected in wrong(GOOD.replace(old, new))


def test_a_column_that_two_nodes_have_is_ambiguous() -> None:
    text = GOOD + "  more: {from: [pool, scores, again], steps: [tests.toys.Label]}\n"
    text += "  again: {from: pool, steps: [tests.toys.Times]}\n"
    message = wrong(text)
    assert "reads 'product', which scores and again both have; write 'scores.product' or 'again.product'" in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    text = GOOD.replace(
        "tests.toys.Times, ", f"{{tests.toys.Listed: {{numbers: {tmp_path}/none.txt}}}}, tests.toys.Times, "
    )
    assert f"scores: Listed: numbers: no such file: '{tmp_path}/none.txt'; check the path" in wrong(text)


def test_inputs_of_two_pools_do_not_mix() -> None:
    text = GOOD + "  others: {steps: [tests.toys.Numbers]}\n  both: {from: [pool, others], steps: [tests.toys.Times]}\n"
    assert "both takes from different pools: pool (of urls), others (of others)" in wrong(text)


def test_a_value_can_be_laid_over() -> None:
    dag = Dag.parse(GOOD, ["scores.factor=5", "scores.workers.count=7", "urls.rows=3"])
    assert dag.nodes["scores"].stages[0].factor == 5  # type: ignore[attr-defined]
    assert dag.nodes["scores"].workers.count == 7
    assert "factor: 5" in dag.text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("scores.facter=5", "scores has no parameter 'facter'; did you mean 'factor'?"),
        ("score.factor=5", "no node 'score'; did you mean 'scores'?"),
        ("factor=5", "write it as node.param=value"),
        ("scores.factor", "write it as node.param=value"),
        ("scores.factor=[", "is no YAML value"),
    ],
)
def test_a_wrong_override_is_named(override: str, expected: str) -> None:
    assert expected in wrong(GOOD, override)


def test_an_unknown_shipped_dag_is_answered_with_the_nearest() -> None:
    with pytest.raises(SluiceError, match="did you mean 'quickstart'"):
        Dag.load("quikstart")


def test_until_keeps_what_the_node_needs() -> None:
    assert list(Dag.parse(GOOD).until("pool").nodes) == ["urls", "pool"]
    with pytest.raises(SluiceError, match="did you mean 'pool'"):
        Dag.parse(GOOD).until("pol")


def test_pixels_need_a_pool() -> None:
    text = GOOD.replace("from: pool, workers: {count: 2, batch_rows: 16}, steps: [tests.toys.Times, tests.toys.Label]",
                        "from: urls, steps: [stages.image_quality.ImageQuality]")  # fmt: skip
    assert "no node in `from` is a pool; add the download node" in wrong(text)
