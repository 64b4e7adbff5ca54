"""Groups of images that are copies of each other: how large they are, and some to look at.

Any image table with `duplicate_group` says so; `similarity`, where it has it, says how much a member is like its group.
"""

# ruff: noqa: S608 - names are quoted
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.judge import name, text
from pipeline.pairs import Table, live
from pipeline.report.numbers import Ask

GROUP, LIKENESS = "duplicate_group", "similarity"
SHOWN_OF_EACH = 4
"""Groups of each kind that are shown: the largest ones, the least alike, and some at random."""
MEMBERS = 8
"""Members of a group that are shown."""


@dataclass(frozen=True)
class Copies:
    """A group: its size, and some members, the most alike first."""

    why: str
    """Why this group is shown."""
    id: str
    size: int
    members: tuple[tuple[str, float | None], ...]
    """(uid, similarity)."""


@dataclass(frozen=True)
class CopiesReport:
    """What one node says about copies."""

    node: str
    images: int
    in_groups: int
    groups: int
    sizes: Mapping[int, int]
    """Groups by how many members they have, two or more."""
    shown: tuple[Copies, ...]


def copies_report(ask: Ask, table: Table) -> CopiesReport | None:
    """The groups of a table; None where it names none."""
    if table.kind != "image" or GROUP not in table.schema.names:
        return None
    rows, similar = f"({live(table)})", LIKENESS if LIKENESS in table.schema.names else "NULL::FLOAT"
    # Of hashes: 8 bytes a group are held instead of 32 and more.
    counted = f"SELECT hash({GROUP}) AS h, count(*) AS n FROM {rows} GROUP BY h"
    sizes = {
        row["n"]: row["groups"]
        for row in ask(f"SELECT n, count(*) AS groups FROM ({counted}) GROUP BY n ORDER BY n").to_pylist()
    }
    images = sum(size * groups for size, groups in sizes.items())
    sizes.pop(1, None)
    chosen = _chosen(ask, rows, counted, similar) if sizes else []
    members = _members(ask, rows, [id_ for _, id_, _ in chosen], similar)
    shown = tuple(Copies(why, id_, size, tuple(members[id_][:MEMBERS])) for why, id_, size in chosen)
    return CopiesReport(table.node, images, sum(s * g for s, g in sizes.items()), sum(sizes.values()), sizes, shown)


def _chosen(ask: Ask, rows: str, counted: str, similar: str) -> list[tuple[str, str, int]]:
    """(why, group, size) of the groups to show, each once."""
    query = (
        f"SELECT {GROUP} AS id, count(*) AS size, min({similar}) AS least FROM {rows} AS one "
        f"SEMI JOIN (SELECT h FROM ({counted}) WHERE n > 1) AS several ON hash(one.{GROUP}) = several.h GROUP BY id"
    )
    row = ask(
        f"SELECT min({{'by': -size, 'id': id, 'size': size}}, {SHOWN_OF_EACH}) AS large, "
        f"min({{'by': least, 'id': id, 'size': size}}, {2 * SHOWN_OF_EACH}) FILTER (least IS NOT NULL) AS unlike, "
        f"min({{'id': id, 'size': size}}, {3 * SHOWN_OF_EACH}) AS any_ FROM ({query})"
    ).to_pylist()[0]
    found: dict[str, tuple[str, str, int]] = {}
    for why, groups in (("The largest", row["large"]), ("The least alike", row["unlike"]), ("At random", row["any_"])):
        fresh = [group for group in groups or [] if group["id"] not in found]
        found |= {group["id"]: (why, group["id"], group["size"]) for group in fresh[:SHOWN_OF_EACH]}
    return list(found.values())


def _members(ask: Ask, rows: str, groups: Sequence[str], similar: str) -> dict[str, list[tuple[str, float | None]]]:
    if not groups:
        return {}
    listed = ", ".join(text(group) for group in groups)
    member = f"{{'by': -coalesce({similar}, 2), 'uid': uid, 'similarity': {similar}}}"
    found = ask(
        f"SELECT {name(GROUP)} AS id, min({member}, {MEMBERS}) AS members FROM {rows} WHERE {GROUP} IN ({listed}) "
        "GROUP BY id"
    )
    return {row["id"]: [(m["uid"], m["similarity"]) for m in row["members"]] for row in found.to_pylist()}
