"""How well a run curated a small web: what it kept and dropped, against what was planted.

    python -m infra.miniweb.grade demo/key/key.parquet demo/root [--write grades.json]

Pairs are matched by address and caption. A pair is redundant when it is a copy, or the source of one, and another image
of the same picture is kept: any one of them may stay, but no second. So a copy that is kept alone is no fault, and a
source that was dropped for its copy is no loss.
"""

# ruff: noqa: S608 - nothing but constants is put into the SQL
import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from infra.miniweb.kinds import FACTS, Kind
from pipeline import Catalog, SluiceError

STANDS_IN = "kept for its source"
"""Why a copy is no harm although it is there."""
NOT_IN_THE_RUN = "not in the run"
"""Why a pair is gone that no pool has, for want of an address."""
WRITERS = (".json", ".csv", ".parquet")
REASONS_SHOWN = 3


@dataclass(frozen=True)
class KindGrade:
    """What became of one kind of pages; for look-alikes and mismatches also by what was changed."""

    kind: str
    changed: str | None
    damaged: bool
    planted: int
    kept: int
    """Of them, those that are still there; of copies, those that are one too many; of clean pages, also those that left
    for a copy."""
    removed: float
    """Recall for damage; for sound pages, the share that was lost."""
    reasons: dict[str, int]
    """By what the others were dropped: the status where the download failed, else the rule."""
    ended: float
    """The share whose status is one that the key expects."""


@dataclass(frozen=True)
class RuleGrade:
    """What one rule dropped."""

    rule: str
    dropped: int
    damaged: int
    precision: float


@dataclass(frozen=True)
class Grade:
    """A run against its key."""

    kinds: tuple[KindGrade, ...]
    rules: tuple[RuleGrade, ...]
    pairs: int
    """Rows of the key."""
    damaged: int
    caught: int
    sound: int
    lost: int
    """Sound pairs that are gone, but for those of which a copy stayed."""
    kept: int
    look_alikes_lost: int
    leaks_left: int
    strangers: int
    """Kept pairs that the key does not know, such as captions that a model wrote."""

    @property
    def recall(self) -> float:
        """Of the damaged pairs, the share that is gone."""
        return _share(self.caught, self.damaged)

    @property
    def precision(self) -> float:
        """Of what is gone, the share that was damaged."""
        return _share(self.caught, self.caught + self.lost)

    @property
    def purity(self) -> float:
        """Of the kept pairs that the key knows, the share that is sound."""
        return _share(self.kept - (self.damaged - self.caught), self.kept)


def grade(key: pa.Table, root: str, run: str | None = None, selection: str | None = None) -> Grade:
    """Compare a run of the store `root`, the newest unless named, with the key of its web.

    `selection` names the node that decided, where there are several. Raises `SluiceError` where there is none.
    """
    return judged(key, pairs_of(root, run, selection))


def pairs_of(root: str, run: str | None = None, selection: str | None = None) -> pa.Table:
    """url, caption, status, kept, dropped_by of every pair of a run."""
    with Catalog(root, run) as catalog:
        columns = catalog.sql("SELECT * FROM samples LIMIT 0").column_names
        found = [name for name in columns if name.endswith("dropped_by")]
        wanted = f"{selection}_dropped_by" if f"{selection}_dropped_by" in columns else "dropped_by"
        if wanted not in columns:
            raise SluiceError(
                f"run {catalog.run.id} of {root} has no column {wanted!r}; "
                + (f"name the selection of one of {', '.join(found)}" if found else "it selects nothing")
            )
        kept = wanted.removesuffix("dropped_by") + "kept"
        status = "status" if "status" in columns else "NULL"
        query = f'SELECT url, caption, {status} AS status, "{kept}" AS kept, "{wanted}" AS dropped_by FROM samples'
        return catalog.sql(query)


