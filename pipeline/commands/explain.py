"""`sluice explain`: a sample's whole history on one page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipeline import cli, show

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.explain import Caption, History, Value, Verdict

SOURCE = ("url", "final_url", "source_file", "source_row", "source_uid", "sha256", "status")
"""Where a sample came from and how it arrived: told first, whoever wrote it."""
RELATED_SHOWN = 8
"""Rows of each table of edges and the like."""
WIDTH = 160
"""Characters of a value that are shown."""


@cli.example(
    "sluice explain runs/demo 3f2a9c",
    "sluice explain runs/demo https://example.org/cat.jpg",
    "sluice explain runs/demo 3f2a9c0e7d15b8466a90c1d2e3f40516.jpg   # a member's name in a shard",
    "sluice explain runs/demo 3f2a9c --run 0003 --json | jq .captions",
)
@click.command()
@cli.root_argument
@click.argument("sample", metavar="UID|URL")
@click.option("--run", "run_id", help="Ask an older run, such as 0003.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, every value included.")
def explain(root: str, sample: str, run_id: str | None, as_json: bool) -> None:
    """Tell a sample's whole history: its source, every value, every verdict, and the bytes that hold it.

    A sample is named by its uid or at least 6 leading digits of it, by its URL as it stood in the input, by the
    input's own id, or by a member's name in a shard.
    """
    from pipeline.explain import explain as history_of

    history = history_of(root, sample, run_id)
    if as_json:
        click.echo(as_text(history))
    else:
        told(cli.out, root, history)


def as_text(history: History) -> str:
    """JSON in ASCII: nothing in it moves a terminal."""
    return json.dumps(asdict(history), indent=1, default=_other)


def _other(value: Any) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def told(console: Console, root: str, history: History) -> None:
    """The history for people."""
    console.print(Text.assemble((history.uid, "bold"), f"   run {history.run} of {history.dag}"), soft_wrap=True)
    _source(console, history)
    _failures(console, history)
    _values(console, "image", [value for value in history.image if value.column not in SOURCE])
    for number, caption in enumerate(history.captions, 1):
        _caption(console, root, caption, f"caption {number} of {len(history.captions)}")
    _related(console, history)
    _places(console, history)
    for row in history.replaced:
        status = show.plain(f" ({row.status})" if row.status else "")
        _line(console, "replaced", Text(f"{row.node} part {row.part}") + status + f", by part {row.by}")
    for run, numbers in history.older.items():
        shown = ", ".join(f"{node} {number}" for node, number in numbers.items())
        _line(console, "older", Text(f"run {run} had other generations: {shown}; --run {run} tells them"))


def _source(console: Console, history: History) -> None:
    found = {column: history.value(column) for column in SOURCE}
    file, row = found.pop("source_file"), found.pop("source_row")
    if file is not None:
        found = {"input": f"{file} row {row}", **found}
    _pairs(console, ((column, value) for column, value in found.items() if value is not None))


def _pairs(console: Console, items: Iterable[tuple[str, Any]]) -> None:
    grid = Table.grid(padding=(0, 3))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in items:
        grid.add_row(show.plain(name), shown(value))
    show.lay_out(console, grid)


def shown(value: Any) -> Text:
    """Any value, without what moves a terminal."""
    from pipeline.explain import Unread

    if isinstance(value, Unread):
        return Text(f"a vector, {value.type}", "dim")
    return show.plain(_other(value) if isinstance(value, bytes) else value, WIDTH)


def _failures(console: Console, history: History) -> None:
    for failure in history.failures:
        head = Text(f"\n{failure.node} part {failure.part}: ", "red")
        console.print(head + show.plain(failure.error, 400), soft_wrap=True)


def _values(console: Console, title: str, values: Sequence[Value]) -> None:
    if not values:
        return
    if title:
        console.print(Text(f"\n{title}", "bold"))
    grid = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for style in ("cyan", "dim", "", ""):
        grid.add_column(style=style, overflow="fold")
    before: tuple[str, str] = ("", "")
    for value in values:
        step = value.step.rpartition(".")[2] if " + " not in value.step else _shortened(value.step)
        writer = (value.node, step)
        grid.add_row(*(writer if writer != before else ("", "")), show.plain(value.column), shown(value.value))
        before = writer
    show.lay_out(console, grid)


def _shortened(steps: str) -> str:
    return " + ".join(step.rpartition(".")[2] for step in steps.split(" + "))


def _caption(console: Console, root: str, caption: Caption, title: str) -> None:
    text = next((value.value for value in caption.values if value.column == "caption"), None)
    head = Text.assemble(("\n" + title, "bold"), "   ", (caption.caption_id, "dim"))
    console.print(head, soft_wrap=True)
    console.print(shown(text), soft_wrap=True)
    _values(console, "", [value for value in caption.values if value.column != "caption"])
    for verdict in caption.verdicts:
        _verdict(console, root, verdict)


def _verdict(console: Console, root: str, verdict: Verdict) -> None:
    if verdict.kept:
        said = Text.assemble(("kept", "green"), f", {verdict.passed} rules passed")
    elif verdict.rule is None:
        said = Text.assemble(("not kept", "red"), ": ", show.plain(verdict.dropped_by or "no rule is named"))
    else:
        place = f", rule {verdict.passed + 1} of {verdict.rules}"
        said = Text.assemble(("dropped", "red"), " by ", (str(show.plain(verdict.dropped_by)), "bold"), place)
    _line(console, verdict.node, said)
    if verdict.rule is not None:
        _pairs(console, [("  rule", verdict.rule), *_indented(verdict.looked_at)])
    if verdict.others is not None:
        console.print(
            Text("  compared with: ", "dim") + show.plain(f'sluice sql {quote(root)} "{verdict.others}"', 400)
        )


def _indented(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(f"  {name}", value) for name, value in values.items()]


def _line(console: Console, title: str, text: Text) -> None:
    console.print(Text.assemble((f"{title}  ", "cyan"), text), soft_wrap=True)


def _related(console: Console, history: History) -> None:
    """The rows of other tables that name the sample, a table each."""
    tables: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for related in history.related:
        tables.setdefault((related.node, related.kind), []).append(related.values)
    for (node, kind), rows in tables.items():
        grid = show.new_grid(*(escape(str(show.plain(name))) for name in rows[0]), title=f"\n{node} ({kind})")
        for row in rows[:RELATED_SHOWN]:
            grid.add_row(*map(shown, row.values()))
        show.lay_out(console, grid)
        if len(rows) > RELATED_SHOWN:
            console.print(f"… {len(rows) - RELATED_SHOWN:,} more; --json has all", style="dim", highlight=False)


def _places(console: Console, history: History) -> None:
    if not history.places:
        return
    console.print(Text("\nbytes", "bold"))
    grid = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(style="cyan")
    grid.add_column(overflow="fold")
    grid.add_column(overflow="fold")
    grid.add_column(justify="right")
    grid.add_column(justify="right")
    for place in history.places:
        where = (show.plain(place.path, 400), show.plain(place.member))
        grid.add_row(place.node, *where, f"at {place.offset:,}", show.size(place.nbytes))
    show.lay_out(console, grid)
