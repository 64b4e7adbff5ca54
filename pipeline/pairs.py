"""How the Parquet files of a run become tables, and the tables of a pool become pairs, as SQL.

Nothing here opens a file. Records say which files there are, how many rows each has, and whose rows no longer count.
"""

# ruff: noqa: S608 - paths and names are quoted; nothing else is put into the SQL
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.judge import name, text
from pipeline.records import Generation
from pipeline.runs import ancestors
from pipeline.stage import CAPTIONS, KEYS, TOLD, Column

KEY_NAMES = tuple(KEYS["caption"].names)
PAIR_GRAINS = ("image", "caption")


@dataclass(frozen=True)
class Piece:
    """One Parquet file of a table."""

    part: str
    path: str
    bytes: int
    rows: int
    supersedes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Table:
    """The files of one kind of one node, in order of their parts."""

    node: str
    kind: str
    pieces: tuple[Piece, ...]
    schema: pa.Schema
    """All columns of all files."""
    examples: tuple[str, ...] = ()
    """One file of every increment, where their columns differ: later input may have brought columns of its own."""

    def rows(self) -> dict[str, int]:
        return {piece.part: piece.rows for piece in self.pieces}

    @property
    def tells_captions(self) -> bool:
        """Whether it says which captions there are."""
        return self.kind == "caption" and set(self.schema.names) >= TOLD

    @property
    def counts_captions(self) -> bool:
        """Whether a column says how many captions each image has."""
        found = [field for field in self.schema if field.name == CAPTIONS.name]
        return bool(found) and found[0].equals(CAPTIONS, check_metadata=True)

    def of(self, parts: Iterable[str]) -> list[Piece]:
        wanted = set(parts)
        return [piece for piece in self.pieces if piece.part in wanted]

    def columns(self) -> list[Column]:
        """Without the keys."""
        fields = [field for field in self.schema if field.name not in KEY_NAMES]
        return [Column(field.name, self.node, self.kind, field.type) for field in fields]


Tables = Mapping[tuple[str, str], Table]
"""By node and kind."""


def scan(table: Table, pieces: Sequence[Piece]) -> str:
    """Some files of a table, with all its columns and DuckDB's `filename` and `file_index`."""
    files = _files([piece.path for piece in pieces])
    if not table.examples:
        return f"read_parquet({files})"
    everything = f"read_parquet({_files(table.examples)}, union_by_name = true)"
    some = f"read_parquet({files}, union_by_name = true)"
    columns = "*, filename, file_index"
    return f"(SELECT {columns} FROM {some} UNION ALL BY NAME SELECT {columns} FROM {everything} WHERE false)"


def _files(paths: Sequence[str]) -> str:
    return f"[{', '.join(text(path) for path in paths)}], hive_partitioning = false"


def live(table: Table, pieces: Sequence[Piece] | None = None) -> str:
    """The rows of a table that count; of some of its pieces only, where they are given."""
    pieces = table.pieces if pieces is None else pieces
    dead = _gone(table, pieces)
    columns = "one.* EXCLUDE (filename, file_index)" if table.examples else "one.*"
    source = f"SELECT {columns} FROM {scan(table, pieces)} AS one"
    if dead is None:
        return source
    on = "one.uid = dead.uid AND one.filename = dead.path"
    return f"{source} ANTI JOIN {dead} AS dead ON {on}"


def _gone(table: Table, pieces: Sequence[Piece]) -> str | None:
    """The rows of some pieces that no longer count, as (uid, path); None where all count."""
    paths = {piece.part: piece.path for piece in pieces}
    later = [piece for piece in table.pieces if any(part in paths for part in piece.supersedes)]
    if not later or "uid" not in table.schema.names:
        return None
    replaced = [(piece.path, paths[part]) for piece in later for part in piece.supersedes if part in paths]
    values = ", ".join(f"({text(by)}, {text(path)})" for by, path in replaced)
    return (
        f"(SELECT later.uid, replaced.path FROM {scan(table, later)} AS later "
        f"JOIN (VALUES {values}) AS replaced(later, path) ON later.filename = replaced.later)"
    )