def judged(key: pa.Table, pairs: pa.Table) -> Grade:
    """The grade of pairs (`pairs_of`) by a key (`table.KEY_SCHEMA`)."""
    connection = duckdb.connect()
    connection.register("key", key.select(JUDGED_BY))
    connection.register("pairs", pairs)
    connection.execute(JUDGED)
    kinds = tuple(_kinds(connection))
    rules = [RuleGrade(*row) for row in connection.execute(RULES).fetchall()]
    pairs_, damaged, caught, sound, lost, kept = connection.execute(TOTALS).fetchone() or (0,) * 6
    strangers = connection.execute(STRANGERS).fetchone()
    alike = [found for found in kinds if found.kind == Kind.LOOK_ALIKE]
    leaks = [found for found in kinds if found.kind in (Kind.EXACT_LEAK, Kind.ALTERED_LEAK)]
    return Grade(
        kinds,
        tuple(rules),
        pairs_,
        damaged,
        caught,
        sound,
        lost,
        kept,
        look_alikes_lost=sum(found.planted - found.kept for found in alike),
        leaks_left=sum(found.kept for found in leaks),
        strangers=strangers[0] if strangers else 0,
    )


JUDGED_BY = ["page_id", "url", "caption", "kind", "damaged", "ends", "source", "changed"]
COPIES = ", ".join(f"'{kind}'" for kind, facts in FACTS.items() if facts.family == "copy")

JUDGED = f"""
CREATE TABLE judged AS
WITH ours AS (
    SELECT *, url IS NOT NULL AND url <> '' AS addressed,
           coalesce(CASE WHEN kind IN ({COPIES}) THEN source END, page_id) AS picture
    FROM key
),
found AS (  -- an address with one caption twice is one pair
    SELECT url, caption, any_value(status) AS status, bool_or(kept) AS kept, any_value(dropped_by) AS dropped_by
    FROM pairs GROUP BY url, caption
),
met AS (
    SELECT ours.*, found.status, coalesce(found.kept, false) AS kept,
           CASE WHEN found.url IS NULL THEN '{NOT_IN_THE_RUN}' ELSE found.dropped_by END AS rule,
           kind IN ({COPIES}) AS copy
    FROM ours LEFT JOIN found ON addressed AND ours.url = found.url AND ours.caption = found.caption
),
stays AS (  -- of every picture, the source if it is kept, else the first of its copies
    SELECT picture, arg_min(page_id, (copy, page_id)) AS representative FROM met
    WHERE kept AND (copy OR kind = '{Kind.CLEAN}') GROUP BY picture
)
SELECT met.*,
       -- a copy does harm beside another; alone it stands for its source
       CASE WHEN copy THEN kept AND page_id <> representative
            WHEN kind = '{Kind.CLEAN}' THEN representative IS NOT NULL ELSE kept END AS counted,
       damaged OR (kind = '{Kind.CLEAN}' AND NOT kept AND representative IS NOT NULL) AS rightly,
       CASE WHEN copy AND page_id = representative THEN '{STANDS_IN}'
            WHEN rule <> '{NOT_IN_THE_RUN}' AND status <> 'success' THEN status ELSE rule END AS reason
FROM met LEFT JOIN stays USING (picture)
"""

KINDS = """
SELECT kind, CASE WHEN kind IN ('mismatch', 'look_alike') THEN changed END AS detail, any_value(damaged),
       count(*), count_if(counted),
       avg(CASE WHEN len(ends) = 0 THEN (status IS NULL)::INT
                ELSE coalesce(list_contains(ends, status), false)::INT END)
FROM judged GROUP BY ALL ORDER BY detail
"""
REASONS = """
SELECT kind, CASE WHEN kind IN ('mismatch', 'look_alike') THEN changed END AS detail, reason, count(*)
FROM judged WHERE NOT counted GROUP BY ALL ORDER BY count(*) DESC, reason
"""
RULES = """
SELECT rule, count(*), count_if(rightly), avg(rightly::INT) FROM judged
WHERE NOT kept AND rule IS NOT NULL GROUP BY rule ORDER BY count(*) DESC, rule
"""
TOTALS = """
SELECT count(*), count_if(damaged), count_if(damaged AND NOT counted), count_if(NOT damaged),
       count_if(NOT damaged AND NOT kept AND NOT rightly), count_if(kept)
FROM judged
"""
STRANGERS = """
SELECT count(*) FROM (SELECT url, caption FROM pairs WHERE kept) ANTI JOIN key USING (url, caption)
"""


def _kinds(connection: duckdb.DuckDBPyConnection) -> Iterator[KindGrade]:
    """In the order of the kinds."""
    reasons: dict[tuple[str, str | None], dict[str, int]] = {}
    for kind, detail, reason, count in connection.execute(REASONS).fetchall():
        reasons.setdefault((kind, detail), {})[reason] = count
    rows = connection.execute(KINDS).fetchall()
    order = list(Kind)
    for kind, detail, damaged, planted, kept, ended in sorted(rows, key=lambda row: order.index(Kind(row[0]))):
        why = reasons.get((kind, detail), {})
        yield KindGrade(kind, detail, damaged, planted, kept, _share(planted - kept, planted), why, ended)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


