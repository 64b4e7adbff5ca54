"""The funnel as other rules would have it, beside the funnel as it is, before a byte is copied.

    found = what_if("runs/demo", {"aligned": "clip_score >= 0.3"}, node="kept")
    found.kept, found.would_keep

Every pair is judged again over the tables as they are, in a stream: only the survivors of the rules before the first
window are held, and those out of core. Rules may come from elsewhere: they are screened, and judged in a locked DuckDB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.catalog import Catalog
from pipeline.errors import SluiceError, did_you_mean
from pipeline.explain import Explainer, Place
from pipeline.judge import KEPT
from pipeline.pairs import KEY_NAMES
from pipeline.rules import Rules
from pipeline.runs import in_another
from pipeline.show import plain
from pipeline.stage import Column
from pipeline.steps import rules_of
from pipeline.store import Store
from pipeline.verdicts import AFTER, BEFORE, Change, Step, Tally, moves, named, steps, total
from pipeline.views import Schema

MEMORY = "2GB"
"""What DuckDB holds of the survivors before it spills them."""


@dataclass(frozen=True)
class Sample:
    """A pair on which the verdicts differ."""

    uid: str
    caption_id: str
    before: str | None
    after: str | None
    """The rule that dropped it, that would drop it; None for kept."""
    url: str | None
    caption: str | None
    values: Mapping[str, Any]
    """What the rule that decides looked at."""
    image: Place | None
    sha256: str | None
    """Of the image's bytes in the pool."""


@dataclass(frozen=True)
class WhatIf:
    """Both funnels, and what differs between them."""

    node: str
    run: str
    pairs: int
    kept: int
    would_keep: int
    steps: tuple[Step, ...]
    """The rules as they would be, then those that would be gone."""
    moves: tuple[tuple[str | None, str | None, int], ...]
    """(rule before, rule after, pairs) where the verdicts differ, the most frequent first; None for kept."""
    gained: tuple[Sample, ...]
    lost: tuple[Sample, ...]
    nodes_to_add: tuple[str, ...]
    """Nodes that the rules read and the selection does not take from yet."""


def what_if(
    root: str,
    rules: Mapping[str, str],
    node: str | None = None,
    drop: Sequence[str] = (),
    after: str | None = None,
    run: str | None = None,
    sample: int = 12,
    seed: int = 0,
) -> WhatIf:
    """Lay `rules` (name -> SQL) over those of a selection: a known name in its place, a new one last or `after` one.

    `node` may be left out where a run has one selection. Raises `SluiceError` for a rule that cannot be.
    """
    with Catalog(root, run) as catalog:
        store = Store(root)
        chosen = _selection(store, catalog, node)
        explainer = Explainer(store, catalog.run.id)
        before = rules_of(explainer.generations[chosen])
        changed = edited(before, rules, drop, after)
        inputs = list(explainer.generations[chosen].inputs)
        columns = _columns(catalog.columns_beside(chosen), inputs, chosen)
        tally = _judge(catalog, chosen, Rules(_as_list(changed)), columns, sample, seed)
    reads = {rule: _reads(rule, sql, columns) for rule, sql in {**before, **changed}.items()}
    read_nodes = {column.partition(".")[0] for rule in changed for column in _reads(rule, changed[rule], columns)}
    return WhatIf(
        node=chosen,
        run=explainer.run.id,
        pairs=sum(tally.counts.values()),
        kept=total(tally.counts, 0, None),
        would_keep=total(tally.counts, 1, None),
        steps=tuple(steps(before, changed, tally.counts)),
        moves=moves(tally.counts),
        gained=tuple(_samples(explainer, tally.gained, reads)),
        lost=tuple(_samples(explainer, tally.lost, reads)),
        nodes_to_add=tuple(sorted(read_nodes - set(inputs))),
    )


def reason(sample: Sample) -> str:
    """The rule that decides on a sampled pair, and the values that it looked at."""
    rule = sample.after if sample.after is not None else sample.before
    values = ", ".join(f"{name.partition('.')[2]} {plain(value, 40)}" for name, value in sample.values.items())
    return f"{rule}: {values}" if values else str(rule)