@dataclass(frozen=True)
class Pool:
    """The pairs of one pool, and the tables that say something about them."""

    node: str
    """Who told the captions: the node that downloaded the images, or one that wrote more captions of them."""
    captions: Table
    """Decides the pairs and their order."""
    others: tuple[Table, ...]
    pixels: str
    """The node that downloaded the images."""

    def columns(self) -> dict[tuple[str, str], Column]:
        """By node and name, keys left out. A node's caption column shadows its image column of the same name, and
        what tells captions that were written later shadows what the images had before."""
        tables = (self.captions, *self.others)
        by_grain = sorted(tables, key=lambda table: PAIR_GRAINS.index(table.kind))
        found = {(column.node, column.name): column for table in by_grain for column in table.columns()}
        if self.node != self.pixels:
            found = {
                (node, column): said
                for (node, column), said in found.items()
                if node == self.node or column not in self.captions.schema.names
            }
        nodes = list(dict.fromkeys(table.node for table in tables))
        return dict(sorted(found.items(), key=lambda item: nodes.index(item[0][0])))

    def names(self) -> dict[tuple[str, str], str]:
        """What `samples` calls each column: by its name, or `node_name` where another node has the name too."""
        columns = self.columns()
        counts = Counter([*(column.lower() for _, column in columns), *KEY_NAMES, "pool"])
        found: dict[tuple[str, str], str] = {}
        for node, column in columns:
            shown = column if counts[column.lower()] == 1 else f"{node}_{column}"
            while shown.lower() in {other.lower() for other in found.values()}:
                shown += "_"
            found[node, column] = shown
        return found

    def pairs(self, shown: Mapping[tuple[str, str], str], segments: int) -> str:
        """Every pair that counts: the keys, and the columns `shown` under these names.

        Tables whose rows are those of the pool, part by part, zip by position: many times faster than a join by uid;
        an image with several captions is repeated for each where a table counts them.
        The parts are cut into segments because DuckDB reads one zip in one thread. Other tables are joined by key.
        """
        owners = self._owners(shown)
        images = next((table.rows() for table in self.others if table.kind == "image"), {})
        expected = {"image": images, "caption": self.captions.rows()}
        zipped = [table for table in owners if table.rows() == expected[table.kind]]
        parts = [piece.part for piece in self.captions.pieces]
        size = -(-len(parts) // max(1, segments))
        cuts = [parts[start : start + size] for start in range(0, len(parts), size)]
        rows = " UNION ALL ".join(self._segment(cut, zipped, images == self.captions.rows(), owners) for cut in cuts)
        sources = [f"({rows}) AS base"]
        for place, table in enumerate(table for table in owners if table not in zipped):
            keys = KEY_NAMES if table.kind == "caption" else KEY_NAMES[:1]
            fields = ", ".join([*keys, *owners[table]])
            sources.append(
                f"LEFT JOIN (SELECT {fields} FROM ({live(table)})) AS other{place} USING ({', '.join(keys)})"
            )
        fields = ", ".join(["base.uid", "base.caption_id", *(f"{_inner(*key)} AS {name(shown[key])}" for key in shown)])
        return f"SELECT {fields} FROM {' '.join(sources)}"

    def _owners(self, shown: Iterable[tuple[str, str]]) -> dict[Table, list[str]]:
        """The tables that hold the columns, each with its columns as SELECT items."""
        columns = self.columns()
        tables = {(table.node, table.kind): table for table in (self.captions, *self.others)}
        found: dict[Table, list[str]] = {}
        for node, column in shown:
            table = tables[node, columns[node, column].grain]
            found.setdefault(table, []).append(f"{name(column)} AS {_inner(node, column)}")
        return found

    def _segment(
        self, parts: Sequence[str], zipped: Sequence[Table], one_each: bool, items: Mapping[Table, Sequence[str]]
    ) -> str:
        """The pairs of some parts. `one_each`: every image has one caption, so that image rows zip too."""
        images = [table for table in zipped if table.kind == "image"]
        counting = [table for table in images if table.counts_captions and self.node == self.pixels]
        beside = [table for table in zipped if table.kind == "caption" and table is not self.captions]
        beside += images if one_each else []
        keys = [*KEY_NAMES, "filename AS path", "file_index AS place"]
        rows = f"{_zip([self.captions, *beside], parts, items, keys)} AS pair"
        if counting and not one_each:
            images.sort(key=lambda table: table is not counting[0])
            each = _zip(images, parts, items, [f"{CAPTIONS.name} AS captions"])
            rows += f" POSITIONAL JOIN (SELECT *, unnest(range(captions)) FROM {each}) AS image"
        dead = _gone(self.captions, self.captions.of(parts))
        if dead is not None:
            rows += f" ANTI JOIN {dead} AS dead ON pair.uid = dead.uid AND pair.path = dead.path"
        if images and not one_each and not counting:
            # By part too: a uid stands in its old part and in the retry, each with an image of its own.
            rows += f" JOIN {_zip(images, parts, items, ['uid', 'file_index AS place'])} AS image USING (uid, place)"
        return f"SELECT * FROM {rows}"


def pools(generations: Mapping[str, Generation], tables: Tables) -> list[Pool]:
    """The pools of a run, each with the tables that hang on it.

    A pool is a node with image bytes; before any download, it is the node that the input became. A node belongs to a
    pool that it was made from, or with which it shares the input. What the pool was made from is left out: a pool
    repeats the columns of its input. A node that tells more captions of a pool's images gives pairs of its own, behind
    those of the pool: with all that is known of the images, and what was said of these captions.
    """
    aligned = [node for node in generations if any((node, grain) in tables for grain in PAIR_GRAINS)]
    above = {node: ancestors(node, generations) & set(aligned) for node in aligned}
    roots = {node: {other for other in {node, *above[node]} if not above[other]} for node in aligned}
    paired = [node for node in aligned if (node, "caption") in tables]
    found = [node for node in paired if any(record.file("tar") for record in generations[node].records)]
    found = found or [node for node in paired if not above[node] & set(paired)]
    telling = [node for node in paired if tables[node, "caption"].tells_captions]

    def teller(node: str) -> str | None:
        """Who told the captions of a node: of those above it the nearest, which has all others above itself."""
        told = (other for other in telling if other in (node, *above[node]))
        return max(told, key=lambda other: len(above[other]), default=None)

    result = []
    for pool in found:
        members = [pool]
        for node in aligned:
            stray = not above[node] & set(found) and bool(roots[node] & roots[pool])
            if node not in found and node not in above[pool] and (pool in above[node] or stray):
                members.append(node)
        for who in [pool, *(node for node in members if node in telling and node != pool)]:
            others = []
            for node in members:
                later = teller(node) not in (None, pool, *above[pool])
                others += [tables[node, "image"]] if (node, "image") in tables else []
                if (node, "caption") in tables and node != who and (teller(node) == who if later else who == pool):
                    others.append(tables[node, "caption"])
            result.append(Pool(who, tables[who, "caption"], tuple(others), pool))
    return result


def _zip(
    tables: Sequence[Table], parts: Sequence[str], items: Mapping[Table, Sequence[str]], keys: Sequence[str]
) -> str:
    """Tables side by side, row by row; the keys are those of the first."""
    scans = [scan(table, table.of(parts)) for table in tables]
    sources = " POSITIONAL JOIN ".join(f"{found} AS t{place}" for place, found in enumerate(scans))
    fields = [f"t0.{key}" for key in keys]
    fields += [f"t{place}.{item}" for place, table in enumerate(tables) for item in items.get(table, ())]
    return f"(SELECT {', '.join(fields)} FROM {sources})"


def _inner(node: str, column: str) -> str:
    return name(f"{node}.{column}")
