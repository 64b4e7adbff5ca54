"""What runs again and what does not: work keys, generations, retries, limits."""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest

from pipeline import Catalog, Dag, SluiceError, run
from pipeline.dag import Node
from pipeline.driver import Result
from pipeline.node import prepare
from pipeline.plan import survey
from pipeline.records import Generation, Record
from pipeline.show import funnel
from pipeline.stage import Device, PoolPart
from pipeline.store import Store
from pipeline.worker import Call
from tests import toys
from tests.inline import Inline

TEXT = """
dag: toys
nodes:
  urls: {steps: [{tests.toys.Numbers: {rows: 40, parts: 4, captions: 2}}]}
  pool: {from: urls, steps: [{tests.toys.Fetch: {fails: 10}}]}
  scores: {from: pool, steps: [tests.toys.Times, tests.toys.Label]}
  copy: {from: urls, steps: [{tests.toys.Poison: {bad: []}}]}
  both: {from: [pool, copy, scores], steps: [{tests.toys.Slow: {seconds: 0}}, tests.toys.Label]}
"""


def go(root: Path, *overrides: str, text: str = TEXT, retry: Sequence[str] = ()) -> tuple[Result, dict[str, list[str]]]:
    executor = Inline(Store(str(root)))
    result = run(Dag.parse(text, overrides), str(root), executor=executor, retry=retry)
    return result, executor.calls


def read(root: Path, generation: Generation, kind: str) -> pa.Table:
    """The rows that count."""
    store = Store(str(root))
    tables = []
    for record in generation.records:
        table = store.read_table(record, kind)
        gone = {
            uid
            for other in generation.superseding(record.part)
            for uid in store.read_table(other, kind).column("uid").to_pylist()
        }
        tables.append(table.filter(pa.array([uid not in gone for uid in table.column("uid").to_pylist()], pa.bool_())))
    return pa.concat_tables(tables)


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_row_arrives_with_its_columns(tmp_path: Path) -> None:
    result, _ = go(tmp_path)
    scores = result.generations["scores"]
    image = read(tmp_path, scores, "image").to_pylist()
    assert {row["uid"]: row["product"] for row in image} == {toys.uid_of(n): 2 * n for n in range(40)}
    labels = read(tmp_path, scores, "caption").column("label").to_pylist()
    assert sorted(labels) == sorted(f"{n} is number {k}: {2 * n}" for n in range(40) for k in range(2))
    assert result.generations["pool"].statuses == {"success": 36, "http_503": 4}


def test_a_rerun_does_and_writes_nothing(tmp_path: Path) -> None:
    first, _ = go(tmp_path)
    before = everything(tmp_path)
    again, calls = go(tmp_path)
    assert calls == {}
    assert everything(tmp_path) == before
    assert again.run == first.run


def test_a_changed_parameter_runs_what_depends_on_it_and_nothing_else(tmp_path: Path) -> None:
    go(tmp_path)
    _, calls = go(tmp_path, "scores.factor=3")
    assert set(calls) == {"scores", "both"}


def test_going_back_to_an_older_parameter_reuses_its_work(tmp_path: Path) -> None:
    first, _ = go(tmp_path)
    go(tmp_path, "scores.factor=3")
    back, calls = go(tmp_path)
    assert calls == {}
    assert back.generations["scores"].content_hash == first.generations["scores"].content_hash
    assert back.run.id == "0003"


def test_the_same_content_downstream_is_not_done_again(tmp_path: Path) -> None:
    """`fails: 1000` and `fails: 10` differ in four rows, so that only the parts with these rows are new."""
    go(tmp_path, "pool.fails=1000")
    _, calls = go(tmp_path, "pool.fails=20")
    assert len(calls["pool"]) == 4
    assert calls["scores"] == ["000-00000"]  # 0 and 20 are in part 0; 0 fails either way


def test_workers_change_no_work_key(tmp_path: Path) -> None:
    go(tmp_path)
    _, calls = go(tmp_path, "scores.workers.count=7", "scores.workers.batch_rows=1", "pool.workers.cpus=2")
    assert calls == {}


def test_another_root_gives_the_same_keys_and_the_same_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = go(tmp_path / "one")
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    monkeypatch.chdir(tmp_path)
    other, _ = go(tmp_path / "deeper" / "other")
    for name, generation in one.generations.items():
        assert other.generations[name].content_hash == generation.content_hash
        assert {r.work_key for r in other.generations[name].records} == {r.work_key for r in generation.records}


