"""The command `sluice metrics`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from pipeline import cli
from pipeline.errors import SluiceError

if TYPE_CHECKING:
    from pipeline.report.training import Scores

MAIN = (
    *("acc1", "_acc", "recall@1", "recall@5", "mean_average_precision"),
    *("itm_accuracy", "cider", "vqa_accuracy", "vqa_accuracy_shuffled"),
)
"""How the metrics end that are shown first."""
TASKS = ("zeroshot", "image_", "reranked", "captioning", "vqa")
"""How their tasks begin."""


@cli.example("sluice metrics runs/demo", "sluice metrics runs/demo --run 0003 --all")
@click.command()
@cli.root_argument
@click.option("--run", "run_id", help="Show an older run, such as 0003.")
@click.option("--all", "everything", is_flag=True, help="Every metric of every task.")
def metrics(root: str, run_id: str | None, everything: bool) -> None:
    """Compare the models that a run trained: a row for each metric, a column for each model, the best one bold; of
    more models than fit side by side a table for each task, with a row for each model.

    Of several seeds a value is their mean, and what stands behind it their deviation; of one it is the standard error.
    """
    from pipeline.catalog import Catalog
    from pipeline.report.training import training
    from pipeline.runs import generations_of, run_of
    from pipeline.store import Store
    from pipeline.views import Schema

    store = Store(root)
    run = run_of(store, run_id)
    with Catalog(root, run.id) as catalog:
        found = training(catalog.sql, Schema(store, generations_of(store, run)).tables)
    if not found.scores:
        raise SluiceError(f"run {run.id} evaluated no model; add a node with stages.evaluate.Evaluate")
    rows = [row for row in found.scores if everything or (row.task.startswith(TASKS) and row.metric.endswith(MAIN))]
    abreast = _abreast(rows, found.models, everything)
    if _fits(abreast):
        cli.out.print(abreast)
    else:
        for task in dict.fromkeys((row.set, row.task) for row in rows):
            cli.out.print(Text(f"\n{', '.join(task)}", "bold"))
            for table in _of_a_task([row for row in rows if (row.set, row.task) == task], found.models):
                cli.out.print(table)
    cli.out.print(Text("per cent; chance is what guessing gives", "dim"))


def _abreast(rows: Sequence[Scores], models: Sequence[str], everything: bool) -> Table:
    """A row for each metric, a column for each model that has one of these."""
    scores = {model: [_score(row, model) for row in rows] for model in models}
    scores = {model: cells for model, cells in scores.items() if any(cells)}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("set", "task", "metric") if everything else ("set", "metric"):
        table.add_column(header)
    table.add_column("chance", justify="right")
    for model, cells in scores.items():
        _add_scores(table, Text(model), cells)
    for row, *of_row in zip(rows, *scores.values(), strict=True):
        names = (row.set, row.task, row.metric) if everything else (row.set, row.metric)
        table.add_row(*map(_in_words, names), _chance(row), *of_row)
    return table


def _add_scores(table: Table, header: Text, cells: Sequence[Text]) -> None:
    """A column in which a score and its error stay in one line."""
    table.add_column(header, justify="right", min_width=max(cell.cell_len for cell in cells))


def _fits(table: Table) -> bool:
    """Whether a terminal shows it with every word and every number in one piece."""
    unbounded = cli.out.options.update_width(sys.maxsize)
    return cli.out.measure(table, options=unbounded).minimum <= cli.out.width


def _in_words(name: str) -> Text:
    """So that a long one breaks between them."""
    return Text(name.replace("_", " "))


def _of_a_task(rows: Sequence[Scores], models: Sequence[str]) -> Iterator[Table]:
    """One below the other, each with as many metrics as fit."""
    metrics: list[Scores] = []
    for row in rows:
        if metrics and not _fits(_of_models([*metrics, row], models)):
            yield _of_models(metrics, models)
            metrics = []
        metrics.append(row)
    yield _of_models(metrics, models)


def _of_models(rows: Sequence[Scores], models: Sequence[str]) -> Table:
    """A row for each model that has a score, a column for each metric."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    for row in rows:
        _add_scores(table, _in_words(row.metric), [_score(row, model) for model in models])
    for model in models:
        if any(score.model == model for row in rows for score in row.scores):
            table.add_row(Text(model), *(_score(row, model) for row in rows))
    if any(row.chance is not None for row in rows):
        table.add_row(Text("chance", "dim"), *(Text(_chance(row), "dim") for row in rows))
    return table


def _score(row: Scores, model: str) -> Text:
    """Of one model, bold where none is better; empty where it was not measured."""
    score = next((score for score in row.scores if score.model == model), None)
    if score is None:
        return Text()
    off = "" if score.error is None else f" ± {100 * score.error:.1f}"
    best = max(other.value for other in row.scores)
    return Text(f"{100 * score.value:.1f}{off}", "bold" if score.value == best else "")


def _chance(row: Scores) -> str:
    return "" if row.chance is None else f"{100 * row.chance:.1f}"
