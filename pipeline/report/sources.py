"""Images with captions of several sources, such as the web's and a model's: what each scored, and which were kept."""

# ruff: noqa: S608 - names are quoted
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import SluiceError
from pipeline.judge import text
from pipeline.pairs import Pool
from pipeline.records import Generation
from pipeline.report.numbers import Ask
from pipeline.rules import Rules
from pipeline.steps import rules_of

SHOWN = 24
"""Images."""
MOST = 8
"""Captions of an image."""


@dataclass(frozen=True)
class Told:
    """One caption of an image."""

    text: str
    source: str
    scores: tuple[tuple[str, float | None], ...]
    """What the rules ask of it, by column."""
    kept: bool | None
    dropped_by: str


@dataclass(frozen=True)
class SourcesReport:
    """The captions of a pool by who wrote them, as one selection judged them."""

    selection: str
    counts: tuple[tuple[str, int, int], ...]
    """(source, captions of images that are there, of them kept), the most frequent first."""
    images: tuple[tuple[str, tuple[Told, ...]], ...]
    """uid and captions: half of the images have captions of both fates."""


def sources_report(ask: Ask, pool: Pool, generations: Mapping[str, Generation], segments: int) -> SourcesReport | None:
    """None where all captions are of one source, or nothing selects among them.

    Of several selections the one with the most rules is shown.
    """
    columns = pool.columns()
    selections = [node for node in generations if {(node, "kept"), (node, "dropped_by")} <= columns.keys()]
    if not pool.captions.tells_captions or not selections:
        return None
    chosen = max(selections, key=lambda node: len(rules_of(generations[node])))
    scores = _scores(generations[chosen], pool)
    wanted = {(pool.node, "caption"): "caption", (pool.node, "source"): "source"}
    wanted |= {(chosen, "kept"): "kept", (chosen, "dropped_by"): "dropped_by"}
    wanted |= {key: f"score{place}" for place, key in enumerate(scores)}
    if (pool.pixels, "offset") not in columns:
        return None
    wanted[pool.pixels, "offset"] = "place"
    rows = f"SELECT * FROM ({pool.pairs(wanted, segments)}) WHERE place IS NOT NULL"
    counts = ask(
        f"SELECT source, count(*) AS pairs, count_if(kept) AS kept FROM ({rows}) "
        "WHERE source IS NOT NULL GROUP BY source ORDER BY pairs DESC, source"
    ).to_pylist()
    if len(counts) < 2:
        return None
    uids = ask(
        # uids are hashes, so that the smallest are a fair sample
        f"WITH images AS (SELECT uid, bool_or(kept) AND NOT bool_and(kept) AS mixed FROM ({rows}) GROUP BY uid "
        "HAVING count(DISTINCT source) > 1), "
        "ranked AS (SELECT uid, row_number() OVER (PARTITION BY mixed ORDER BY uid) AS place FROM images) "
        f"SELECT uid FROM ranked ORDER BY place, uid LIMIT {SHOWN}"
    ).column("uid")
    listed = ", ".join(text(uid) for uid in uids.to_pylist()) or "''"
    found: dict[str, list[dict[str, Any]]] = {}
    for row in ask(
        f"SELECT * FROM ({rows}) WHERE uid IN ({listed}) ORDER BY uid, source <> 'web', caption_id"
    ).to_pylist():
        found.setdefault(row["uid"], []).append(row)
    return SourcesReport(
        chosen,
        tuple((row["source"], row["pairs"], row["kept"]) for row in counts),
        tuple((uid, tuple(_told(row, scores) for row in own[:MOST])) for uid, own in found.items()),
    )


def _scores(generation: Generation, pool: Pool) -> list[tuple[str, str]]:
    """The numbers of captions that a selection's rules ask for, by node and name."""
    try:
        needed = Rules(rules_of(generation)).needs()
    except SluiceError:
        return []
    return [
        key
        for key, column in pool.columns().items()
        if column.grain == "caption" and pa.types.is_floating(column.type) and {key[1], ".".join(key)} & needed
    ]


def _told(row: Mapping[str, Any], scores: Sequence[tuple[str, str]]) -> Told:
    values = tuple((column, row[f"score{place}"]) for place, (_, column) in enumerate(scores))
    return Told(row["caption"] or "", row["source"] or "", values, row["kept"], row["dropped_by"] or "")
