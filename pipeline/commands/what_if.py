"""`sluice what-if`: other rules, the funnel that they would give, and a sample of what would change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.text import Text

from pipeline import cli, show
from pipeline.errors import SluiceError

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.verdicts import Count, Step
    from pipeline.what_if import Sample, WhatIf

MOVES_SHOWN = 8
BAR = 24
"""Characters of a bar that stands for all pairs."""


@cli.example(
    "sluice what-if runs/demo --node kept --rule aligned='clip_score >= 0.3'",
    "sluice what-if runs/demo --rule large='least(width, height) >= 300' --html changes.html",
    "sluice what-if runs/demo --rule no_faces='faces = 0' --after downloaded --drop slim",
)
@click.command("what-if")
@cli.root_argument
@click.option("--node", help="The selection; may be left out where there is one.")
@click.option("--rule", "rules", multiple=True, metavar="NAME=SQL", help="Another condition, or a new rule.")
@click.option("--drop", multiple=True, metavar="RULE", help="Leave a rule out.")
@click.option("--after", metavar="RULE", help="Where new rules stand; by default last.")
@click.option("--run", "run_id", help="Ask an older run, such as 0003.")
@click.option("--sample", default=6, show_default=True, type=click.IntRange(min=0), help="Pairs shown of each kind.")
@click.option("--seed", default=0, show_default=True, help="Another seed shows other pairs.")
@click.option("--html", type=click.Path(dir_okay=False), help="Write the sample with its images as a page.")
@click.option("--grid", type=click.Path(dir_okay=False), help="Write the sample with its images as a PNG.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def what_if(
    root: str,
    node: str | None,
    rules: Sequence[str],
    drop: Sequence[str],
    after: str | None,
    run_id: str | None,
    sample: int,
    seed: int,
    html: str | None,
    grid: str | None,
    as_json: bool,
) -> None:
    """Show what other rules would keep, beside what is kept now. Nothing is written to ROOT and no image is copied.

    A rule that the selection has is replaced in its place, a new one stands last or after --after. The condition is
    SQL over the columns that the selection takes from: `column`, or `node.column`.
    """
    from pipeline.store import Store
    from pipeline.what_if import what_if as judge

    if not rules and not drop:
        raise SluiceError("nothing to try; give --rule NAME=SQL or --drop RULE")
    found = judge(root, dict(map(_named, rules)), node, drop, after, run_id, sample, seed)
    if html is not None or grid is not None:
        from pipeline.contact_sheet import draw_png, write_html

        if html is not None:
            write_html(Store(root), found, html)
        if grid is not None:
            draw_png(Store(root), found, grid)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1, default=str))
        return
    told(cli.out, found)
    for path in (html, grid):
        if path is not None:
            cli.err.print(f"{len(found.gained) + len(found.lost)} pairs in {path}", highlight=False, soft_wrap=True)


def _named(rule: str) -> tuple[str, str]:
    name, equals, sql = rule.partition("=")
    if not equals or not name.strip().isidentifier():
        raise SluiceError(f"--rule {rule!r}: write it as NAME=SQL, such as aligned='clip_score >= 0.3'")
    return name.strip(), sql


def told(console: Console, found: WhatIf) -> None:
    """Both funnels, what moves, and the sample, for people."""
    console.print(Text.assemble((found.node, "bold"), f" of run {found.run}, {found.pairs:,} pairs"), soft_wrap=True)
    grid = show.new_grid("rule", "left now#", "left then#", "change#", "", "condition")
    for step in found.steps:
        grid.add_row(*_step(step, found.pairs))
    console.print(grid)
    change = Text(f"{found.would_keep - found.kept:+,}", _colour(found.would_keep - found.kept))
    kept = f"kept: {found.kept:,} ({_share(found.kept, found.pairs)}) now, "
    then = f"{found.would_keep:,} ({_share(found.would_keep, found.pairs)}) then, "
    console.print(Text("\n" + kept + then) + change, soft_wrap=True)
    _moves(console, found)
    _samples(console, "would be dropped", "by", found.lost)
    _samples(console, "would be kept", "no longer dropped by", found.gained)
    if found.nodes_to_add:
        console.print(
            f"\nto run it, add {', '.join(found.nodes_to_add)} to `from` of {found.node}",
            style="yellow",
            soft_wrap=True,
        )


def _step(step: Step, pairs: int) -> tuple[Text, ...]:
    style = "" if step.was == step.now else "yellow"
    condition = Text("gone", "dim") if step.now is None else show.plain(step.now)
    if step.was is not None and step.now is not None and step.was != step.now:
        condition = show.plain(step.was) + Text(" → ", "yellow") + show.plain(step.now)
    change = Text()
    if step.before is not None and step.after is not None and step.after.left != step.before.left:
        change = Text(f"{step.after.left - step.before.left:+,}", _colour(step.after.left - step.before.left))
    return Text(step.rule, style), _left(step.before), _left(step.after), change, _bar(step, pairs), condition


def _left(count: Count | None) -> Text:
    return Text("" if count is None else f"{count.left:,}")


def _bar(step: Step, pairs: int) -> Text:
    """What is left then; in grey what there is less of now, or more."""
    then = step.after.left if step.after is not None else 0
    now = step.before.left if step.before is not None else then
    if step.after is None:
        return Text("")
    full, wide = (round(BAR * count / max(pairs, 1)) for count in (then, max(now, then)))
    return Text.assemble(("█" * full, "cyan"), ("░" * (wide - full), "dim"))


def _colour(change: int) -> str:
    return "green" if change > 0 else "red" if change < 0 else ""


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _moves(console: Console, found: WhatIf) -> None:
    if not found.moves:
        console.print("no pair's verdict changes")
        return
    grid = show.new_grid("pairs#", "now", "then", title="\nverdicts that change")
    for was, now, count in found.moves[:MOVES_SHOWN]:
        grid.add_row(f"{count:,}", _verdict(was), _verdict(now))
    console.print(grid)
    if len(found.moves) > MOVES_SHOWN:
        console.print(f"… {len(found.moves) - MOVES_SHOWN} more; --json has all", style="dim", highlight=False)


def _verdict(rule: str | None) -> Text:
    return Text("kept", "green") if rule is None else Text.assemble(("dropped by ", "dim"), show.plain(rule))


def _samples(console: Console, title: str, by: str, samples: Sequence[Sample]) -> None:
    if not samples:
        return
    from pipeline.what_if import reason

    grid = show.new_grid("uid", by, "caption", title=f"\n{title}")
    for sample in samples:
        grid.add_row(sample.uid, show.plain(reason(sample)), show.plain(sample.caption, 80))
    show.lay_out(console, grid)
