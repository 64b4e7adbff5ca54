"""SQL over a run: what the views hold, that each row counts once, and that only what is asked for is read."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import Dag, SluiceError, run
from pipeline.attempt import Attempt
from pipeline.catalog import Catalog
from pipeline.rules import Rules
from pipeline.stage import Task
from pipeline.store import Store
from tests.inline import Inline
from tests.pools import seal_node, write_node, write_run

RETRY = {"000-1.r1": ("000-1",)}


def images(rows: Mapping[str, str]) -> pa.Table:
    """uid -> status."""
    widths = pa.array([100 * (1 + place) for place in range(len(rows))], pa.int32())
    return pa.table({"uid": list(rows), "status": list(rows.values()), "width": widths})


def captions(*uids: str) -> pa.Table:
    ids = [f"{uid}{uids[:place].count(uid)}" for place, uid in enumerate(uids)]
    texts = [f"caption {key}" for key in ids]
    return pa.table({"uid": list(uids), "caption_id": ids, "caption": texts, "source": ["web"] * len(uids)})


def beside(pairs: pa.Table, **columns: Any) -> pa.Table:
    """A caption table with other columns."""
    return pa.table({"uid": pairs["uid"], "caption_id": pairs["caption_id"], **columns})


PAIRS = {
    "000-0": captions("a", "b", "b"),
    "000-1": captions("c", "d"),
    "000-1.r1": captions("d"),
}
ONE_EACH = {**PAIRS, "000-0": captions("a", "b")}
STATUSES = {
    "000-0": {"a": "success", "b": "http_404"},
    "000-1": {"c": "success", "d": "timeout"},
    "000-1.r1": {"d": "success"},
}
SCORES = {"a0": 0.1, "b0": 0.2, "b1": 0.3, "c0": 0.4, "d0": 0.5}
DROPPED = {"a0": None, "b0": "downloaded", "b1": "downloaded", "c0": "aligned", "d0": None}
FUNNEL = [{"rule": "downloaded"}, {"rule": "never"}, {"rule": "aligned"}]


def write_pool(store: Store, pairs: Mapping[str, pa.Table] = PAIRS, inputs: Sequence[str] = ()) -> None:
    """A pool whose `d` was retried: part 000-1 still has its old row."""
    parts = {part: {"image": images(STATUSES[part]), "caption": table} for part, table in pairs.items()}
    write_node(store, "pool", parts, inputs, RETRY, tar=True)


def write_tables(store: Store, pairs: Mapping[str, pa.Table] = PAIRS) -> list[str]:
    """Nodes downstream of the pool, with all its parts."""

    def keys(table: pa.Table) -> list[str]:
        return list(table["caption_id"].to_pylist())

    scores = {
        part: {
            "caption": beside(t, clip_score=[SCORES[key] for key in keys(t)]),
            "image": pa.table({"uid": list(STATUSES[part]), "image_embedding": [[1.0, 2.0]] * len(STATUSES[part])}),
        }
        for part, t in pairs.items()
    }
    write_node(store, "scores", scores, ["pool"], RETRY)
    kept = {}
    for part, table in pairs.items():
        names = [DROPPED[key] for key in keys(table)]
        if part == "000-1":
            names[1] = "downloaded"
        dropped_by = pa.array(names, pa.string())
        kept[part] = {"caption": beside(table, kept=dropped_by.is_null(), dropped_by=dropped_by)}
    write_node(store, "kept", kept, ["pool", "scores"], RETRY, notes={"funnel": FUNNEL})
    return ["pool", "scores", "kept"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "it's [a] root"))


@pytest.fixture
def catalog(store: Store) -> Iterator[Catalog]:
    write_pool(store)
    write_run(store, write_tables(store))
    with Catalog(store.root) as opened:
        yield opened


def rows(catalog: Catalog, query: str, *params: object) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in catalog.sql(query, params).to_pylist()]


# -- nodes -------------------------------------------------------------------------------------------------------------


def test_a_node_is_its_image_table_and_each_uid_counts_once(catalog: Catalog) -> None:
    found = rows(catalog, "SELECT uid, status FROM pool ORDER BY uid")
    assert found == [("a", "success"), ("b", "http_404"), ("c", "success"), ("d", "success")]
    assert rows(catalog, "SELECT caption_id FROM pool_captions ORDER BY ALL") == [(key,) for key in SCORES]


def test_a_node_without_images_is_its_caption_table(catalog: Catalog) -> None:
    assert rows(catalog, "SELECT count(*), count(dropped_by) FROM kept") == [(5, 3)]


def test_a_node_without_either_is_its_first_table(store: Store) -> None:
    write_node(store, "copies", {"000-0": {"edge": pa.table({"left": ["a"], "right": ["b"]})}})
    write_run(store, ["copies"])
    assert rows(Catalog(store.root), "FROM copies") == [("a", "b")]


def test_a_node_named_like_a_view_over_all_nodes_keeps_its_tables_under_their_kind(store: Store) -> None:
    write_node(store, "shards", {"000-0": {"caption": captions("a")}})
    write_run(store, ["shards"])
    assert rows(Catalog(store.root), "SELECT uid FROM shards_captions") == [("a",)]


# -- samples -----------------------------------------------------------------------------------------------------------


def expected_samples(pairs: Mapping[str, pa.Table]) -> list[tuple[Any, ...]]:
    """(caption_id, status, clip_score, dropped_by) of the pairs that count, written down by hand."""
    statuses = {"a": "success", "b": "http_404", "c": "success", "d": "success"}
    ids = {key for table in pairs.values() for key in table["caption_id"].to_pylist()}
    return [(key, statuses[key[0]], SCORES[key], DROPPED[key]) for key in sorted(ids)]


SAMPLES = "SELECT caption_id, status, clip_score, dropped_by FROM samples ORDER BY caption_id"


@pytest.mark.parametrize("pairs", [PAIRS, ONE_EACH], ids=["several captions", "one caption each"])
@pytest.mark.parametrize("segments", [1, 2, 64])
def test_samples_joins_every_table_and_each_pair_counts_once(
    store: Store, pairs: Mapping[str, pa.Table], segments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.catalog.MAX_SEGMENTS", segments)
    write_pool(store, pairs)
    write_run(store, write_tables(store, pairs))
    with Catalog(store.root) as catalog:
        assert rows(catalog, SAMPLES) == expected_samples(pairs)
        assert rows(catalog, "SELECT count(*) FROM samples") == [(len(expected_samples(pairs)),)]


def test_samples_has_every_column_and_names_the_ambiguous_ones_by_their_node(store: Store) -> None:
    write_pool(store)
    write_tables(store)
    more = {part: {"caption": beside(table, caption=["x"] * len(table))} for part, table in PAIRS.items()}
    write_node(store, "recaption", more, ["pool"], RETRY)
    write_run(store, ["pool", "scores", "kept", "recaption"])
    table = Catalog(store.root).sql("FROM samples")
    assert table.column_names == [
        *("pool", "uid", "caption_id", "status", "width", "pool_caption", "source"),
        *("image_embedding", "clip_score", "kept", "dropped_by", "recaption_caption"),
    ]
    assert set(table["recaption_caption"].to_pylist()) == {"x"}


def test_a_node_without_the_retried_part_is_joined_by_uid(store: Store) -> None:
    """It hangs off the ingest node: it has one row of `d`, in the part that the pool's retry replaced."""
    write_node(store, "urls", {part: {"caption": PAIRS[part]} for part in ("000-0", "000-1")})
    write_pool(store, inputs=["urls"])
    languages = {
        "000-0": {"image": pa.table({"uid": ["a", "b"], "language": ["en", "de"]})},
        "000-1": {"image": pa.table({"uid": ["c", "d"], "language": ["fr", "it"]})},
    }
    write_node(store, "text", languages, ["urls"])
    write_run(store, ["urls", "pool", "text"])
    found = rows(Catalog(store.root), "SELECT caption_id, language, status FROM samples ORDER BY ALL")
    assert found == [
        ("a0", "en", "success"),
        ("b0", "de", "http_404"),
        ("b1", "de", "http_404"),
        ("c0", "fr", "success"),
        ("d0", "it", "success"),
    ]