def test_batch_size_changes_no_content(tmp_path: Path) -> None:
    one, _ = go(tmp_path / "one")
    other, _ = go(tmp_path / "other", "scores.workers.batch_rows=3", "both.workers.batch_rows=1")
    assert {n: g.content_hash for n, g in one.generations.items()} == {
        n: g.content_hash for n, g in other.generations.items()
    }


def test_a_retry_works_on_the_failed_rows_and_their_parts_downstream_only(tmp_path: Path) -> None:
    answers = tmp_path / "up"
    _, _ = go(tmp_path / "root", f"pool.answers={answers}")
    answers.touch()
    result, calls = go(tmp_path / "root", f"pool.answers={answers}", retry=["pool"])
    assert set(calls) == {"pool", "scores", "both"}
    assert all(part.endswith(".r1") for parts in calls.values() for part in parts)
    assert result.generations["pool"].statuses == {"success": 40}
    scores = read(tmp_path / "root", result.generations["both"], "image")
    assert sorted(scores.column("uid").to_pylist()) == sorted(toys.uid_of(n) for n in range(40))
    again, calls = go(tmp_path / "root", f"pool.answers={answers}")
    assert calls == {}
    assert again.generations["pool"] == result.generations["pool"]


class Remembering(toys.Fetch):
    """Notes what it is told of the rows that are tried again."""

    told: ClassVar[list[tuple[list[int], pa.Table | None]]] = []

    def open(self, device: Device) -> Callable[[PoolPart], pa.Table]:
        fetch = super().open(device)

        def note(part: PoolPart) -> pa.Table:
            self.told.append((part.image.column("n").to_pylist(), part.before))
            return fetch(part)

        return note


def test_a_retry_is_told_what_the_pool_said_of_its_rows_so_far(tmp_path: Path) -> None:
    text = TEXT.replace("tests.toys.Fetch", "tests.pipeline.test_run.Remembering")
    go(tmp_path, text=text)
    assert [before for _, before in Remembering.told] == [None] * 4
    Remembering.told.clear()
    go(tmp_path, text=text, retry=["pool"])
    for numbers, before in Remembering.told:
        assert before is not None
        assert before.schema.names == toys.Fetch.adds.names
        assert before.column("status").to_pylist() == ["http_503"] * len(numbers)
    assert sorted(number for numbers, _ in Remembering.told for number in numbers) == [0, 10, 20, 30]


def test_a_second_retry_takes_what_is_left(tmp_path: Path) -> None:
    go(tmp_path)
    go(tmp_path, retry=["pool"])
    result, calls = go(tmp_path, retry=["pool"])
    assert calls["pool"] == ["000-00000.r2", "000-00002.r2"]
    assert result.generations["pool"].statuses == {"success": 36, "http_503": 4}
    uids = read(tmp_path, result.generations["pool"], "image").column("uid").to_pylist()
    assert sorted(uids) == sorted(toys.uid_of(n) for n in range(40))


