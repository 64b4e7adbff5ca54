"""The command `sluice metrics`."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from pipeline import cli
from pipeline.errors import SluiceError

MAIN = ("acc1", "_acc", "recall@1", "recall@5", "mean_average_precision", "itm_accuracy", "cider")
"""How the metrics end that are shown first."""
TASKS = ("zeroshot", "image_", "reranked", "captioning")
"""How their tasks begin."""


@cli.example("sluice metrics runs/demo", "sluice metrics runs/demo --run 0003 --all")
@click.command()
@cli.root_argument
@click.option("--run", "run_id", help="Show an older run, such as 0003.")
@click.option("--all", "everything", is_flag=True, help="Every metric of every task.")
def metrics(root: str, run_id: str | None, everything: bool) -> None:
    """Compare the models that a run trained: a row for each metric, a column for each model, the best one bold.

    Of several seeds a value is their mean, and what stands behind it their deviation; of one it is the standard error.
    """
    from pipeline.catalog import Catalog
    from pipeline.report.training import Scores, training
    from pipeline.runs import generations_of, run_of
    from pipeline.store import Store
    from pipeline.views import Schema

    store = Store(root)
    run = run_of(store, run_id)
    with Catalog(root, run.id) as catalog:
        found = training(catalog.sql, Schema(store, generations_of(store, run)).tables)
    if not found.scores:
        raise SluiceError(f"run {run.id} evaluated no model; add a node with stages.evaluate.Evaluate")
    models = found.models
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("set", "task", "metric") if everything else ("set", "metric"):
        table.add_column(header)
    for header in ("chance", *models):
        table.add_column(Text(header), justify="right")

    def shown(row: Scores) -> bool:
        return everything or (row.task.startswith(TASKS) and row.metric.endswith(MAIN))

    for row in filter(shown, found.scores):
        by_model = {score.model: score for score in row.scores}
        best = max(score.value for score in row.scores)
        cells = []
        for model in models:
            score = by_model.get(model)
            off = "" if score is None or score.error is None else f" ± {100 * score.error:.1f}"
            text = "" if score is None else f"{100 * score.value:.1f}{off}"
            cells.append(Text(text, "bold" if score is not None and score.value == best else ""))
        chance = "" if row.chance is None else f"{100 * row.chance:.1f}"
        names = (row.set, row.task, row.metric) if everything else (row.set, row.metric)
        table.add_row(*map(Text, names), chance, *cells)
    cli.out.print(table)
    cli.out.print(Text("per cent; chance is what guessing gives", "dim"))