def test_before_any_download_the_input_is_the_pool(store: Store) -> None:
    write_node(store, "urls", {"000-0": {"image": images({"a": "new"}), "caption": captions("a", "a")}})
    write_run(store, ["urls"])
    assert rows(Catalog(store.root), "SELECT pool, caption_id, status FROM samples ORDER BY ALL") == [
        ("urls", "a0", "new"),
        ("urls", "a1", "new"),
    ]


def test_two_pools_are_one_below_the_other(store: Store) -> None:
    for node, uid in (("laion", "a"), ("cc", "b")):
        parts = {"000-0": {"image": images({uid: "success"}), "caption": captions(uid)}}
        write_node(store, node, parts, tar=True)
    write_node(store, "sizes", {"000-0": {"image": pa.table({"uid": ["b"], "bytes": [5]})}}, ["cc"])
    write_run(store, ["laion", "cc", "sizes"])
    found = rows(Catalog(store.root), "SELECT pool, uid, bytes FROM samples ORDER BY uid")
    assert found == [("laion", "a", None), ("cc", "b", 5)]


def test_a_caption_column_shadows_the_image_column_of_its_node(store: Store) -> None:
    image = images({"a": "success"}).append_column("caption", pa.array(["of the image"]))
    write_node(store, "pool", {"000-0": {"image": image, "caption": captions("a")}}, tar=True)
    write_run(store, ["pool"])
    assert rows(Catalog(store.root), "SELECT caption FROM samples") == [("caption a0",)]


