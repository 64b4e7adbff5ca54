"""The command of the evaluation, without Ray and without a DAG."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from models.evaluate.metric import Metric, shown
from models.evaluate.tasks import TASKS


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  python -m infra.miniweb.sets demo/sets --samples 500
  python -m models.evaluate demo/model demo/sets
  python -m models.evaluate demo/model hf://datasets/clip-benchmark/wds_cifar10 --task knn --device cuda
""",
)
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("sets", metavar="SET...", nargs=-1, required=True)
@click.option("--task", "tasks", multiple=True, type=click.Choice(TASKS), help="Only these, instead of all that fit.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the rows to this JSON file.")
@click.option("--card", "in_card", is_flag=True, help="Also write them into the model's card, its README.md.")
@click.option("--device", default="cpu", show_default=True, help="Where the model runs: cpu, cuda, cuda:1.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the weights and the forward pass.",
)
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images or texts at once.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="That decode and resize.")
@click.option("--seed", default=0, show_default=True, help="Of the folds of a linear probe.")
def main(
    model: Path, sets: Sequence[str], tasks: Sequence[Any], out: Path | None, in_card: bool, **options: Any
) -> None:
    """Evaluate MODEL, a folder that transformers loads, on every SET.

    A SET is a folder in CLIP_benchmark's WebDataset layout, or a folder of such, local or in any store that fsspec
    reaches. What it is for, its files say: classes (zero-shot by prompts; with a `train` split also a linear probe and
    nearest neighbours), retrieval, the choice of a caption, or questions, which a model that writes answers; those of
    VQAv2, GQA, ScienceQA and VizWiz are read as they are published.
    """
    from models.data.shards import Unreachable
    from models.evaluate.run import evaluate
    from models.export import card  # with torch, for which `--help` need not wait

    try:
        if in_card:
            card.text(model)  # before minutes of evaluation
        metrics = evaluate(model, _named(sets), tasks=tasks or None, **options)
        if in_card:
            card.write(model, metrics)
    except (ValueError, Unreachable) as error:
        raise click.ClickException(str(error)) from None
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(metric) for metric in metrics]
        out.write_text(json.dumps({"model": str(model), "metrics": rows}, indent=2) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 120).print(table_of(metrics))


def _named(folders: Sequence[str]) -> dict[str, str]:
    """The sets in some folders by name. Raises `ValueError` for two of one name, which no table could tell apart."""
    from models.evaluate.sets import found_in

    found: dict[str, str] = {}
    for folder in folders:
        for name, place in found_in(folder).items():
            if name in found:
                raise ValueError(f"two sets are called {name!r}: {found[name]} and {place}; rename a folder")
            found[name] = place
    return found


def table_of(metrics: Sequence[Metric]) -> Table:
    """A line per metric; what no standard error is known of has none."""
    table = Table(box=None)
    for name in ("set", "task", "metric"):
        table.add_column(name)
    for name in ("value", "± s.e.", "chance", "samples"):
        table.add_column(name, justify="right")
    for metric in metrics:
        table.add_row(metric.set, metric.task, metric.metric, *shown(metric), f"{metric.samples:,}")
    return table


if __name__ == "__main__":
    main(prog_name="python -m models.evaluate")
