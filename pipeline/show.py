"""What the commands print: tables for people."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, BinaryIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.errors import SluiceError, did_you_mean
from pipeline.leases import LEASES
from pipeline.records import ABOUT, Generation
from pipeline.runs import generations_of, run_of
from pipeline.stage import PIXELS
from pipeline.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.catalog import Catalog
    from pipeline.dag import Dag
    from pipeline.driver import Result
    from pipeline.plan import NodePlan
    from pipeline.upkeep import Damage

UID = re.compile(r"[0-9a-f]{32}")
LEAST_WIDTH = 8
"""Characters that a column keeps, however narrow the terminal is."""
COLOURS = {"reuse": "green", "resume": "yellow", "run": "cyan", "wait": "dim"}
BIDI = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], "�")
CONTROL = {code: "�" for code in [*range(32), *range(0x7F, 0xA0)] if code != 10}


def size(count: float) -> str:
    """Bytes as a person reads them: `1.4 MB`."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def plain(value: Any, width: int = 100) -> Text:
    """Untrusted text without the characters that move a terminal or turn the writing direction."""
    if value is None:
        return Text("null", style="dim")
    text = value if isinstance(value, str) else _number(value)
    text = text.translate(BIDI).translate(CONTROL).replace("\n", " ⏎ ")
    return Text(text if len(text) <= width else text[: width - 1] + "…")


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    return json.dumps(value, default=_json, ensure_ascii=False)


def _json(value: object) -> object:
    """What JSON has no type for: HUGEINT and DECIMAL are numbers, dates and the like are text."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


def new_grid(*headers: str, title: str | None = None) -> Table:
    """A table without lines; a header that ends in # has its numbers aligned."""
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold")
    for header in headers:
        grid.add_column(header.rstrip("#"), justify="right" if header.endswith("#") else "left", overflow="fold")
    return grid


def lay_out(console: Console, grid: Table) -> None:
    """Print a table. Its cells fold where the terminal is narrow, but a uid stays whole, to be copied."""
    room = 0
    for column in grid.columns:
        cells = [str(cell) for cell in column.cells]
        column.min_width = max((len(word) for cell in cells for word in cell.split() if UID.search(word)), default=None)
        least = min(max(map(len, cells), default=0), LEAST_WIDTH)
        room += max(column.min_width or 0, least) + grid.padding[1] + grid.padding[3]
    if room > console.width:
        grid.width = room
    console.print(grid, crop=False)


def columns(console: Console, dag: Dag) -> None:
    """What `check` found: every node with its steps and what it gives."""
    grid = new_grid("node", "from", "steps", "gives")
    for name, node in dag.nodes.items():
        steps = " + ".join(type(stage).__name__ for stage in node.stages)
        gives = ", ".join(column.name for column in dag.columns(name) if column.name != PIXELS)
        grid.add_row(name, ", ".join(node.inputs), steps, gives if len(gives) < 120 else gives[:117] + "…")
    console.print(grid)
    console.print(f"{dag.name}: {len(dag.nodes)} nodes, nothing wrong", highlight=False)


def plan(console: Console, plans: dict[str, NodePlan], parts: bool) -> None:
    grid = new_grid("node", "", "parts done#", "of#", "why")
    for name, node in plans.items():
        done = sum(committed for _, committed in node.parts)
        shown = (f"{done:,}", f"{len(node.parts):,}") if node.parts else ("", "")
        grid.add_row(name, Text(node.state, COLOURS[node.state]), *shown, Text("; ".join(node.reasons)))
        if parts:
            for part, committed in node.parts:
                state = "reuse" if committed else "run"
                grid.add_row("", Text(f"  {state}", COLOURS[state]), "", "", part)
    console.print(grid)