def test_conditions_orders_and_joins_see_the_rows_that_belong_together(store: Store) -> None:
    """Were a condition pushed into one side of a positional join, the sides would come apart."""
    uids = [f"{place:04}" for place in range(5000)]
    pairs = captions(*uids)
    image = images({uid: "success" if int(uid) % 3 else "timeout" for uid in uids})
    write_node(store, "pool", {"000-0": {"image": image, "caption": pairs}, "000-1": _empty(image, pairs)}, tar=True)
    scores = beside(pairs, score=[float(uid) for uid in uids])
    write_node(store, "scores", {"000-0": {"caption": scores}, "000-1": {"caption": scores.slice(0, 0)}}, ["pool"])
    write_run(store, ["pool", "scores"])
    with Catalog(store.root) as catalog:
        assert rows(catalog, "SELECT count(*) FROM samples WHERE uid::INT <> score") == [(0,)]
        assert rows(catalog, "SELECT uid, score FROM samples WHERE status = 'timeout' ORDER BY score DESC LIMIT 2") == [
            ("4998", 4998.0),
            ("4995", 4995.0),
        ]
        assert rows(catalog, "SELECT score FROM samples WHERE uid = '4321' AND status = 'success'") == [(4321.0,)]
        assert rows(catalog, "SELECT uid FROM samples WHERE score = 4998") == [("4998",)]
        chosen = "(SELECT 77.0 AS wanted UNION ALL SELECT 4999.0)"
        assert rows(catalog, f"SELECT uid FROM samples JOIN {chosen} ON score = wanted ORDER BY 1") == [
            ("0077",),
            ("4999",),
        ]
        assert rows(catalog, "SELECT uid, score FROM samples LIMIT 1 OFFSET 4000") == [("4000", 4000.0)]


def _empty(image: pa.Table, pairs: pa.Table) -> dict[str, pa.Table]:
    return {"image": image.slice(0, 0), "caption": pairs.slice(0, 0)}


def test_only_the_columns_asked_for_are_read(catalog: Catalog) -> None:
    plan = catalog.sql("EXPLAIN SELECT dropped_by, avg(clip_score) FROM samples GROUP BY ALL").column(1)[0].as_py()
    read = " ".join(line for line in plan.splitlines() if "Projections:" in line)
    assert "clip_score" in read
    assert "image_embedding" not in read
    assert "Positional Scan" in plan


