"""`sluice report`: everything that a run says of itself, as one HTML file that needs nothing beside it.

The page is built from kinds of artifacts (pools, selections, columns, edges, shards, statuses), never from stage names.
It may be opened by anyone: captions, URLs and names are other people's text, so that the template escapes everything,
the page's own policy forbids scripts, requests and forms, and pictures are pixels that were encoded anew.
"""

# ruff: noqa: S608 - names are quoted
from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import jinja2
from markupsafe import Markup

from pipeline.catalog import Catalog
from pipeline.judge import name, text
from pipeline.pairs import PAIR_GRAINS, Pool, Table, live
from pipeline.records import Generation, Run
from pipeline.report import charts, words
from pipeline.report.copies import CopiesReport, copies_report
from pipeline.report.nodes import NodeReport, ShardsReport, node_report
from pipeline.report.numbers import DROPPED, PASSED, Ask, Group, Histogram, Number, Source, histograms
from pipeline.report.samples import Sample, Samples
from pipeline.report.selection import KEPT, NOT_KEPT, ROWS, PoolReport, is_number, pool_report
from pipeline.report.sources import SourcesReport, sources_report
from pipeline.report.training import CURVE, METRIC, Training, lines, training
from pipeline.report.web import WebReport, web_report
from pipeline.runs import ancestors, generations_of, run_of
from pipeline.store import Store
from pipeline.views import NOT_OF_A_NODE, Schema

TILES = 8
"""Pictures on each side of a threshold."""
EXAMPLES = 16
"""Pictures of what a rule dropped, and of what was kept."""
SEGMENTS = 8
"""Pieces in which DuckDB reads the tables of a pool side by side."""
MEMORY = "2GB"
"""What DuckDB holds before it spills to disk."""
ERRORS = 20
CLASSES = {KEPT: "kept", NOT_KEPT: "rest", ROWS: "rows", PASSED: "passed", DROPPED: "dropped"}
"""CSS class of each group of rows."""


@dataclass(frozen=True)
class TableReport:
    """The numbers of a table that belongs to no pool, such as edges."""

    node: str
    kind: str
    rows: int
    columns: tuple[Histogram, ...]


@dataclass(frozen=True)
class PoolPart:
    """A pool with the pictures of its rows."""

    report: PoolReport
    web: WebReport | None
    copies: tuple[CopiesReport, ...]
    sources: SourcesReport | None
    samples: Samples


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    root: str
    run: Run
    pools: tuple[PoolPart, ...]
    tables: tuple[TableReport, ...]
    nodes: tuple[NodeReport, ...]
    shards: tuple[ShardsReport, ...]
    training: Training
    errors: tuple[Mapping[str, object], ...]
    all_errors: int


def report(root: str, run: str | None = None) -> str:
    """The page of a run, the newest unless `run` names another. Raises `SluiceError` where there is none."""
    store = Store(root)
    chosen = run_of(store, run)
    with tempfile.TemporaryDirectory(prefix="sluice-report-") as spill, Catalog(root, chosen.id) as catalog:
        catalog.sql(f"SET memory_limit = '{MEMORY}'")
        catalog.sql(f"SET temp_directory = {text(spill)}")
        catalog.sql("SET preserve_insertion_order = false")
        return rendered(gathered(catalog.sql, store, chosen))


def gathered(ask: Ask, store: Store, run: Run) -> Page:
    """Everything that the page shows, counted by DuckDB."""
    generations = generations_of(store, run)
    schema = Schema(store, generations)
    parts = tuple(_pool_part(ask, store, pool, generations) for pool in schema.pools)
    by_node: dict[str, list[tuple[str, int | None, int]]] = {}
    for shard in schema.shards:
        by_node.setdefault(shard.node, []).append((shard.path, shard.samples, shard.bytes))
    said = ask(
        "SELECT node, step, min(error) AS error, count(*) AS rows, sum(count(*)) OVER ()::BIGINT AS all_rows "
        "FROM errors GROUP BY node, step, regexp_replace(error, '[0-9]+', '0', 'g') "
        f"ORDER BY rows DESC, node, error LIMIT {ERRORS}"
    ).to_pylist()
    return Page(
        root=store.root,
        run=run,
        pools=parts,
        tables=tuple(_other_tables(ask, schema, generations)),
        nodes=tuple(node_report(generation) for generation in generations.values()),
        shards=tuple(ShardsReport(node, tuple(found)) for node, found in by_node.items()),
        training=training(ask, schema.tables),
        errors=tuple(said),
        all_errors=said[0]["all_rows"] if said else 0,
    )


