"""The command line: help that teaches, errors in one line, output that other tools read."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from pipeline import Dag, run
from pipeline.cli import main
from pipeline.store import Store
from tests.inline import Inline

TEXT = """
dag: toys
nodes:
  urls: {steps: [{tests.toys.Numbers: {rows: 40, parts: 4}}]}
  pool: {from: urls, steps: [{tests.toys.Fetch: {fails: 10}}]}
  scores: {from: pool, steps: [tests.toys.Times]}
"""
COMMANDS = ["check", "plan", "run", "status", "sql", "errors", "verify", "gc", "explain", "what-if", "diff"]


def sluice(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False, terminal_width=200)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "toys.yaml").write_text(TEXT)
    run(Dag.parse(TEXT), str(folder / "root"), executor=Inline(Store(str(folder / "root"))))
    return str(folder / "root")


def test_help_waits_for_no_model_library() -> None:
    code = "import sys; from pipeline.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "evaluate" in said
    assert not {"torch", "transformers", "faiss", "ray"} & set(said.splitlines()[-1].split())


@pytest.fixture(scope="module")
def dag(root: str) -> str:
    return str(Path(root).parent / "toys.yaml")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example(command: str) -> None:
    shown = sluice(command, "--help").output
    assert "Examples:" in shown
    assert f"sluice {command} " in shown


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    result = sluice("statsu", "x")
    assert result.exit_code == 2
    assert "did you mean 'status'?" in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "nowhere.yaml", "r"], "no DAG file 'nowhere.yaml'"),
        (["status", "nosuch://x/y"], "nosuch://x/y is no root: Protocol not known: nosuch"),
        (["check", "quickstart", "--set", "urls.files=nosuch://x"], "Protocol not known: nosuch"),
        (["check", "quickstart", "--set", "kept.rules=3"], "rules are a list of `name: condition`"),
        (["status", "/nowhere/at/all"], "/nowhere/at/all has no run; `sluice run DAG /nowhere/at/all` makes one"),
        (["sql", "/nowhere/at/all", "SELECT 1"], "has no run"),
    ],
)
def test_errors_are_one_line_without_a_traceback(arguments: list[str], expected: str) -> None:
    result = sluice(*arguments)
    assert result.exit_code == 2
    assert expected in result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_check_names_what_is_wrong(dag: str) -> None:
    assert "3 nodes, nothing wrong" in sluice("check", dag).output
    assert "did you mean 'factor'?" in sluice("check", dag, "--set", "scores.facto=3").output


def test_plan_says_what_a_change_costs(root: str, dag: str) -> None:
    assert "run" not in [line.split()[1] for line in sluice("plan", dag, root).output.splitlines()[1:]]
    changed = sluice("plan", dag, root, "--set", "scores.factor=3", "--parts").output
    assert "factor: 2 → 3" in changed
    assert changed.count("000-00000") == 3


def test_limit_reaches_every_source(root: str, dag: str) -> None:
    shown = sluice("plan", dag, root, "--limit", "8").output
    assert "limit: null → 8" in shown


def test_status_counts_rows_by_status(root: str) -> None:
    assert "success 36, http_503 4" in sluice("status", root).output
    assert "0001" in sluice("status", root, "--runs").output


def test_sql_prints_tables_csv_json_and_parquet(root: str, tmp_path: Path) -> None:
    query = "SELECT status, count(*) AS rows FROM pool GROUP BY ALL ORDER BY rows"
    assert "http_503" in sluice("sql", root, query).output
    assert sluice("sql", root, query, "--format", "csv").output == "status,rows\nhttp_503,4\nsuccess,36\n"
    lines = sluice("sql", root, query, "--format", "json").output.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"status": "http_503", "rows": 4},
        {"status": "success", "rows": 36},
    ]
    sluice("sql", root, query, "--format", "parquet", "--out", str(tmp_path / "x.parquet"))
    assert pq.read_table(tmp_path / "x.parquet").column("rows").to_pylist() == [4, 36]
    assert "needs --out FILE" in sluice("sql", root, query, "--format", "parquet").output


def test_sums_and_decimals_are_numbers(root: str) -> None:
    query = "SELECT sum(n) AS total, 2.50::DECIMAL(9, 2) AS price, [sum(n)] AS listed FROM pool"
    assert sluice("sql", root, query).output.split()[-3:] == ["780", "2.50", "[780]"]
    shown = json.loads(sluice("sql", root, query, "--format", "json").output)
    assert shown == {"total": 780, "price": 2.5, "listed": [780]}
    assert sluice("sql", root, query, "--format", "csv").output.splitlines()[1] == "780,2.50,[780]"


def test_sql_without_a_query_lists_the_views(root: str) -> None:
    shown = sluice("sql", root).output
    assert all(view in shown for view in ("urls", "pool", "scores", "samples", "runs"))


def test_a_wrong_query_is_one_line(root: str) -> None:
    result = sluice("sql", root, "SELECT statsu FROM pool")
    assert result.exit_code == 2
    assert "statsu" in result.output
    assert "status" in result.output
    assert "Traceback" not in result.output


def test_verify_says_that_all_is_well(root: str) -> None:
    assert "every file is what its record says" in sluice("verify", root).output


def test_gc_only_says_what_it_would_do(root: str) -> None:
    assert "would delete (add --yes): 0 files" in sluice("gc", root).output


@pytest.mark.parametrize("command", ["errors", "gc", "status", "verify", "sql"])
def test_a_root_that_is_not_there_is_no_empty_one(command: str, tmp_path: Path) -> None:
    done = sluice(command, str(tmp_path / "rot"))
    assert done.exit_code == 2
    assert "sluice run" in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "rot").exists()


def test_errors_are_none(root: str) -> None:
    assert sluice("errors", root).output == "no errors\n"
    assert "did you mean 'pool'?" in sluice("errors", root, "--node", "poll").output


def test_captions_cannot_move_the_terminal() -> None:
    from pipeline.show import plain

    assert str(plain("a\x1b[2Jb\u202ec\n[bold]d")) == "a�[2Jb�c ⏎ [bold]d"


def test_who_asks_during_the_first_run_hears_of_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put("runs/active/x.lease", json.dumps({"host": "elsewhere", "pid": 17}).encode())
    for asked in (["status", store.root], ["sql", store.root, "SELECT 1"], ["report", store.root]):
        assert "has ended: a run, process 17 on elsewhere, is at one; wait for it" in sluice(*asked).output
    gone = subprocess.Popen(["true"])
    gone.wait()
    store.put("runs/active/x.lease", json.dumps({"host": socket.gethostname(), "pid": gone.pid}).encode())
    assert "was killed; `sluice run DAG" in sluice("status", store.root).output


@pytest.mark.parametrize(("at_work", "stopped"), [("a", "b"), ("b", "a")])
def test_of_several_runs_the_one_that_is_at_work_is_told_of(tmp_path: Path, at_work: str, stopped: str) -> None:
    store = Store(str(tmp_path))
    store.put(f"runs/active/{at_work}.lease", json.dumps({"host": "elsewhere", "pid": 17}).encode())
    over = {"host": "elsewhere", "pid": 18, "stopped": True}
    store.put(f"runs/active/{stopped}.lease", json.dumps(over).encode())
    told = "has ended: a run, process {} on elsewhere, {}"
    assert told.format(17, "is at one; wait for it") in sluice("status", store.root).output
    store.delete(f"runs/active/{at_work}.lease")
    assert told.format(18, "stopped before its end; `sluice run DAG") in sluice("status", store.root).output
