"""What differs between two runs: what was asked, what each node left, which pairs are kept, which shards are others.

    found = diff("runs/demo", "0001", "0002")
    found.nodes["kept"].reasons, found.selections[0].moves

What both runs share is not compared again: a part that is one and the same file in both has the same rows in both.
"""

# ruff: noqa: S608 - paths and names are quoted; nothing else is put into the SQL
from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import yaml

from pipeline.errors import SluiceError
from pipeline.explain import Explainer
from pipeline.judge import BATCH_ROWS, first_line, text
from pipeline.pairs import Piece, Table, live
from pipeline.plan import resources_differ, steps_differ
from pipeline.recorded import connect
from pipeline.records import File, Generation, Record
from pipeline.runs import generations_of, run_of
from pipeline.steps import rules_of
from pipeline.store import Store
from pipeline.verdicts import ABSENT, AFTER, BEFORE, Change, Step, Tally, moves, steps, total
from pipeline.views import Schema

MEMORY = "2GB"
"""What DuckDB holds of the pairs of both runs before it spills them."""
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Left:
    """What a run left of a node."""

    generation: int
    rows: int
    """Those that count."""
    statuses: Mapping[str, int]
    content_hash: str
    parts: int


@dataclass(frozen=True)
class NodeDiff:
    """One node in both runs; None where a run does not have it."""

    before: Left | None
    after: Left | None
    reasons: tuple[str, ...]
    """What it was asked to do differently, a line each; what only says where it runs is marked so."""
    parts_reused: int
    """Parts of the later generation that are records of the earlier one, too."""

    @property
    def same(self) -> bool:
        """Whether both runs have the same content."""
        return bool(self.before and self.after and self.before.content_hash == self.after.content_hash)


@dataclass(frozen=True)
class Example:
    """A pair on which two runs differ."""

    uid: str
    caption_id: str
    before: str | None
    after: str | None
    """The rule that dropped it; None for kept."""
    url: str | None
    caption: str | None
    values: Mapping[str, tuple[Any, Any]]
    """What the rule that decides looked at, in the earlier and in the later run."""


@dataclass(frozen=True)
class SelectionDiff:
    """A selection of both runs."""

    node: str
    pairs: tuple[int, int]
    kept: tuple[int, int]
    steps: tuple[Step, ...]
    moves: tuple[tuple[str | None, str | None, int], ...]
    """(verdict before, verdict after, pairs) where they differ."""
    gained: tuple[Example, ...]
    lost: tuple[Example, ...]


@dataclass(frozen=True)
class FilesDiff:
    """The shards of a node, told apart by their sha256."""

    node: str
    same: int
    added: int
    removed: int
    bytes_added: int
    bytes_removed: int
    names_added: tuple[str, ...]
    names_removed: tuple[str, ...]
    """The first few."""