def _pool_part(ask: Ask, store: Store, pool: Pool, generations: Mapping[str, Generation]) -> PoolPart:
    found = pool_report(ask, pool, generations, SEGMENTS, TILES, EXAMPLES)
    images = [table for table in (pool.captions, *pool.others) if table.kind == "image"]
    if pool.node != pool.pixels:  # more captions of the same images, of which nothing is said twice
        images = []
    web = next((said for table in images if table.node == pool.node and (said := web_report(ask, table))), None)
    copies = tuple(groups for table in images if (groups := copies_report(ask, table)))
    sources = sources_report(ask, pool, generations, SEGMENTS)
    wanted = [uid for uid, _ in sources.images] if sources is not None else []
    wanted += _wanted(found, web, copies) if found.has_images else []
    return PoolPart(found, web, copies, sources, Samples.load(ask, store, pool, generations[pool.pixels], wanted))


def _wanted(found: PoolReport, web: WebReport | None, copies: Sequence[CopiesReport]) -> Iterator[str]:
    """The uids of all rows that are shown, those first whose pictures matter most."""
    for selection in found.selections:
        yield from (uid for uid, _ in selection.examples)
        for rule in selection.rules:
            for side in (side for chart in rule.charts for side in chart.sides):
                yield from (near.uid for near in (*side.below, *side.above))
            yield from (uid for uid, _ in rule.examples)
    for said in copies:
        yield from (uid for group in said.shown for uid, _ in group.members)
    if web is not None:
        yield from (placeholder.uid for placeholder in web.placeholders)


def _other_tables(ask: Ask, schema: Schema, generations: Mapping[str, Generation]) -> Iterator[TableReport]:
    """Tables that no pool holds: other grains, and where there is no pool, all."""
    in_pools = {id(table) for pool in schema.pools for table in (pool.captions, *pool.others)}
    above = {node for pool in schema.pools for node in ancestors(pool.node, generations)}
    for (node, kind), table in schema.tables.items():
        repeated = kind in PAIR_GRAINS and (id(table) in in_pools or node in above)
        if kind not in (*NOT_OF_A_NODE, CURVE, METRIC) and not repeated:
            yield _table_report(ask, table)


def _table_report(ask: Ask, table: Table) -> TableReport:
    rows = sum(piece.rows for piece in table.pieces)
    columns = [column.name for column in table.columns() if is_number(column.type)]
    numbers = [Number(column, name(column), "true", (Group(ROWS, "true"),)) for column in columns]
    return TableReport(table.node, table.kind, rows, tuple(histograms(ask, Source(live(table), rows), numbers)))


# -- the template ------------------------------------------------------------------------------------------------------


def rendered(page: Page) -> str:
    """The page as HTML. Whatever is not `Markup` is escaped."""
    here = files("pipeline.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: here.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clean": words.clean,
        "inert": words.inert,
        "redacted": words.redacted,
        "count": words.count,
        "short": words.short,
        "value": words.value,
        "size": words.size,
        "duration": words.duration,
    }
    template = environment.get_template("page.html")
    return template.render(
        page=page,
        style=Markup(here.joinpath("style.css").read_text(encoding="utf-8")),  # noqa: S704 - a file of ours
        share=words.share,
        unit_of=words.unit_of,
        histogram=lambda chart, height=120: charts.histogram(chart, CLASSES, words.unit_of(chart.title), height),
        lines=lambda curves, models: lines(curves, {model: place for place, model in enumerate(models)}),
        constant=_constant,
        caption_of=_caption_of,
    )


def _constant(chart: Histogram) -> bool:
    """Whether there is nothing to draw: one value, or none."""
    return chart.axis is None or chart.spread.low == chart.spread.high


def _caption_of(sample: Sample, caption_id: str = "") -> str:
    """The caption of a pair, or the first of an image."""
    return sample.captions.get(caption_id) or next(iter(sample.captions.values()), "")