def test_tables_whose_rows_were_counted_zip_and_only_images_with_several_captions_are_joined(store: Store) -> None:
    def plan(first: pa.Table) -> str:
        parts = {"000-0": first, "000-1": captions("c", "d")}
        pool = {part: {"image": images(STATUSES[part]), "caption": pairs} for part, pairs in parts.items()}
        write_node(store, "pool", pool, tar=True)
        scores = {part: {"caption": beside(pairs, score=[0.0] * len(pairs))} for part, pairs in parts.items()}
        write_node(store, "scores", scores, ["pool"])
        write_run(store, ["pool", "scores"])
        with Catalog(store.root) as catalog:
            return str(catalog.sql("EXPLAIN SELECT status, score FROM samples").column(1)[0].as_py())

    assert "Join" not in plan(captions("a", "b"))
    assert "Hash Join" in plan(captions("a", "b", "b"))


def test_opening_reads_one_file_of_every_table(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of later parts may even be gone; DuckDB looks whether the first two exist."""
    monkeypatch.setattr("pipeline.catalog.MAX_SEGMENTS", 1)
    parts = {
        f"000-{part}": {"image": images({f"{part}": "success"}), "caption": captions(f"{part}")} for part in range(9)
    }
    write_node(store, "pool", parts, tar=True)
    write_run(store, ["pool"])
    for path in Path(store.path).glob("pool/data/000-[2-8]*.parquet"):
        path.unlink()
    with Catalog(store.root) as catalog:
        assert catalog.sql("DESCRIBE samples").num_rows > 5
        with pytest.raises(SluiceError, match="No files found"):
            catalog.sql("FROM pool")
    next(Path(store.path).glob("pool/data/000-1*caption*")).unlink()
    with pytest.raises(SluiceError, match=r"`sluice verify .*` says what is lost"):
        Catalog(store.root)


# -- over all nodes ----------------------------------------------------------------------------------------------------


def test_the_funnel_counts_each_pair_once_and_names_rules_that_dropped_none(catalog: Catalog) -> None:
    assert catalog.funnel("kept").to_pylist() == [
        {"position": 1, "rule": "downloaded", "pairs_in": 5, "dropped": 2, "pairs_left": 3},
        {"position": 2, "rule": "never", "pairs_in": 3, "dropped": 0, "pairs_left": 3},
        {"position": 3, "rule": "aligned", "pairs_in": 3, "dropped": 1, "pairs_left": 2},
    ]
    assert rows(catalog, "SELECT DISTINCT node FROM drops") == [("kept",)]
    with pytest.raises(SluiceError, match="'kpt' selects nothing in run 0001; did you mean 'kept'"):
        catalog.funnel("kpt")


def test_a_selection_without_a_funnel_has_its_reasons_by_name(store: Store) -> None:
    names = pa.array(["b", None, "a", "b"])
    table = beside(captions("1", "2", "3", "4"), kept=names.is_null(), dropped_by=names)
    write_node(store, "clean", {"000-0": {"caption": table}})
    write_run(store, ["clean"])
    found = Catalog(store.root).funnel("clean").to_pylist()
    assert [(step["rule"], step["pairs_in"], step["dropped"]) for step in found] == [("a", 4, 1), ("b", 3, 2)]


def test_shards_and_what_is_in_them(store: Store) -> None:
    records = []
    for place, uids in enumerate((["a", "b"], ["c"])):
        with Attempt(store, "shards", "parts", Task(f"shard-{place}"), f"{place}") as attempt:
            attempt.write_bytes("shard", "tar", b"x" * 10 * len(uids))
            attempt.write("samples", pa.table({"uid": uids, "shard": [f"{place:08}.tar"] * len(uids)}))
            records.append(attempt.commit())
    seal_node(store, "shards", records)
    write_run(store, ["shards"])
    with Catalog(store.root) as catalog:
        assert rows(catalog, "SELECT node, samples, bytes FROM shards") == [("shards", 2, 20), ("shards", 1, 10)]
        assert all(Path(path).is_file() for (path,) in rows(catalog, "SELECT path FROM shards"))
        found = rows(catalog, "SELECT uid, bytes FROM shard_samples JOIN shards USING (node, path) ORDER BY 1")
        assert found == [("a", 20), ("b", 20), ("c", 10)]


def test_errors_of_all_nodes(store: Store) -> None:
    errors = pa.table({"uid": ["a"], "row": [3], "step": ["s"], "error": ["e"], "traceback": ["t"], "attempts": [2]})
    write_node(store, "pool", {"000-0": {"image": images({"a": "quarantined"}), "errors": errors}}, tar=True)
    write_run(store, ["pool"])
    assert rows(Catalog(store.root), "SELECT node, part, uid, error FROM errors") == [("pool", "000-0", "a", "e")]


def test_what_a_run_does_not_have_is_there_and_empty(store: Store) -> None:
    write_node(store, "table", {"000-0": {"image": images({"a": "success"})}})
    write_run(store, ["table"])
    with Catalog(store.root) as catalog:
        for view in ("samples", "drops", "shards", "shard_samples", "errors"):
            assert catalog.sql(f"FROM {view}").num_rows == 0
        assert rows(catalog, "FROM runs") == [("0001", "demo", "table", 1)]


def test_what_if_is_the_funnel_that_the_rules_would_give(catalog: Catalog) -> None:
    rules = Rules([{"ok": "status = 'success'"}, {"best": "clip_score >= median(clip_score) OVER ()"}])
    assert catalog.what_if(rules) == [
        {"rule": "ok", "rows": 5, "dropped": 2, "left": 3},
        {"rule": "best", "rows": 3, "dropped": 1, "left": 2},
    ]
    with pytest.raises(SluiceError, match="reads 'clip_scor', which no node has; did you mean 'clip_score'"):
        catalog.what_if(Rules([{"r": "clip_scor > 1"}]))
    with pytest.raises(SluiceError, match="has no pool 'pol'; did you mean 'pool'"):
        catalog.what_if(rules, "pol")


# -- runs --------------------------------------------------------------------------------------------------------------


def test_an_older_run_is_asked_by_its_id(store: Store) -> None:
    for status in ("old", "new"):
        write_node(store, "pool", {"000-0": {"image": images({"a": status})}})
        write_run(store, ["pool"])
    assert rows(Catalog(store.root), "SELECT status FROM pool") == [("new",)]
    assert rows(Catalog(store.root, "0001"), "SELECT status FROM pool") == [("old",)]
    assert rows(Catalog(store.root, "1"), "SELECT status FROM pool") == [("old",)]
    with pytest.raises(SluiceError, match="has no run '0001x'; did you mean '0001'"):
        Catalog(store.root, "0001x")


def test_every_dag_has_a_schema_and_the_newest_needs_no_name(store: Store) -> None:
    for dag in ("first", "second"):
        write_node(store, f"pool_{dag}", {"000-0": {"image": images({"a": dag})}})
        write_run(store, [f"pool_{dag}"], dag)
    query = "SELECT p.status AS mine, q.status AS other FROM pool_second p, first.pool_first q"
    assert rows(Catalog(store.root), query) == [("second", "first")]
    with pytest.raises(SluiceError, match="pool_first"):
        Catalog(store.root).sql("FROM pool_first")
    assert rows(
        Catalog(store.root), "CREATE TABLE mine AS SELECT 1 AS x; SELECT x, q.status FROM mine, first.pool_first q"
    ) == [(1, "first")]


def test_a_store_without_a_run_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match="has no run; `sluice run DAG"):
        Catalog(str(tmp_path))


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT statu FROM pool", 'Referenced column "statu" not found.*"status"'),
        ("FROM pol", "Table with name pol does not exist.*pool"),
        ("SELEC 1", "syntax error"),
        ("SELECT status::INT FROM pool", "Could not convert string"),
    ],
)
def test_what_duckdb_objects_to_is_one_line(catalog: Catalog, query: str, said: str) -> None:
    with pytest.raises(SluiceError, match=said) as caught:
        catalog.sql(query)
    assert "\n" not in str(caught.value)


def test_a_query_takes_parameters_and_does_not_see_the_programs_variables(catalog: Catalog) -> None:
    mine = pa.table({"x": [1]})
    assert rows(catalog, "SELECT uid FROM pool WHERE status = ?", "http_404") == [("b",)]
    with pytest.raises(SluiceError, match="mine does not exist"):
        catalog.sql("FROM mine")
    assert mine.num_rows == 1


def test_a_remote_store_is_asked_for_nothing_but_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB wants to know of every file whether it exists, how large it is and when it changed: the records say so."""
    store = Store("memory://catalog")
    try:
        write_pool(store)
        write_run(store, write_tables(store))
        with Catalog(store.root) as catalog:
            asked = []
            for method in ("info", "glob", "exists", "modified", "open", "ls", "cat_file"):
                original = getattr(MemoryFileSystem, method)

                def spy(
                    self: Any, path: str, *rest: Any, _of: Any = original, _name: str = method, **named: Any
                ) -> Any:
                    asked.append(_name)
                    return _of(self, path, *rest, **named)

                monkeypatch.setattr(MemoryFileSystem, method, spy)
            assert rows(catalog, SAMPLES) == expected_samples(PAIRS)
            assert set(asked) <= {"cat_file", "open"}  # the memory file system opens a file to cat it
    finally:
        fsspec.filesystem("memory").rm("/catalog", recursive=True)


def test_asking_loads_neither_pandas_nor_ray_nor_torch(store: Store) -> None:
    write_pool(store)
    write_run(store, write_tables(store))
    program = (
        "import sys; from pipeline.catalog import Catalog; catalog = Catalog(sys.argv[1]);"
        "assert catalog.sql('FROM samples').num_rows == 5; assert catalog.funnel('kept').num_rows == 3;"
        "print([name for name in ('pandas', 'ray', 'torch') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program, store.root], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


# -- with the engine ---------------------------------------------------------------------------------------------------

TEXT = """
dag: toys
nodes:
  urls: {steps: [{tests.toys.Numbers: {rows: 40, parts: 4, captions: 2}}]}
  pool: {from: urls, steps: [{tests.toys.Fetch: {fails: 10, answers: ANSWERS}}]}
  copy: {from: urls, steps: [{tests.toys.Poison: {bad: []}}]}
  scores: {from: pool, steps: [tests.toys.Times, tests.toys.Label]}
  kept:
    from: [pool, copy, scores]
    steps: [{stages.select.Select: {rules: [
      {downloaded: status = 'success'}, {even: m % 2 = 0},
      {first: caption_id = min(caption_id) OVER (PARTITION BY uid)}]}}]
"""


def go(root: Path, retry: Sequence[str] = ()) -> None:
    """The server answers everything once `answers` exists."""
    text = TEXT.replace("ANSWERS", str(root / "answers"))
    run(Dag.parse(text), str(root), executor=Inline(Store(str(root))), retry=retry)


def test_a_run_of_the_engine_can_be_asked_before_and_after_a_retry(tmp_path: Path) -> None:
    go(tmp_path)
    with Catalog(str(tmp_path)) as catalog:
        before = dict(rows(catalog, "SELECT status, count(*) FROM pool GROUP BY ALL"))
        assert sum(before.values()) == 40
        assert before["success"] < 40
    (tmp_path / "answers").touch()
    go(tmp_path, retry=["pool"])
    with Catalog(str(tmp_path)) as catalog:
        after = dict(rows(catalog, "SELECT status, count(*) FROM pool GROUP BY ALL"))
        assert sum(after.values()) == 40
        assert after["success"] > before["success"]
        assert rows(catalog, "SELECT count(*), count(DISTINCT (uid, caption_id)) FROM samples") == [(80, 80)]
        assert rows(catalog, "SELECT count(*) FROM samples WHERE m <> n OR product <> 2 * n") == [(0,)]
        kept = rows(catalog, "SELECT n FROM samples WHERE kept ORDER BY n")
        assert kept == rows(catalog, "SELECT n FROM pool WHERE status = 'success' AND n % 2 = 0 ORDER BY n")
        drops = catalog.funnel("kept").to_pylist()
        assert drops[0]["pairs_in"] == 80
        assert drops[-1]["pairs_left"] == len(kept)
