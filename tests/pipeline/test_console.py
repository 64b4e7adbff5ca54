"""A catalogue file stands alone, and whoever asks it reads it and does nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import Catalog, SluiceError
from pipeline.catalogue_file import write_catalogue
from pipeline.cli import main
from pipeline.console import Console, open_catalogue
from tests.takedowns import go

FILES = ("{secret}", "{folder}/*.csv", "file://{secret}", "{folder}/other.duckdb")
READERS = (
    "read_csv", "read_csv_auto", "read_text", "read_blob", "read_json", "read_json_auto", "read_json_objects",
    "read_ndjson", "read_ndjson_objects", "read_parquet", "parquet_scan", "parquet_metadata", "parquet_schema",
    "parquet_file_metadata", "parquet_kv_metadata", "glob", "sniff_csv",
)  # fmt: skip
ESCAPES = [
    *(f"SELECT * FROM {reader}('{file}')" for reader in READERS for file in FILES),
    *(f"SELECT * FROM '{file}'" for file in FILES),
    *(f"COPY {what} TO '{{folder}}/out.{how}'" for what in ("samples", "(SELECT 1)") for how in ("csv", "parquet")),
    "COPY samples TO '{folder}/out' (FORMAT parquet, PARTITION_BY (status))",
    "COPY samples FROM '{secret}'",
    "EXPORT DATABASE '{folder}/out'",
    "IMPORT DATABASE '{folder}'",
    "ATTACH '{folder}/out.db' AS other",
    "ATTACH '{file}' AS again",
    "ATTACH ':memory:' AS elsewhere",
    "DETACH x",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{folder}/x.duckdb_extension'",
    "FORCE INSTALL httpfs FROM 'http://127.0.0.1:1'",
    "CREATE TABLE mine (x INTEGER)",
    "CREATE TABLE mine AS SELECT 1",
    "CREATE VIEW mine AS SELECT * FROM '{secret}'",
    "CREATE TEMP TABLE mine AS FROM read_text('{secret}')",
    "CREATE SECRET s (TYPE s3)",
    "INSERT INTO samples SELECT * FROM samples",
    "UPDATE samples SET status = 'x'",
    "DELETE FROM samples",
    "DROP TABLE samples",
    "ALTER TABLE samples ADD COLUMN x INTEGER",
    "TRUNCATE samples",
    "WITH x AS (INSERT INTO samples SELECT * FROM samples RETURNING 1) SELECT * FROM x",
    "SET lock_configuration = false",
    "SET enable_external_access = true",
    "SET GLOBAL enable_external_access = true",
    "RESET enable_external_access",
    "PRAGMA enable_external_access",
    "SET memory_limit = '100GB'",
    "SET temp_directory = '{folder}'",
    "SET threads = 1000",
    "SET python_enable_replacements = true",
    "SET allowed_directories = ['{folder}']",
    "SET home_directory = '{folder}'",
    "SET secret_directory = '{folder}'",
    "SET extension_directory = '{folder}'",
    "SET log_query_path = '{folder}/out.log'",
    "SET autoinstall_known_extensions = true",
    "PRAGMA profiling_output = '{folder}/out.json'",
    "CHECKPOINT; COPY (SELECT 1) TO '{folder}/out.csv'",
    "SELECT 1; SELECT 2",
    "CALL pragma_import('{folder}')",
    "SELECT getenv('HOME_OF_SECRETS')",
    "SELECT query('SELECT 1')",
    "FROM query_table('{secret}')",
    "SELECT * FROM table_of_this_program",
    "SELECT load_extension('{folder}/x.so')",
    "SELECT * FROM postgres_scan('host=127.0.0.1', 'public', 'x')",
    "SELECT * FROM 'http://127.0.0.1:1/x.parquet'",
    "SELECT * FROM 's3://bucket/x.parquet'",
]
table_of_this_program = [1, 2, 3]
"""DuckDB would find it by its name, were it in this process and allowed to."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("console") / "root"
    go(folder)
    return str(folder)


@pytest.fixture(scope="module")
def file(root: str) -> Path:
    path = Path(root).parent / "run.duckdb"
    write_catalogue(root, str(path))
    return path


