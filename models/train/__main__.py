"""`python -m models.train`, alone or under torchrun."""

from __future__ import annotations

import os
import signal
import sys
import threading

import click
import torch
import torch.distributed as dist

from models.recipe import Recipe

STOPPED = 3
"""Exit status of a training that was told to stop, and goes on when it is called again."""


def _named(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or not name or not folder:
            raise click.BadParameter(f"{value!r} is no NAME=FOLDER, such as shards=root/shards")
        found[name] = folder
    return found


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  python -m models.train clip-vit-b32 --tiny --data shards=root/shards --out out
  python -m models.train my.yaml --data web=s3://bucket/web --data books=s3://bucket/books --out s3://bucket/out
  python -m models.train clip-vit-b32 --data shards=shards --out out --set batch=4096 --samples 1000000 \\
    --set schedule.warmup=100000
  torchrun --nproc-per-node 8 -m models.train clip-vit-b32 --data shards=shards --out out --set parallel.mode=fsdp""",
)
@click.argument("recipe")
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="NAME=FOLDER",
    callback=_named,
    help="Where a set of the recipe's mixture lies: a folder of tars, or a pattern with braces. May be repeated.",
)
@click.option("--out", required=True, metavar="FOLDER", help="For checkpoints and the model; on any fsspec store.")
@click.option("--tiny", is_flag=True, help="Lay the recipe's `tiny` overlay over it: for two CPU cores.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="Seen in all, instead of what the recipe says; for fewer than its warmup also --set schedule.warmup=….",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY.KEY=VALUE", help="Lay a value over the recipe.")
@click.option("--restart", is_flag=True, help="Delete the folder's checkpoints instead of going on from the newest.")
@click.option(
    "--weights",
    multiple=True,
    metavar="NAME=FOLDER",
    callback=_named,
    help="What the model begins with, by its parameter: pretrained=FOLDER. May be repeated.",
)
@click.option("--wandb", metavar="PROJECT", help="Log to Weights & Biases, too.")
def main(
    recipe: str,
    data: dict[str, str],
    out: str,
    tiny: bool,
    samples: int | None,
    overrides: tuple[str, ...],
    restart: bool,
    weights: dict[str, str],
    wandb: str | None,
) -> None:
    """Train RECIPE, a YAML file or one that sluice ships, on shards, and write checkpoints and the model.

    Called again it goes on from the newest checkpoint, on any number of processes that divides the recipe's batch.
    SIGTERM and SIGINT make it write one more and stop. FOLDER/model is what transformers loads; the curves are in
    FOLDER/tensorboard. `--set export=best` makes the model of the checkpoint with the lowest loss of its last phase,
    of a training that has ended as well.
    """
    from models.data.shards import DataError, Unreachable
    from models.recipe import RecipeError
    from models.train.guard import TrainingError
    from models.train.loop import train

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        counted = [] if samples is None else [f"samples={samples}"]
        chosen = Recipe.load(recipe, tiny, [*overrides, *counted])
        _join()
        trained = train(
            chosen,
            data,
            out,
            lineage={"weights": weights} if weights else None,
            resume=not restart,
            stop=stop.is_set,
            wandb=wandb,
            weights=weights,
        )
    except (RecipeError, DataError, TrainingError, Unreachable) as error:
        click.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    first = os.environ.get("RANK", "0") == "0"
    if trained.model is None:
        click.echo(f"stopped at {trained.samples:,} samples; the same command goes on from there", err=True)
        sys.exit(STOPPED)
    if first:
        click.echo(trained.model)


def _join() -> None:
    """The other processes that torchrun started, if it did."""
    if "LOCAL_RANK" not in os.environ:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


if __name__ == "__main__":
    main()
