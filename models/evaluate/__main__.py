"""The command of the evaluation, without Ray and without a DAG."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import fsspec
from fsspec.implementations.local import LocalFileSystem
from rich.console import Console
from rich.table import Table

from models.evaluate.metric import Metric, shown
from models.evaluate.tasks import TASKS


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  python -m infra.miniweb.sets demo/sets --samples 500
  python -m models.evaluate demo/model/model demo/sets
  python -m models.evaluate s3://bucket/clip/model hf://datasets/clip-benchmark/wds_cifar10 --task knn --device cuda
""",
)
@click.argument("model")
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
    model: str, sets: Sequence[str], tasks: Sequence[Any], out: Path | None, in_card: bool, **options: Any
) -> None:
    """Evaluate MODEL, a folder that transformers loads (of a training, its `model`), on every SET.

    A SET is a folder in CLIP_benchmark's WebDataset layout (dags/README.md shows one), or a folder of such; both may be
    in any store that fsspec reaches. What a set is for, its files say: classes (zero-shot by prompts; with a `train`
    split also a linear probe and nearest neighbours), retrieval, the choice of a caption, or questions, which a model
    that writes answers; those of VQAv2, GQA, ScienceQA and VizWiz are read as they are published.
    """
    from models.data.shards import Unreachable
    from models.evaluate.run import evaluate
    from models.export import card  # with torch, for which `--help` need not wait

    try:
        with _here(model) as folder:
            if in_card:
                card.text(folder)  # before minutes of evaluation
            metrics = evaluate(folder, _named(sets), tasks=tasks or None, **options)
            if in_card:
                card.write(folder, metrics)
                _send(folder / card.NAME, model)
    except (ValueError, Unreachable) as error:
        raise click.ClickException(str(error)) from None
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(metric) for metric in metrics]
        out.write_text(json.dumps({"model": model, "metrics": rows}, indent=2) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 120).print(table_of(metrics))


@contextmanager
def _here(model: str) -> Iterator[Path]:
    """The folder of a model on this machine, for as long as it is used. Raises `ValueError` where there is none."""
    try:
        store, place = fsspec.core.url_to_fs(model)
    except ImportError as error:
        raise ValueError(f"{model!r}: {error}") from None
    if not store.isdir(place):
        raise ValueError(f"no folder {model!r}; expected that of a model, such as the folder `model` of a training")
    if isinstance(store, LocalFileSystem):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="sluice-model-") as folder:
        for entry in store.ls(place, detail=True):
            if entry["type"] == "file":
                store.get_file(entry["name"], f"{folder}/{str(entry['name']).rpartition('/')[2]}")
        yield Path(folder)


def _send(file: Path, model: str) -> None:
    store, place = fsspec.core.url_to_fs(model)
    if not isinstance(store, LocalFileSystem):
        store.put_file(str(file), f"{place}/{file.name}")


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