def result(console: Console, root: str, dag: Dag, done: Result) -> None:
    """How a run ended, and what to type next."""
    if not done.worked:
        console.print(f"nothing to do: run {done.run.id} of {dag.name} is finished", highlight=False)
    else:
        worked = f"worked on: {', '.join(done.worked)}"
        console.print(f"run {done.run.id} of {dag.name} is finished; {worked}", highlight=False, soft_wrap=True)
    _funnels(console, done.generations)
    _abouts(console, done.generations)
    pools = [name for name in done.generations if any(c.name == "status" for c in dag.columns(name))]
    query = f" 'SELECT status, count(*) AS rows FROM {pools[0]} GROUP BY ALL ORDER BY rows DESC'" if pools else ""  # noqa: S608
    console.print("\nNext:")
    for line in (f"sluice sql {root}{query}", f"sluice status {root}", f"sluice errors {root}"):
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def _funnels(console: Console, generations: dict[str, Generation]) -> None:
    for name, generation in generations.items():
        steps = funnel(generation)
        if not steps:
            continue
        grid = new_grid("rule", "pairs in#", "dropped#", "left#", "", title=f"\n{name}")
        first = max(steps[0][1], 1)
        for rule, before, dropped in steps:
            left = before - dropped
            grid.add_row(rule, f"{before:,}", f"{dropped:,}", f"{left:,}", Text("█" * round(30 * left / first), "cyan"))
        console.print(grid)


def funnel(generation: Generation) -> list[tuple[str, int, int]]:
    """(rule, pairs that met it, pairs that it dropped), in order; empty where the node is no selection."""
    funnels = [record.notes["funnel"] for record in generation.records if record.notes.get("funnel")]
    totals = {step["rule"]: [0, 0] for found in funnels for step in found}
    for found in funnels:
        steps, left = {step["rule"]: step for step in found}, found[0]["rows"]
        for rule, total in totals.items():  # a part of which nothing was taken down has no step for that
            dropped = steps[rule]["dropped"] if rule in steps else 0
            total[0] += left
            total[1] += dropped
            left -= dropped
    return [(rule, before, dropped) for rule, (before, dropped) in totals.items()]


def _abouts(console: Console, generations: dict[str, Generation]) -> None:
    """What a node says of itself as a whole, such as how many cells it cut its rows into."""
    for name, generation in generations.items():
        about = generation.records[0].notes.get(ABOUT, {}) if generation.records else {}
        said = [f"{key.replace('_', ' ')} {v:,}" if isinstance(v, int) else f"{key} {v}" for key, v in about.items()]
        if said:
            console.print(Text(f"\n{name}: ", "bold") + plain(", ".join(said), 400), soft_wrap=True)