def edited(
    before: Mapping[str, str], rules: Mapping[str, str], drop: Sequence[str] = (), after: str | None = None
) -> dict[str, str]:
    """The rules with the new ones laid over them. Raises `SluiceError` for a name that none of them has."""
    for name in drop:
        if name not in before:
            raise SluiceError(f"--drop {name}: the selection has no such rule{did_you_mean(name, before)}")
    if after is not None and (after not in before or after in drop):
        raise SluiceError(
            f"--after {after}: the selection has no such rule{did_you_mean(after, set(before) - set(drop))}"
        )
    fresh = {name: sql for name, sql in rules.items() if name not in before}
    found: dict[str, str] = {}
    for name, sql in before.items():
        if name not in drop:
            found[name] = rules.get(name, sql)
        if name == after:
            found |= fresh
    return found | fresh


def _as_list(rules: Mapping[str, str]) -> list[dict[str, str]]:
    return [{name: sql} for name, sql in rules.items()]


def _selection(store: Store, catalog: Catalog, node: str | None) -> str:
    known, run = catalog.selections(), catalog.run
    if node is None and len(known) == 1:
        return known[0]
    if node is None and known:
        raise SluiceError(f"run {run.id} has {len(known)} selections ({', '.join(known)}); name one with --node")
    if node is None:
        other = in_another(store, run, None, lambda theirs: Schema(store, theirs).selections())
        raise SluiceError(f"run {run.id} has no selection{other or '; add a node with stages.select.Select'}")
    if node not in known:
        other = in_another(store, run, node, lambda theirs: Schema(store, theirs).selections())
        raise SluiceError(f"--node {node}: run {run.id} has no such selection{other or did_you_mean(node, known)}")
    return node


def _columns(beside: Sequence[Column], inputs: Sequence[str], node: str) -> list[Column]:
    """What rules may read: what the selection's own rules do, and of other nodes what has a name of its own."""
    taken = {column.name for column in beside if column.node in inputs}
    own = [column for column in beside if column.node in inputs]
    return own + [c for c in beside if c.node not in inputs and c.node != node and c.name not in taken]


def _reads(rule: str, sql: str, columns: Sequence[Column]) -> list[str]:
    try:
        bound = Rules([{rule: sql}]).bind(columns)
    except SluiceError:  # a rule of an older DAG, over columns that are gone
        return []
    return [column for column in bound.reads() if column not in KEY_NAMES]


def _judge(catalog: Catalog, node: str, rules: Rules, columns: Sequence[Column], sample: int, seed: int) -> Tally:
    """Both verdicts on every pair."""
    bound = rules.check(columns)
    shown = {(node, "dropped_by"): BEFORE}
    for column in bound.reads():
        if column not in KEY_NAMES:
            owner, _, name = column.partition(".")
            shown[owner, name] = column
    pairs = catalog.judged_pairs(node, shown)
    tally = Tally(sample, seed)
    leading, rest = rules.split()
    if not rest.names:
        for table in pairs:
            tally.add(_judged(table, bound.judge_one_by_one(table), rules))
        return tally
    first = leading.bind(columns)

    def survivors() -> Iterator[pa.Table]:
        for table in pairs:
            codes = first.judge_one_by_one(table) if leading.names else np.full(table.num_rows, KEPT, np.int16)
            alive = codes == KEPT
            tally.add(_judged(table.filter(pa.array(~alive)), codes[~alive], leading))
            yield table.filter(pa.array(alive))

    later = rest.bind(columns)
    for table in later.judge_carrying(survivors(), pa.schema([(BEFORE, pa.string())]), MEMORY):
        tally.add(_judged(table, np.asarray(table.column("code"), dtype=np.int16), rest))
    return tally


def _judged(pairs: pa.Table, codes: np.ndarray, rules: Rules) -> pa.Table:
    return pairs.select([*KEY_NAMES, BEFORE]).append_column(AFTER, named(codes, rules.names))


def _samples(explainer: Explainer, changes: Sequence[Change], reads: Mapping[str, Sequence[str]]) -> Iterator[Sample]:
    """The changed pairs with what there is to see of them."""
    parts = explainer.lookup.parts(sorted({change.uid for change in changes})) if changes else {}
    for change in changes:
        seen = explainer.pair(change.uid, parts[change.uid], change.caption_id)
        decides = change.after if change.after is not None else change.before
        values = {column: seen.values.get(column) for column in reads.get(str(decides), ())}
        yield Sample(
            change.uid,
            change.caption_id,
            change.before,
            change.after,
            seen.first("url"),
            seen.first("caption"),
            values,
            seen.image,
            seen.first("stored_sha256"),
        )
