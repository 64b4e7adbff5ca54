"""The commands `sluice train` and `sluice recipes`, joined to the command line by entry points of `sluice.commands`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence

import click
from rich.table import Table

from pipeline import cli
from pipeline.errors import SluiceError
from pipeline.runs import run_of, with_shards
from pipeline.store import Store
from stages.train.train import lineage, named, tars


@cli.example("sluice recipes")
@click.command()
def recipes() -> None:
    """List the systems that can be trained: YAMLs in models/recipes, from which your own may be copied."""
    from models.recipe import Recipe, shipped

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("recipe", "what it is", "objectives"):
        table.add_column(header)
    for header in ("samples", "batch"):
        table.add_column(header, justify="right")
    for name in shipped():
        recipe = Recipe.load(name)
        objectives = " + ".join(term.objective.path.rpartition(".")[2] for term in recipe.objectives)
        table.add_row(name, recipe.about, objectives, f"{recipe.samples:,}", f"{recipe.batch:,}")
    cli.out.print(table)


@cli.example(
    "sluice train runs/demo --node shards --recipe clip-vit-b32 --tiny --out models/clip",
    "sluice train runs/mine --node web --node books --recipe mine.yaml --out s3://bucket/clip --set batch=4096",
)
@click.command()
@cli.root_argument
@click.option("--node", "nodes", multiple=True, required=True, metavar="NODE", help="One that made shards; repeatable.")
@click.option("--recipe", required=True, metavar="RECIPE", help="A YAML file, or a name that `sluice recipes` lists.")
@click.option("--out", required=True, metavar="FOLDER", help="For checkpoints and the model; on any fsspec store.")
@click.option("--tiny", is_flag=True, help="Lay the recipe's `tiny` overlay over it: for two CPU cores.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="Seen in all, instead of what the recipe says; for fewer than its warmup also --set schedule.warmup=….",
)
@click.option("--set", "settings", multiple=True, metavar="KEY.KEY=VALUE", help="Lay a value over the recipe.")
@click.option("--run", "run_id", help="Train on what an older run left, such as 0003.")
@click.option("--wandb", metavar="PROJECT", help="Log to Weights & Biases, too.")
@click.option("--restart", is_flag=True, help="Begin anew instead of going on from the newest checkpoint.")
def train(
    root: str,
    nodes: Sequence[str],
    recipe: str,
    out: str,
    tiny: bool,
    samples: int | None,
    settings: Sequence[str],
    run_id: str | None,
    wandb: str | None,
    restart: bool,
) -> None:
    """Train RECIPE on shards of ROOT in this process, outside a DAG.

    Called again it goes on from the newest checkpoint in FOLDER. Ctrl-C makes it write one more and stop.
    FOLDER/model is what transformers loads; with `--set export=best` of the checkpoint with the lowest loss of the last
    phase, of a training that has ended as well. On many GPUs: a DAG (stages.train.Train), or torchrun -m models.train.
    """
    store = Store(root)
    generations = with_shards(store, run_of(store, run_id), nodes)
    shards = {node: generations[node] for node in nodes}
    selections = {name: generations[name] for one in shards.values() for name in one.inputs if name in generations}

    from models.data.shards import DataError, Unreachable
    from models.recipe import Recipe, RecipeError
    from models.train.guard import TrainingError
    from models.train.loop import train as run  # torch and transformers: seconds, paid once the arguments are right

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        more = [] if samples is None else [f"samples={samples}"]
        chosen = Recipe.load(recipe, tiny, [*settings, *more])
        data = {name: tars(store, shards[node].records) for name, node in named(chosen.sets, list(shards)).items()}
        trained = run(
            chosen,
            data,
            out,
            lineage=lineage({**selections, **shards}),
            resume=not restart,
            stop=stop.is_set,
            wandb=wandb,
        )
    except (RecipeError, DataError, TrainingError, Unreachable) as error:
        raise SluiceError(str(error)) from None
    if trained.model is None:
        cli.out.print(f"stopped at {trained.samples:,} samples; the same command goes on from there")
        raise click.exceptions.Exit(130)
    said = f"the model is in {trained.model}. Next:\n  sluice evaluate {trained.model} SETS"
    cli.out.print(said, highlight=False, markup=False, soft_wrap=True)