@dataclass(frozen=True)
class Diff:
    """What differs between two runs."""

    runs: tuple[str, str]
    dags: tuple[str, str]
    seeds: tuple[Any, Any]
    nodes: Mapping[str, NodeDiff]
    selections: tuple[SelectionDiff, ...]
    shards: tuple[FilesDiff, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs: neither what was asked nor what came of it."""
        asked = self.dags[0] == self.dags[1] and self.seeds[0] == self.seeds[1]
        return asked and all(node.same and not node.reasons for node in self.nodes.values())


def diff(root: str, before: str, after: str, sample: int = 6, seed: int = 0) -> Diff:
    """Compare two runs by their ids. Raises `SluiceError` for one that is not there, or was collected."""
    store = Store(root)
    runs = (run_of(store, before), run_of(store, after))
    generations = (generations_of(store, runs[0]), generations_of(store, runs[1]))
    texts: tuple[Any, Any] = (yaml.safe_load(runs[0].text) or {}, yaml.safe_load(runs[1].text) or {})
    bodies = tuple(document.get("nodes", {}) for document in texts)
    names = [*generations[1], *(name for name in generations[0] if name not in generations[1])]
    nodes = {
        name: _node(generations[0].get(name), generations[1].get(name), bodies[0].get(name), bodies[1].get(name))
        for name in names
    }
    selections = []
    changed = [name for name in names if rules_of_both(name, generations) and not nodes[name].same]
    if changed:
        explainers = (Explainer(store, runs[0].id), Explainer(store, runs[1].id))
        schemas = (Schema(store, generations[0]), Schema(store, generations[1]))
        selections = [_selection(store, name, schemas, explainers, sample, seed) for name in changed]
    return Diff(
        runs=(runs[0].id, runs[1].id),
        dags=(runs[0].dag, runs[1].dag),
        seeds=(texts[0].get("seed", 0), texts[1].get("seed", 0)),
        nodes=nodes,
        selections=tuple(selections),
        shards=tuple(
            _shards(name, generations) for name in names if _shard_files(name, generations[0], generations[1])
        ),
    )


def rules_of_both(node: str, generations: Sequence[Mapping[str, Generation]]) -> bool:
    """Whether a node is a selection in both runs."""
    return all(node in known and bool(rules_of(known[node])) for known in generations)


# -- nodes -------------------------------------------------------------------------------------------------------------


def _node(before: Generation | None, after: Generation | None, was: Any, now: Any) -> NodeDiff:
    reasons: list[str] = []
    reused = 0
    if before is not None and after is not None:
        reasons = _asked_differently(before, after, was or {}, now or {})
        known = {record.work_key for record in before.records}
        reused = sum(record.work_key in known for record in after.records)
    return NodeDiff(_left(before), _left(after), tuple(reasons), reused)


def _left(generation: Generation | None) -> Left | None:
    if generation is None:
        return None
    statuses = generation.statuses
    return Left(generation.number, sum(statuses.values()), statuses, generation.content_hash, len(generation.records))


def _asked_differently(before: Generation, after: Generation, was: Any, now: Any) -> list[str]:
    old, new = dict(before.identity), dict(after.identity)
    old_rules, new_rules = rules_of(before), rules_of(after)
    reasons = list(_rules_differ(old_rules, new_rules))
    by_rule = bool(old_rules and new_rules)
    reasons += steps_differ(_steps_of(old, by_rule), _steps_of(new, by_rule))
    if old.get("seed") != new.get("seed"):
        reasons.append(f"seed: {old.get('seed')} → {new.get('seed')}")
    reasons += resources_differ(before.resources, after.resources)
    sources = [_listed(body.get("from")) for body in (was, now)]
    if sources[0] != sources[1]:
        reasons.append(f"from: {', '.join(sources[0]) or 'nothing'} → {', '.join(sources[1]) or 'nothing'}")
    for name, content in after.inputs.items():
        if before.inputs.get(name, content) != content:
            reasons.append(f"input {name} has other content")
    if was.get("workers") != now.get("workers"):
        reasons.append(f"workers: {was.get('workers')} → {now.get('workers')} (where it runs, not what is done)")
    return reasons


def _listed(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])


def _steps_of(identity: Mapping[str, Any], by_rule: bool) -> list[Mapping[str, Any]]:
    """The steps, without the parameter that is compared rule by rule."""
    left_out = {"rules"} if by_rule else set()
    return [
        {**step, "parameters": {name: value for name, value in step["parameters"].items() if name not in left_out}}
        for step in identity.get("steps", [])
    ]


def _rules_differ(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    for name in before:
        if name not in after:
            yield f"rule {name} is gone: {before[name]}"
        elif before[name] != after[name]:
            yield f"rule {name}: {before[name]} → {after[name]}"
    for name in after:
        if name not in before:
            yield f"rule {name} is new: {after[name]}"
    both = [name for name in after if name in before]
    if both != [name for name in before if name in after]:
        yield f"rules in another order: {', '.join(both)}"


# -- selections --------------------------------------------------------------------------------------------------------


def _selection(
    store: Store,
    node: str,
    schemas: tuple[Schema, Schema],
    explainers: tuple[Explainer, Explainer],
    sample: int,
    seed: int,
) -> SelectionDiff:
    tables = (schemas[0].tables[node, "caption"], schemas[1].tables[node, "caption"])
    sizes = {piece.path: piece.bytes for table in tables for piece in table.pieces}
    tally = Tally(sample, seed)
    with tempfile.TemporaryDirectory(prefix="sluice-diff-") as folder, connect(store, sizes) as connection:
        try:
            connection.execute(f"SET memory_limit = '{MEMORY}'")
            connection.execute(f"SET temp_directory = {text(folder)}")
            for pairs in _joined(connection, *tables):
                tally.add(pairs)
            shared = _shared(*tables)
            if shared:
                query = f"SELECT dropped_by, count(*) FROM ({live(tables[1], shared)}) GROUP BY ALL"
                for verdict, count in connection.execute(query).fetchall():
                    tally.counts[verdict, verdict] += count
        except duckdb.Error as error:
            raise SluiceError(f"{node}: {first_line(error)}; `sluice verify {store.root}` says what is lost") from None
    rules = [rules_of(explainer.generations[node]) for explainer in explainers]
    counts = tally.counts
    every = sum(counts.values())
    return SelectionDiff(
        node=node,
        pairs=(every - total(counts, 0, ABSENT), every - total(counts, 1, ABSENT)),
        kept=(total(counts, 0, None), total(counts, 1, None)),
        steps=tuple(steps(rules[0], rules[1], counts)),
        moves=moves(counts),
        gained=tuple(_examples(node, tally.gained, explainers)),
        lost=tuple(_examples(node, tally.lost, explainers)),
    )


def _joined(connection: duckdb.DuckDBPyConnection, before: Table, after: Table) -> Iterator[pa.Table]:
    """The pairs of both runs with both verdicts, but for the parts that they share."""
    shared = {piece.path for piece in _shared(before, after)}
    old, new = ([piece for piece in table.pieces if piece.path not in shared] for table in (before, after))
    sides = [_verdicts(before, old), _verdicts(after, new)]
    query = f"""
        SELECT coalesce(a.uid, b.uid) AS uid, coalesce(a.caption_id, b.caption_id) AS caption_id,
               CASE WHEN a.uid IS NULL THEN {text(ABSENT)} ELSE a.dropped_by END AS {BEFORE},
               CASE WHEN b.uid IS NULL THEN {text(ABSENT)} ELSE b.dropped_by END AS {AFTER}
        FROM {sides[0]} AS a FULL JOIN {sides[1]} AS b USING (uid, caption_id)
    """
    for batch in connection.sql(query).to_arrow_reader(BATCH_ROWS):
        yield pa.Table.from_batches([batch])


def _verdicts(table: Table, pieces: Sequence[Piece]) -> str:
    if not pieces:
        return "(SELECT NULL::VARCHAR AS uid, NULL::VARCHAR AS caption_id, NULL::VARCHAR AS dropped_by WHERE false)"
    return f"(SELECT uid, caption_id, dropped_by FROM ({live(table, pieces)}))"


def _shared(before: Table, after: Table) -> list[Piece]:
    """The files of the later table that the earlier one has as well, the same of their rows counting in both."""
    known = {piece.path: _replacing(before, piece) for piece in before.pieces}
    return [piece for piece in after.pieces if known.get(piece.path) == _replacing(after, piece)]


def _replacing(table: Table, piece: Piece) -> frozenset[str]:
    return frozenset(later.path for later in table.pieces if piece.part in later.supersedes)


def _examples(node: str, changes: Sequence[Change], explainers: tuple[Explainer, Explainer]) -> Iterator[Example]:
    uids = sorted({change.uid for change in changes})
    parts = [explainer.lookup.parts(uids) if uids else {} for explainer in explainers]
    for change in changes:
        rule = change.after if change.after is not None else change.before
        seen = [
            explainer.pair(change.uid, found.get(change.uid, frozenset()), change.caption_id)
            for explainer, found in zip(explainers, parts, strict=True)
        ]
        deciding = 1 if change.after is not None else 0
        looked_at = explainers[deciding].looked_at(seen[deciding], node, str(rule), change.caption_id)
        newest = seen[1] if seen[1].values else seen[0]
        yield Example(
            change.uid,
            change.caption_id,
            change.before,
            change.after,
            newest.first("url"),
            newest.first("caption"),
            {name: (seen[0].values.get(name), seen[1].values.get(name)) for name in looked_at},
        )


# -- shards ------------------------------------------------------------------------------------------------------------


def _shard_files(node: str, *generations: Mapping[str, Generation]) -> list[tuple[Record, File]]:
    return [
        (record, file)
        for known in generations
        if node in known
        for record in known[node].records
        for file in record.files
        if file.kind == "shard"
    ]


def _shards(node: str, generations: tuple[Mapping[str, Generation], Mapping[str, Generation]]) -> FilesDiff:
    old, new = (_shard_files(node, known) for known in generations)
    same = Counter(file.sha256 for _, file in old) & Counter(file.sha256 for _, file in new)
    added, removed = _beyond(new, same), _beyond(old, same)
    return FilesDiff(
        node=node,
        same=same.total(),
        added=len(added),
        removed=len(removed),
        bytes_added=sum(file.bytes for file in added),
        bytes_removed=sum(file.bytes for file in removed),
        names_added=tuple(file.path for file in added[:NAMES_SHOWN]),
        names_removed=tuple(file.path for file in removed[:NAMES_SHOWN]),
    )


def _beyond(files: Sequence[tuple[Record, File]], same: Mapping[str, int]) -> list[File]:
    """The files that are more than those with the same bytes."""
    left = Counter(same)
    found = []
    for _, file in files:
        if left[file.sha256]:
            left[file.sha256] -= 1
        else:
            found.append(file)
    return found