def test_a_changed_line_in_a_resource_runs_what_depends_on_it(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("1\n2\n")
    text = TEXT + f"  listed: {{from: pool, steps: [{{tests.toys.Listed: {{numbers: {numbers}}}}}]}}\n"
    go(tmp_path / "root", text=text)
    numbers.write_text("1\n3\n")
    plans = survey(Dag.parse(text), Store(str(tmp_path / "root")))
    assert plans["listed"].state == "run"
    assert plans["listed"].reasons == [f"numbers: {numbers} changed"]
    result, calls = go(tmp_path / "root", text=text)
    assert set(calls) == {"listed"}
    listed = read(tmp_path / "root", result.generations["listed"], "image").to_pylist()
    assert {row["uid"] for row in listed if row["listed"]} == {toys.uid_of(1), toys.uid_of(3)}


def test_a_resource_under_another_name_is_the_same_work(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("1\n")
    text = TEXT + f"  listed: {{from: pool, steps: [{{tests.toys.Listed: {{numbers: {tmp_path}/a.txt}}}}]}}\n"
    go(tmp_path / "root", text=text)
    _, calls = go(tmp_path / "root", f"listed.numbers={tmp_path}/b.txt", text=text)
    assert calls == {}


def test_a_plan_says_what_would_happen_and_why(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fresh = survey(Dag.parse(TEXT), store)
    assert next((p.name, p.state) for p in fresh.values()) == ("urls", "run")
    assert fresh["pool"].state == "wait"
    go(tmp_path)
    plans = survey(Dag.parse(TEXT, ["scores.factor=3", "pool.fails=9"]), store)
    assert (plans["urls"].state, plans["pool"].state, plans["scores"].state) == ("reuse", "run", "wait")
    assert plans["pool"].reasons == ["fails: 10 → 9"]


def test_a_plan_counts_the_parts_that_are_committed(tmp_path: Path) -> None:
    go(tmp_path)
    store = Store(str(tmp_path))
    for path in sorted((tmp_path / "scores" / "commits").iterdir())[:1]:
        path.unlink()
    (tmp_path / "scores" / "generations" / "0001.json").unlink()
    plan = survey(Dag.parse(TEXT), store)["scores"]
    assert plan.state == "resume"
    assert sorted(done for _, done in plan.parts) == [False, True, True, True]


def test_a_raised_revision_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(tmp_path)
    monkeypatch.setattr(toys.Times, "revision", 2)
    assert survey(Dag.parse(TEXT), Store(str(tmp_path)))["scores"].reasons == ["Times revision: 1 → 2"]


def test_the_seed_counts_only_for_stages_that_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    keys = {}
    for seeded in (False, True):
        monkeypatch.setattr(toys.Numbers, "seeded", seeded)
        keys[seeded] = [prepare(Dag.parse(f"seed: {seed}\n{TEXT}"), "urls", store, {}).key for seed in (1, 2)]
    assert keys[False][0] == keys[False][1]
    assert keys[True][0] != keys[True][1]


def test_an_unknown_pool_to_retry_is_named(tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match="'pol' is no pool whose rows could be tried again; did you mean 'pool'"):
        go(tmp_path, retry=["pol"])


def test_runs_remember_their_generations(tmp_path: Path) -> None:
    go(tmp_path)
    go(tmp_path, "scores.factor=3")
    newest, first = Store(str(tmp_path)).runs()
    assert (first.generations["scores"], newest.generations["scores"]) == (1, 2)
    assert "factor: 3" in newest.text


def test_a_run_lists_its_nodes_as_the_dag_does_whichever_ends_first(tmp_path: Path) -> None:
    store, ended = Store(str(tmp_path)), threading.Event()

    class FirstEndsLast(Inline):
        def run(self, node: Node, calls: Sequence[Call], total_rows: int, done_rows: int) -> list[Record]:
            if node.name == "copy":
                assert ended.wait(60)
            found = super().run(node, calls, total_rows, done_rows)
            if node.name == "scores":
                ended.set()
            return found

    dag = Dag.parse(TEXT)
    assert list(dag.nodes).index("copy") < list(dag.nodes).index("scores")
    result = run(dag, str(tmp_path), executor=FirstEndsLast(store))
    assert list(result.generations) == list(next(store.runs()).generations) == list(dag.nodes)


def test_no_lease_is_left_and_no_spool(tmp_path: Path) -> None:
    go(tmp_path)
    left = [name for name in everything(tmp_path) if "spool-" in name or name.endswith(".lease")]
    assert left == []


def test_ray_is_not_imported_where_nothing_runs(tmp_path: Path) -> None:
    import subprocess
    import sys

    go(tmp_path)
    script = (
        "import sys; from pipeline import Dag, run\n"
        f"run(Dag.parse({TEXT!r}), {str(tmp_path)!r}); assert 'ray' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=os.getcwd(), env={**os.environ, "PYTHONPATH": "."})


def test_columns_that_later_input_brings_are_null_in_what_was_there_before(tmp_path: Path) -> None:
    """In stages, in rules and in SQL."""
    import pyarrow.parquet as pq

    from pipeline import Catalog

    text = f"""
dag: grows
nodes:
  urls: {{steps: [{{stages.ingest.UrlTables: {{files: {tmp_path}/in/*.parquet}}}}]}}
  pool: {{from: urls, steps: [tests.toys.Fetch]}}
  words: {{from: pool, steps: [stages.text_quality.TextQuality]}}
  kept: {{from: [pool, words], steps: [{{stages.select.Select: {{rules: [{{RULE}}]}}}}]}}
"""
    (tmp_path / "in").mkdir()
    pq.write_table(
        pa.table({"url": ["http://a/1", "http://a/2"], "caption": ["one", "two"], "n": [1, 2]}),
        tmp_path / "in/1.parquet",
    )
    go(tmp_path / "root", text=text.replace("RULE", "all: 'true'"))
    later = {"url": ["http://a/3", "http://a/1"], "caption": ["three", "uno"], "lang": ["en", "es"], "n": [3, 1]}
    pq.write_table(pa.table(later), tmp_path / "in/2.parquet")
    result, calls = go(tmp_path / "root", text=text.replace("RULE", "english: lang = 'en'"))
    assert all(part.startswith("001-") for part in calls["words"])
    assert [result.generations[name].images for name in ("urls", "pool")] == [3, 3]
    assert result.generations["pool"].statuses == {"success": 3}
    assert result.generations["words"].statuses == {"ok": 3}
    catalog = Catalog(str(tmp_path / "root"))
    rows = catalog.sql("SELECT caption, lang, kept, words FROM samples ORDER BY caption").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("one", None, False, 1), ("three", "en", True, 1), ("two", None, False, 1), ("uno", None, False, 1)
    ]  # fmt: skip  # of a repeated URL the first row's columns stand
    assert catalog.sql("SELECT url, lang FROM urls ORDER BY url").num_rows == 3


def test_retries_and_later_input_together_count_every_url_once(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    answers = tmp_path / "up"
    text = f"""
dag: both
nodes:
  urls: {{steps: [{{stages.ingest.UrlTables: {{files: {tmp_path}/in/*.parquet}}}}]}}
  pool: {{from: urls, steps: [{{tests.toys.Fetch: {{fails: 3, answers: {answers}}}}}]}}
  scores: {{from: pool, steps: [tests.toys.Times]}}
"""
    (tmp_path / "in").mkdir()

    def table(name: str, numbers: range) -> None:
        rows = {"url": [f"http://a/{n}" for n in numbers], "caption": [f"{name} {n}" for n in numbers], "n": numbers}
        pq.write_table(pa.table({**rows, "n": pa.array(numbers, pa.int64())}), tmp_path / f"in/{name}.parquet")

    root = tmp_path / "root"
    table("1", range(12))
    go(root, text=text)
    go(root, text=text, retry=["pool"])  # still down: every third number is in a retry, too
    table("2", range(6, 15))
    go(root, text=text)
    answers.touch()
    for _ in range(2):
        result, _ = go(root, text=text, retry=["pool"])
        for name in ("pool", "scores"):
            uids = read(root, result.generations[name], "image").column("uid").to_pylist()
            assert len(uids) == len(set(uids)) == 15
        assert result.generations["pool"].statuses == {"success": 15}


def test_retried_rows_outlive_a_run_on_less_input(tmp_path: Path) -> None:
    answers = tmp_path / "up"
    go(tmp_path / "root", f"pool.answers={answers}")
    answers.touch()
    retried, _ = go(tmp_path / "root", f"pool.answers={answers}", retry=["pool"])
    go(tmp_path / "root", f"pool.answers={answers}", "urls.limit=20")
    back, calls = go(tmp_path / "root", f"pool.answers={answers}")
    assert "pool" not in calls
    assert back.generations["pool"].statuses == retried.generations["pool"].statuses == {"success": 40}


TABLES = """
dag: tables
nodes:
  urls: {steps: [{tests.toys.Numbers: {rows: 40, parts: 4, captions: 2}}]}
  pool: {from: urls, steps: [{tests.toys.Fetch: {fails: 10}}]}
  leaks: {from: pool, steps: [{stages.decontaminate.Decontaminate: {sets: {}}}]}
  few: {from: pool, steps: [{stages.select.Select: {rules: [{fetched: "status = 'success'"}, {odd: "n % 2 = 1"}]}}]}
  best: {from: pool, steps: [{stages.select.Select: {rules: [{fetched: "status = 'success'"},
         {odd: "n % 2 = 1"}, {half: "row_number() OVER (ORDER BY uid, caption_id) <= 20"}]}}]}
"""


def test_after_a_retry_table_stages_and_funnels_count_each_row_once(tmp_path: Path) -> None:
    root, answers = tmp_path / "root", f"pool.answers={tmp_path / 'up'}"
    go(root, answers, text=TABLES)
    (tmp_path / "up").touch()
    result, _ = go(root, answers, text=TABLES, retry=["pool"])
    with Catalog(str(root)) as catalog:
        for name in ("leaks", "few", "best"):
            assert sum(result.generations[name].statuses.values()) == catalog.sql(f"FROM {name}").num_rows
        for name in ("few", "best"):
            drops = catalog.funnel(name).to_pylist()
            steps = [(row["rule"], row["pairs_in"], row["dropped"]) for row in drops]
            assert funnel(result.generations[name]) == steps
            assert result.generations[name].statuses["kept"] == drops[-1]["pairs_left"]
    assert result.generations["few"].statuses == {"kept": 40, "dropped": 40}
    assert result.generations["leaks"].statuses == {"not_compared": 40}
    again, calls = go(root, answers, text=TABLES)
    assert calls == {}
    assert again.run == result.run