def status(console: Console, store: Store) -> None:
    newest = run_of(store)
    generations = generations_of(store, newest)
    grid = new_grid(
        "node", "generation#", "parts#", "rows#", "bytes#", "statuses", title=f"run {newest.id} of {newest.dag}"
    )
    for name, generation in generations.items():
        bytes_ = sum(file.bytes for record in generation.records for file in record.files)
        counts = sorted(generation.statuses.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{key} {count:,}" for key, count in counts[:8]) + (", …" if len(counts) > 8 else "")
        count = sum(generation.statuses.values())
        grid.add_row(name, str(generation.number), f"{len(generation.records):,}", f"{count:,}", size(bytes_), shown)
    console.print(grid)
    _funnels(console, generations)
    _abouts(console, generations)
    failed = {name: len(store.failures(name)) for name in store.nodes()}
    for name, count in failed.items():
        if count:
            console.print(
                f"{name}: {count} parts failed; see `sluice errors {store.root} --node {name}`",
                style="red",
                highlight=False,
            )
    if store.names(LEASES):
        console.print("a run is writing now, or was interrupted; the same `sluice run` resumes it", style="yellow")


def runs(console: Console, store: Store) -> None:
    grid = new_grid("run", "dag", "generations")
    for one in store.runs():
        grid.add_row(one.id, one.dag, ", ".join(f"{name} {number}" for name, number in one.generations.items()))
    console.print(grid)


def errors(console: Console, store: Store, node: str | None, traceback: bool, rows: int) -> None:
    """Failed parts first, then quarantined and refused rows."""
    nodes = store.nodes()
    if node is not None and node not in nodes:
        raise SluiceError(f"{store.root} has no node {node!r}{did_you_mean(node, nodes)}")
    shown = 0
    for name in [node] if node else nodes:
        for failure in store.failures(name):
            failed = Text(f"{name} part {failure['part']} failed: ", "red")
            console.print(failed + plain(failure["error"], 400), soft_wrap=True)
            if traceback and failure["traceback"]:
                console.print(plain_lines(failure["traceback"]))
            shown += 1
    for row in _error_rows(store, node):
        if shown == rows:
            console.print(
                f"… and more; --rows shows them, `sluice sql {store.root} 'FROM errors'` has all", highlight=False
            )
            break
        head = f"{row['node']} part {row['part']} row {row['row']} {row['uid'] or ''}: "
        console.print(Text(head, "yellow") + plain(row["error"], 400), soft_wrap=True)
        if traceback and row["traceback"]:
            console.print(plain_lines(row["traceback"]))
        shown += 1
    if not shown:
        console.print("no errors")


def plain_lines(text: str) -> Text:
    return Text("\n").join(plain(line, 500) for line in text.splitlines())


def _error_rows(store: Store, node: str | None) -> Iterator[dict[str, Any]]:
    newest = next(store.runs(), None)
    generations = generations_of(store, newest) if newest else {}
    for name in [node] if node else store.nodes():
        generation = generations.get(name) or store.newest(name)
        for record in generation.records if generation else ():
            if record.file("errors"):
                for row in store.read_table(record, "errors").to_pylist():
                    yield {"node": name, "part": record.part, **row}


def views(console: Console, catalog: Catalog) -> None:
    """Every view with its columns."""
    grid = new_grid("view", "columns")
    table = catalog.sql(
        "SELECT table_schema AS schema, table_name AS name, "
        "string_agg(column_name, ', ' ORDER BY ordinal_position) AS columns "
        "FROM information_schema.columns GROUP BY ALL ORDER BY ALL"
    )
    for row in table.to_pylist():
        grid.add_row(row["name"], row["columns"])
    console.print(grid)


def table(console: Console, rows: pa.Table, limit: int) -> None:
    """A query's answer; long cells cut, `limit` rows (0: all)."""
    shown = rows.slice(0, limit) if limit else rows
    grid = new_grid(*[f"{field.name}{'#' if _numeric(field.type) else ''}" for field in rows.schema])
    for row in shown.to_pylist():
        grid.add_row(*[plain(value) for value in row.values()])
    lay_out(console, grid)
    if shown.num_rows < rows.num_rows:
        console.print(
            f"… {rows.num_rows - shown.num_rows:,} more rows; --rows 0 shows all", style="dim", highlight=False
        )


def _numeric(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def write(rows: pa.Table, form: str, sink: BinaryIO) -> None:
    """As CSV, as JSON lines, or as Parquet."""
    if form == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(rows, sink)
        return
    text = io.TextIOWrapper(sink, encoding="utf-8", newline="")
    if form == "csv":
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(rows.column_names)
        for row in rows.to_pylist():
            writer.writerow([json.dumps(v, default=_json) if isinstance(v, list | dict) else v for v in row.values()])
    else:
        for row in rows.to_pylist():
            text.write(json.dumps(row, default=_json, ensure_ascii=False) + "\n")
    text.flush()
    text.detach()


def damages(console: Console, root: str, found: Sequence[Damage]) -> None:
    for damage in found:
        console.print(f"{damage.path} {damage.problem}", style="red", highlight=False, soft_wrap=True)
    if found:
        console.print(
            f"{len(found)} damaged; `sluice verify {root} --repair` mends what can be mended", highlight=False
        )
    else:
        console.print("every file is what its record says")


@contextmanager
def bytes_bar(console: Console) -> Iterator[Callable[[int], None]]:
    """A running count of bytes with their rate."""
    from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    with Progress(
        TextColumn("reading"), DownloadColumn(), TransferSpeedColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task("reading", total=None)
        yield lambda count: progress.advance(task, count)
