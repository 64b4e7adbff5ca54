"""The command `sluice`. Other rooms add commands through the entry-point group `sluice.commands`.

What one command needs is loaded when it is called: `explain` is to answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from pipeline import show
from pipeline.errors import SluiceError
from pipeline.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.dag import Dag

GROUP = "sluice.commands"
MODULES = {
    "catalog": "catalog:command",
    "diff": "diff:diff",
    "explain": "explain:explain",
    "export": "export:command",
    "metrics": "metrics:metrics",
    "report": "report:report",
    "takedown": "takedown:command",
    "what-if": "what_if:what_if",
}
"""Commands of this room with a module of their own in `pipeline.commands`, and what they are called there."""

out = Console()
err = Console(stderr=True)


class Commands(click.Group):
    """A group that suggests the nearest command, prints errors in one line, and takes commands from other rooms."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from importlib.metadata import entry_points

        others = [point.name for point in entry_points(group=GROUP)]
        return [*self.commands, *sorted({*MODULES, *others})]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in self.commands:
            return self.commands[name]
        command: click.Command
        if name in MODULES:
            module, _, called = MODULES[name].partition(":")
            command = getattr(import_module(f"pipeline.commands.{module}"), called)
            return command
        from importlib.metadata import entry_points

        for point in entry_points(group=GROUP, name=name):
            command = point.load()
            return command
        near = get_close_matches(name, self.list_commands(ctx), n=1)
        raise click.UsageError(
            f"no command {name!r}" + (f"; did you mean {near[0]!r}?" if near else "; see `sluice --help`")
        )

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SluiceError as error:
            err.print("error:", str(error), style="red", highlight=False, markup=False, soft_wrap=True)
            sys.exit(getattr(error, "code", 2))


def example(*lines: str) -> Callable[[Any], Any]:
    """Examples at the end of `--help`."""
    return lambda command: _with_epilog(command, "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines))


def _with_epilog(command: click.Command, epilog: str) -> click.Command:
    command.epilog = epilog
    return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sluice", prog_name="sluice")
def main() -> None:
    """Curate web image-text pairs and train on what is left.

    A DAG (YAML) names stages; a ROOT (a folder or s3://bucket/prefix) holds what they made.
    """


dag_argument = click.argument("dag", metavar="DAG")
root_argument = click.argument("root", metavar="ROOT")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="NODE.PARAM=VALUE", help="Lay a value over the DAG."
)
limit_option = click.option("--limit", type=click.IntRange(min=1), help="Take only the first N rows of every input.")


def _load(dag: str, overrides: Sequence[str], limit: int | None) -> Dag:
    from pipeline.dag import Dag  # stages and YAML, for which `explain` need not wait

    loaded = Dag.load(dag, overrides)
    if limit is None:
        return loaded
    limited = [
        f"{node.name}.limit={limit}"
        for node in loaded.nodes.values()
        if not node.inputs and "limit" in type(node.stages[0]).model_fields
    ]
    if not limited:
        raise SluiceError(f"--limit {limit}: no input of {loaded.name} can be limited; leave it out")
    return Dag.load(dag, [*overrides, *limited])


@example("sluice check quickstart", "sluice check my.yaml --set pool.side=256")
@main.command()
@dag_argument
@set_option
def check(dag: str, overrides: Sequence[str]) -> None:
    """Find everything that is wrong with DAG before anything starts.

    DAG is a file, or the name of one that sluice ships.
    """
    loaded = _load(dag, overrides, None)
    loaded.check()
    show.columns(out, loaded)


@example("sluice plan quickstart runs/demo", "sluice plan quickstart runs/demo --set pool.side=256 --parts")
@main.command()
@dag_argument
@root_argument
@set_option
@limit_option
@click.option("--until", metavar="NODE", help="Only what NODE needs, and NODE.")
@click.option("--retry-failed", "retry", multiple=True, metavar="POOL", help="Try the failed rows of a pool again.")
@click.option("--parts", is_flag=True, help="Show every part.")
def plan(
    dag: str,
    root: str,
    overrides: Sequence[str],
    limit: int | None,
    until: str | None,
    retry: Sequence[str],
    parts: bool,
) -> None:
    """Say what `run` would do, and why: per node and part reuse, resume or run.

    Nothing is started and nothing is written.
    """
    from pipeline.plan import survey

    loaded = _load(dag, overrides, limit)
    loaded = loaded.until(until) if until else loaded
    loaded.check()
    show.plan(out, survey(loaded, Store(root), retry), parts)


@example(
    "sluice run quickstart runs/demo",
    "sluice run web_pairs.yaml s3://bucket/curation --address auto",
    "sluice run quickstart runs/demo --until pool --limit 1000",
    "sluice run quickstart runs/demo --set 'kept.rules=[{large: width >= 256}]'",
    "sluice run quickstart runs/demo --retry-failed pool",
)
@main.command()
@dag_argument
@root_argument
@set_option
@limit_option
@click.option("--until", metavar="NODE", help="Stop after NODE.")
@click.option("--retry-failed", "retry", multiple=True, metavar="POOL", help="Try the failed rows of a pool again.")
@click.option("--address", help="A Ray cluster to join, such as auto; by default a private one on this machine.")
def run(
    dag: str,
    root: str,
    overrides: Sequence[str],
    limit: int | None,
    until: str | None,
    retry: Sequence[str],
    address: str | None,
) -> None:
    """Bring every node of DAG to a finished state under ROOT.

    What is committed is reused; interrupted at any moment, the same command resumes.
    """
    from pipeline.driver import run as run_dag

    loaded = _load(dag, overrides, limit)
    result = run_dag(loaded, root, until=until, retry=retry, address=address, console=out)
    show.result(out, root, loaded, result)