@pytest.fixture(scope="module")
def console(file: Path) -> Iterator[Console]:
    with open_catalogue(str(file), timeout_s=20, rows=1000) as opened:
        yield opened


def test_it_says_what_the_views_say_but_for_vectors(root: str, file: Path, console: Console) -> None:
    with Catalog(root) as catalog:
        for view in ("samples", "pool", "kept", "drops", "shards", "shard_samples", "errors", "runs", "urls_captions"):
            theirs = catalog.sql(f"FROM {view}")
            vectors = {"image_embedding", "text_embedding"} & set(theirs.column_names)
            ours = console.ask(f"FROM {view}")
            assert ours.column_names == [name for name in theirs.column_names if name not in vectors]
            expected = sorted(map(str, theirs.drop_columns(list(vectors)).to_pylist()))
            assert sorted(map(str, ours.to_pylist())) == expected
    assert console.ask("FROM about").to_pylist() == [{"run": "0001", "dag": "world"}]
    assert str(root).encode() not in console.ask("SELECT sql FROM duckdb_tables()").to_string().encode()


def test_there_are_a_hundred_escapes() -> None:
    assert len(set(ESCAPES)) >= 100


NOTHING = ("[]", "[{\"getenv('HOME_OF_SECRETS')\": ''}]")


def told(console: Console, query: str) -> str:
    try:
        return str(console.ask(query).to_pylist())
    except SluiceError as error:
        return f"refused: {error}"


def test_no_statement_leaves_the_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("word\nopensesame\n")
    monkeypatch.setenv("HOME_OF_SECRETS", "opensesame")
    before = sha256(file.read_bytes()).hexdigest(), sorted(os.listdir(tmp_path))
    with open_catalogue(str(file), timeout_s=20) as console:
        for escape in ESCAPES:
            query = escape.format(secret=secret, folder=tmp_path, file=file)
            answer = told(console, query)
            assert "opensesame" not in answer, query
            assert "\n" not in answer
            harmless = escape.startswith(("ATTACH ':memory:'", "DETACH", "CREATE TEMP", "LOAD", "SELECT query"))
            assert harmless or answer.startswith("refused") or answer in NOTHING, query
        assert console.ask("SELECT count(*) AS n FROM samples").to_pylist() == [{"n": 80}]
    assert (sha256(file.read_bytes()).hexdigest(), sorted(os.listdir(tmp_path))) == before


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b", "took longer than 1 s"),
        ("SELECT length(repeat('x', 4000000000) || repeat('y', 4000000000))", "emory|took longer"),
    ],
)
def test_a_query_that_takes_too_much_is_ended_and_the_next_is_answered(file: Path, query: str, expected: str) -> None:
    with open_catalogue(str(file), memory_mb=256, timeout_s=1) as console:
        with pytest.raises(SluiceError, match=expected):
            console.ask(query)
        console._timeout_s = 30
        assert console.ask("SELECT count(*) AS n FROM samples").to_pylist() == [{"n": 80}]


def test_an_answer_has_an_end(file: Path) -> None:
    with open_catalogue(str(file), rows=7) as console:
        assert console.ask("SELECT * FROM range(1000000000000)").num_rows == 7
        with pytest.raises(SluiceError, match="one statement at a time"):
            console.ask("SELECT 1; SELECT 2")


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match=r"nowhere.duckdb is no file; `sluice catalog"):
        open_catalogue(str(tmp_path / "nowhere.duckdb"))
    (tmp_path / "x.duckdb").write_bytes(b"not a database")
    with pytest.raises(SluiceError, match=r"x.duckdb is no catalogue of sluice's"):
        open_catalogue(str(tmp_path / "x.duckdb"))


def test_the_command_writes_it_once(root: str, tmp_path: Path) -> None:
    out = tmp_path / "run.duckdb"

    def sluice(target: Path) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["catalog", root, "--out", str(target)], catch_exceptions=False)
        return done.exit_code, " ".join(done.output.split())

    code, said = sluice(out)
    assert code == 0
    assert "80 rows samples" in said
    assert os.listdir(tmp_path) == ["run.duckdb"]
    assert sluice(out) == (2, f"error: --out {out} exists; name a file that does not")
    code, said = sluice(tmp_path / "none/run.duckdb")
    assert (code, "there is no such folder" in said) == (2, True)
