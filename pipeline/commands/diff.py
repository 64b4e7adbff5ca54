"""`sluice diff`: what differs between two runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from pipeline import cli, show

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.diff import Diff, Example, FilesDiff, NodeDiff, SelectionDiff
    from pipeline.verdicts import Count, Step

MOVES_SHOWN = 8


@cli.example(
    "sluice diff runs/demo 0001 0002",
    "sluice diff runs/demo 1 2 --sample 20",
    "sluice diff runs/demo 1 2 --json | jq '.nodes | map_values(.reasons)'",
)
@click.command()
@cli.root_argument
@click.argument("before", metavar="RUN")
@click.argument("after", metavar="RUN")
@click.option("--sample", default=6, show_default=True, type=click.IntRange(min=0), help="Pairs shown of each kind.")
@click.option("--seed", default=0, show_default=True, help="Another seed shows other pairs.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def diff(root: str, before: str, after: str, sample: int, seed: int, as_json: bool) -> None:
    """Compare two runs: what was asked, what each node left, which pairs are kept, which shards have other bytes.

    `sluice status ROOT --runs` lists the runs.
    """
    from pipeline.diff import diff as compare

    found = compare(root, before, after, sample, seed)
    if as_json:
        click.echo(json.dumps({**asdict(found), "same": found.same}, indent=1, default=str))
    else:
        told(cli.out, found)


def told(console: Console, found: Diff) -> None:
    """The differences for people."""
    names = [f"run {run} of {dag}" for run, dag in zip(found.runs, found.dags, strict=True)]
    console.print(Text(" → ".join(names), "bold"), soft_wrap=True)
    if found.same:
        console.print("nothing differs: the same was asked, and every node has the same content")
        return
    if found.seeds[0] != found.seeds[1]:
        console.print(f"seed {found.seeds[0]} → {found.seeds[1]}", highlight=False)
    grid = show.new_grid("node", "", "rows#", "statuses", "parts reused#", "generation#")
    selected = {selection.node: selection for selection in found.selections}
    for name, node in found.nodes.items():
        grid.add_row(name, *_node(node, selected.get(name)))
    console.print(grid)
    for name, node in found.nodes.items():
        for reason in node.reasons:
            console.print(Text(f"{name}  ", "cyan") + show.plain(reason, 400), soft_wrap=True)
    for selection in found.selections:
        _selection(console, selection)
    _shards(console, found.shards)


def _node(node: NodeDiff, selection: SelectionDiff | None) -> tuple[Text | str, ...]:
    if node.before is None or node.after is None:
        state, left = ("new", node.after) if node.before is None else ("gone", node.before)
        assert left is not None
        colour = "green" if state == "new" else "red"
        return Text(state, colour), f"{left.rows:,}", _statuses({}, left.statuses), "", str(left.generation)
    rows = (node.before.rows, node.after.rows)
    statuses = _statuses(node.before.statuses, node.after.statuses)
    if selection is not None:  # its records count rows that were replaced, too
        sides = [
            {"kept": kept, "dropped": pairs - kept} for kept, pairs in zip(selection.kept, selection.pairs, strict=True)
        ]
        rows, statuses = selection.pairs, _statuses(sides[0], sides[1])
    return (
        Text("same", "dim") if node.same else Text("differs", "yellow"),
        _arrow(f"{rows[0]:,}", f"{rows[1]:,}"),
        statuses,
        f"{node.parts_reused:,} of {node.after.parts:,}",
        _arrow(str(node.before.generation), str(node.after.generation)),
    )


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _statuses(before: Mapping[str, int], after: Mapping[str, int]) -> Text:
    """The statuses of which there are more or fewer."""
    deltas = {name: after.get(name, 0) - before.get(name, 0) for name in [*after, *before]}
    return show.plain(", ".join(f"{name} {delta:+,}" for name, delta in deltas.items() if delta), 400)


def _selection(console: Console, selection: SelectionDiff) -> None:
    grid = show.new_grid("rule", "left before#", "left after#", "change#", "condition", title=f"\n{selection.node}")
    for step in selection.steps:
        grid.add_row(*_step(step))
    console.print(grid)
    before, after = selection.kept
    change = Text(f"{after - before:+,}", _colour(after - before))
    pairs = _arrow(f"{selection.pairs[0]:,}", f"{selection.pairs[1]:,}")
    console.print(Text(f"\nkept: {before:,} → {after:,} of {pairs} pairs, ") + change, soft_wrap=True)
    if selection.moves:
        grid = show.new_grid("pairs#", "before", "after", title="\nverdicts that differ")
        for was, now, count in selection.moves[:MOVES_SHOWN]:
            grid.add_row(f"{count:,}", _verdict(was), _verdict(now))
        console.print(grid)
        if len(selection.moves) > MOVES_SHOWN:
            console.print(f"… {len(selection.moves) - MOVES_SHOWN} more; --json has all", style="dim", highlight=False)
    _examples(console, "newly dropped", "by", selection.lost)
    _examples(console, "newly kept", "no longer dropped by", selection.gained)


def _step(step: Step) -> tuple[Text, ...]:
    condition = show.plain(step.now if step.now is not None else step.was)
    if step.was is None or step.now is None:
        condition = Text("new: " if step.was is None else "gone: ", "yellow") + condition
    elif step.was != step.now:
        condition = show.plain(step.was) + Text(" → ", "yellow") + condition
    change = Text()
    if step.before is not None and step.after is not None and step.before.left != step.after.left:
        change = Text(f"{step.after.left - step.before.left:+,}", _colour(step.after.left - step.before.left))
    return Text(step.rule), _left(step.before), _left(step.after), change, condition


def _left(count: Count | None) -> Text:
    return Text("" if count is None else f"{count.left:,}")


def _colour(change: int) -> str:
    return "green" if change > 0 else "red" if change < 0 else ""


def _verdict(rule: str | None) -> Text:
    from pipeline.verdicts import ABSENT

    if rule is None:
        return Text("kept", "green")
    return Text(rule, "dim") if rule == ABSENT else Text.assemble(("dropped by ", "dim"), show.plain(rule))


def _examples(console: Console, title: str, by: str, examples: Iterable[Example]) -> None:
    examples = list(examples)
    if not examples:
        return
    grid = show.new_grid("uid", by, "caption", title=f"\n{title}")
    for example in examples:
        rule = example.after if example.after is not None else example.before
        values = ", ".join(f"{name.partition('.')[2]} {_both(*pair)}" for name, pair in example.values.items())
        grid.add_row(example.uid, show.plain(f"{rule}: {values}" if values else rule), show.plain(example.caption, 80))
    show.lay_out(console, grid)


def _both(before: Any, after: Any) -> str:
    return _arrow(str(show.plain(before, 40)), str(show.plain(after, 40)))


def _shards(console: Console, shards: Iterable[FilesDiff]) -> None:
    grid = show.new_grid("shards", "same bytes#", "added#", "", "removed#", "", title="")
    rows = 0
    for found in shards:
        rows += 1
        added, removed = show.size(found.bytes_added), show.size(found.bytes_removed)
        grid.add_row(found.node, f"{found.same:,}", f"{found.added:,}", added, f"{found.removed:,}", removed)
    if rows:
        console.print(grid)
