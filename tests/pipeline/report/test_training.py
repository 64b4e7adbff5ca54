"""What a report, and `sluice metrics`, say of models: curves, and each metric of each model beside the others'."""

from __future__ import annotations

import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from rich.console import Console

from pipeline import cli
from pipeline.cli import main
from pipeline.report import report
from pipeline.report.training import Curve, lines
from pipeline.store import Store
from tests.pools import write_node, write_run

HOSTILE = "<img/src=x>"


def row(model: str, value: float, seed: int = 0, **other: Any) -> dict[str, Any]:
    said = {"set": "birds", "task": "zeroshot_classification", "metric": "acc1", "standard_error": 0.02, "chance": 0.1}
    return {"model": model, "seed": seed, **said, "value": value, "samples": 50, **other}


@pytest.fixture
def root(tmp_path: Path) -> str:
    store = Store(str(tmp_path / "root"))
    for node, last in (("clip", 1.5), ("raw", 2.25)):
        curve = {"samples": [10, 20, 30], "loss": [4.0, math.nan, last], "learning_rate": [0.1, 0.1, 0.0]}
        write_node(store, node, {"model": {"curve": pa.table(curve)}})
    rows = [
        row("clip", 0.5),
        row("clip", 0.7, seed=1),
        row("clip", 0.6, seed=2),
        row("raw", 0.25),
        row("raw", 0.9, task="linear_probe"),
        row(HOSTILE, 0.125, set=HOSTILE),
    ]
    write_node(store, "comparison", {"all": {"metric": pa.Table.from_pylist(rows)}}, inputs=["clip", "raw"])
    write_run(store, ["clip", "raw", "comparison"])
    return str(tmp_path / "root")


def test_the_curve_of_several_seeds_is_their_mean_and_ends_at_the_last_sample(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    samples = list(range(1, 1001))
    parts = {str(seed): {"curve": pa.table({"samples": samples, "loss": [seed + 0.5] * 1000})} for seed in (1, 2)}
    write_node(store, "clip", parts)
    write_run(store, ["clip"])
    page = report(store.root)
    assert "1,000 samples, loss 2.000" in page


def shown_by_metrics(monkeypatch: pytest.MonkeyPatch, columns: int, *arguments: str) -> str:
    monkeypatch.setattr(cli, "out", Console(width=columns))
    return CliRunner().invoke(main, ["metrics", *arguments], catch_exceptions=False).output


def test_seeds_become_their_mean_and_deviation_and_tasks_stay_apart(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_by_metrics(monkeypatch, 200, root, "--all")
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines()]
    assert ["birds", "linear probe", "acc1", "10.0", "90.0 ± 2.0"] in lines
    short = shown_by_metrics(monkeypatch, 200, root)
    assert re.search(r"birds +acc1 +10.0 +60.0 ± 10.0 +25.0 ± 2.0\s", short)
    assert "90.0" not in short


def test_many_models_stand_below_each_other_in_a_table_for_each_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "root"))
    rows = [row(f"arm{number}", number / 10) for number in range(7)]
    rows += [row("arm3", 0.75, set="talk", task="captioning", metric="cider", chance=None)]
    write_node(store, "comparison", {"all": {"metric": pa.Table.from_pylist(rows)}})
    write_run(store, ["comparison"])
    shown = shown_by_metrics(monkeypatch, 80, store.root)
    assert re.search(
        r"birds, zeroshot_classification\nmodel +acc1\s*\narm0 +0\.0 ± 2\.0\s*\n(arm\d.*\n){6}chance +10\.0", shown
    )
    assert re.search(r"talk, captioning\nmodel +cider\s*\narm3 +75\.0 ± 2\.0\s*\nper cent", shown)


@pytest.mark.parametrize(("columns", "abreast"), [(80, False), (200, True)])
def test_names_and_numbers_stay_whole_however_wide_a_terminal_is(
    tmp_path: Path, columns: int, abreast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "root"))
    models = ["curated_clip", "random_clip", "raw_clip", "trusted_clip"]
    metrics = [f"{of}_retrieval_recall@{k}" for of in ("image", "text") for k in (1, 5)]
    scores = {(model, metric): (10 + n) / 100 for n, (model, metric) in enumerate(product(models, metrics))}
    rows = [
        row(model, value, set="retrieval", task="zeroshot_retrieval", metric=metric)
        for (model, metric), value in scores.items()
    ]
    rows.append(row("scorer", 0.5, set="held_out", task="loss", metric="contrastive"))
    write_node(store, "comparison", {"all": {"metric": pa.Table.from_pylist(rows)}})
    write_run(store, ["comparison"])
    for also in ([], ["--all"]):
        shown = shown_by_metrics(monkeypatch, columns, store.root, *also)
        assert max(map(len, shown.splitlines())) <= columns
        assert "…" not in shown
        for value in scores.values():
            assert shown.count(f"{100 * value:.1f} ± 2.0") == 1
        for model in models:
            assert model in shown
        for metric in ("recall@1", "recall@5"):
            assert len(re.findall(rf"{metric}\b", shown)) == 2
        assert ("scorer" in shown) is bool(also), "a model without a score has no column"
        assert bool(re.search(" +".join(models), shown)) is abreast


def test_the_page_draws_the_curves_and_the_metrics_and_nothing_hostile(root: str) -> None:
    page = report(root)
    training, evaluation = page.split('<section id="training">')[1].split('<section id="evaluation">')
    assert "30 samples, loss 1.500" in training
    assert "30 samples, loss 2.250" in training
    assert training.count("<polyline") == 2
    assert "60.0 %" in evaluation
    assert "± 10.0" in evaluation
    assert HOSTILE not in page
    assert "curve" not in page.split('<section id="tables">')[-1] or '<section id="tables">' not in page


def test_a_curve_begins_left_at_its_highest_and_ends_at_its_lowest() -> None:
    drawn = lines([Curve("clip", ((100, 5.0), (200, 3.0), (400, 1.0)))], {"clip": 0})
    points = [tuple(map(float, p.split(","))) for p in re.findall(r'points="([^"]+)"', drawn)[0].split()]
    assert points == [(250.0, 0.0), (500.0, 110.0), (1000.0, 220.0)]


@pytest.mark.parametrize("points", [((10, 2.0),), ((10, 2.0), (20, 2.0)), ((0, 0.0),)])
def test_a_flat_curve_can_be_drawn(points: tuple[tuple[float, float], ...]) -> None:
    assert "nan" not in lines([Curve("clip", points)], {"clip": 0})


def test_a_run_without_models_says_what_is_missing(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    write_node(store, "urls", {"a": {"image": pa.table({"uid": ["0"]})}})
    write_run(store, ["urls"])
    result = CliRunner().invoke(main, ["metrics", str(tmp_path / "root")], terminal_width=200)
    assert result.exit_code == 2
    assert "evaluated no model; add a node with stages.evaluate.Evaluate" in result.output