@example("sluice status runs/demo")
@main.command()
@root_argument
@click.option("--runs", is_flag=True, help="List the runs.")
def status(root: str, runs: bool) -> None:
    """Show every node's parts, rows and statuses, and the funnel of every selection."""
    store = Store(root)
    if runs:
        show.runs(out, store)
    else:
        show.status(out, store)


@example(
    "sluice sql runs/demo 'SELECT status, count(*) FROM pool GROUP BY ALL'",
    "sluice sql runs/demo 'SELECT dropped_by, count(*) FROM samples GROUP BY ALL' --format csv",
    "sluice sql runs/demo 'FROM samples WHERE kept' --format parquet --out kept.parquet",
    "sluice sql runs/demo                       # lists the views and their columns",
)
@main.command()
@root_argument
@click.argument("query", required=False)
@click.option("--run", "run_id", help="Ask an older run, such as 0003.")
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json", "parquet"]), default="table", show_default=True
)
@click.option("--out", "target", type=click.Path(dir_okay=False), help="Write there instead of to the terminal.")
@click.option("--rows", default=40, show_default=True, help="Rows shown by --format table; 0 shows all.")
def sql(root: str, query: str | None, run_id: str | None, form: str, target: str | None, rows: int) -> None:
    """Ask a run in SQL (DuckDB): a view per node, and samples, drops, shards, shard_samples, errors, runs."""
    from pipeline.catalog import Catalog

    catalog = Catalog(root, run_id)
    if query is None:
        show.views(out, catalog)
        return
    table = catalog.sql(query)
    if form == "table" and target is None:
        show.table(out, table, rows)
    else:
        _write(table, "csv" if form == "table" else form, target)


def _write(table: pa.Table, form: str, target: str | None) -> None:
    if form == "parquet" and target is None:
        raise SluiceError("--format parquet needs --out FILE; a terminal shows no Parquet")
    if target is None:
        show.write(table, form, sys.stdout.buffer)
        return
    try:
        with Path(target).open("wb") as handle:
            show.write(table, form, handle)
    except OSError as error:
        raise SluiceError(f"--out {target}: {error.strerror}; name a file in a folder that exists") from None
    err.print(f"{table.num_rows:,} rows in {target}", highlight=False)


@example("sluice errors runs/demo", "sluice errors runs/demo --node pool --traceback")
@main.command()
@root_argument
@click.option("--node", help="Only this node.")
@click.option("--traceback", is_flag=True, help="Show whole tracebacks.")
@click.option("--rows", default=40, show_default=True, help="How many to show.")
def errors(root: str, node: str | None, traceback: bool, rows: int) -> None:
    """Show the parts that failed, the rows that were quarantined and the input rows that were refused."""
    store = Store(root)
    store.check_made()
    show.errors(out, store, node, traceback, rows)


@example("sluice verify runs/demo", "sluice verify runs/demo --repair")
@main.command()
@root_argument
@click.option("--repair", "mend", is_flag=True, help="Rebuild what can be rebuilt; mark lost pool rows `lost`.")
def verify(root: str, mend: bool) -> None:
    """Re-read every file of the newest run and compare it with its sha256. Exits with 1 where something is damaged."""
    from pipeline import upkeep

    store = Store(root)
    with show.bytes_bar(err) as progress:
        damages = upkeep.verify(store, progress)
    show.damages(out, root, damages)
    if damages and mend:
        repair = upkeep.repair(store, damages)
        for line in [*repair.done, *repair.left]:
            out.print(line, highlight=False)
        if repair.left:
            sys.exit(1)
    elif damages:
        sys.exit(1)


@example("sluice gc runs/demo", "sluice gc runs/demo --keep-runs 1 --yes")
@main.command()
@root_argument
@click.option(
    "--keep-runs", default=3, show_default=True, type=click.IntRange(min=1), help="Keep what the newest N runs use."
)
@click.option("--yes", is_flag=True, help="Delete; without it only what would go is said.")
@click.option("--force", is_flag=True, help="Forget interrupted runs. Only when no run is writing.")
def gc(root: str, keep_runs: int, yes: bool, force: bool) -> None:
    """Delete what no kept run references: old generations' data, and what killed workers left."""
    from pipeline import upkeep

    store = Store(root)
    store.check_made()
    if force:
        upkeep.clear_leases(store)
    garbage = upkeep.find_garbage(store, keep_runs)
    if yes:
        for path in garbage.paths:
            store.delete(path)
    verb = "deleted" if yes else "would delete (add --yes)"
    out.print(f"{verb}: {len(garbage.paths):,} files, {show.size(garbage.bytes)}", highlight=False)


if __name__ == "__main__":
    main()