# -- how it is shown ---------------------------------------------------------------------------------------------------


def show(found: Grade, console: Console) -> None:
    """Two tables and the sum of them."""
    console.print(_kind_table(found, damaged=True), _kind_table(found, damaged=False), _rule_table(found), sep="\n")
    console.print(
        f"{found.caught:,} of {found.damaged:,} damaged pairs are gone (recall {found.recall:.1%}), with "
        f"{found.lost:,} of {found.sound:,} sound ones (precision {found.precision:.1%}); of the {found.kept:,} kept "
        f"pairs {found.purity:.1%} are sound. Look-alikes lost: {found.look_alikes_lost}. "
        f"Leaks of the evaluation set left: {found.leaks_left}."
        + (f" Kept pairs that the key does not know: {found.strangers:,}." if found.strangers else ""),
        highlight=False,
    )


def _kind_table(found: Grade, damaged: bool) -> Table:
    table = Table(title="planted damage" if damaged else "sound pages", title_justify="left", box=None)
    table.add_column("kind")
    for name in ("planted", "still kept" if damaged else "kept", "removed" if damaged else "lost"):
        table.add_column(name, justify="right")
    table.add_column("by")
    for kind in (kind for kind in found.kinds if kind.damaged is damaged):
        shown = kind.kind if kind.changed is None else f"{kind.kind}: {kind.changed}"
        by = ", ".join(f"{reason} {count}" for reason, count in list(kind.reasons.items())[:REASONS_SHOWN])
        more = len(kind.reasons) - REASONS_SHOWN
        table.add_row(
            shown, f"{kind.planted:,}", f"{kind.kept:,}", f"{kind.removed:.0%}", by + (f", {more} more" * (more > 0))
        )
    return table


def _rule_table(found: Grade) -> Table:
    table = Table(title="what the rules dropped", title_justify="left", box=None)
    table.add_column("rule")
    for name in ("dropped", "damaged", "precision"):
        table.add_column(name, justify="right")
    for rule in found.rules:
        table.add_row(rule.rule, f"{rule.dropped:,}", f"{rule.damaged:,}", f"{rule.precision:.1%}")
    return table


def write(found: Grade, path: Path) -> None:
    """The whole grade as JSON, or its kinds as CSV or Parquet. Raises `SluiceError` for another ending."""
    rows: list[dict[str, Any]] = [asdict(kind) for kind in found.kinds]
    match path.suffix:
        case ".json":
            sums = {"recall": found.recall, "precision": found.precision, "purity": found.purity}
            path.write_text(json.dumps({**asdict(found), **sums}, indent=2) + "\n")
        case ".csv" | ".parquet":
            flat = pa.Table.from_pylist([{**row, "reasons": json.dumps(row["reasons"])} for row in rows])
            pa.csv.write_csv(flat, path) if path.suffix == ".csv" else pq.write_table(flat, path)
        case _:
            raise SluiceError(f"cannot write grades to {path}; expected a name that ends in {', '.join(WRITERS)}")


def main(arguments: Sequence[str]) -> int:
    """Print the grade of a run; 2 where there is nothing to grade."""
    parser = argparse.ArgumentParser(prog="python -m infra.miniweb.grade", description=__doc__.split("\n")[0])
    parser.add_argument("key", metavar="KEY", type=Path, help="the answer key of the web, key.parquet")
    parser.add_argument("root", metavar="RUN_ROOT", help="where the run's nodes are")
    parser.add_argument("--run", help="an older run than the newest")
    parser.add_argument("--selection", help="the node that decided, where there are several")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"also to a file that ends in {', '.join(WRITERS)}")
    options = parser.parse_args(arguments)
    try:
        try:
            key = pq.read_table(options.key)
        except (OSError, pa.ArrowInvalid) as error:
            why = str(error).splitlines()[0]
            raise SluiceError(
                f"cannot read the key {options.key} ({why}); it is what `python -m infra.miniweb … --key FILE` wrote"
            ) from None
        found = grade(key, options.root, options.run, options.selection)
        show(found, Console(width=None if sys.stdout.isatty() else 120))
        if options.write is not None:
            write(found, options.write)
    except SluiceError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
