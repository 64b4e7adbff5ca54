"""Rules in order: what they mean, what they may hold, and that they judge more rows than memory holds."""

import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import judge
from pipeline.errors import SluiceError
from pipeline.expression import functions
from pipeline.judge import locked
from pipeline.rules import Rules
from pipeline.stage import PIXELS, Column

COLUMNS = [
    Column(PIXELS, "pool", "image", pa.null()),
    Column("status", "pool", "image", pa.string()),
    Column("width", "pool", "image", pa.int32()),
    Column("meta", "pool", "image", pa.struct([("license", pa.string())])),
    Column("tags", "pool", "image", pa.list_(pa.string())),
    Column("score", "scores", "caption", pa.float64()),
    Column("width", "crops", "image", pa.int32()),
    Column("seen", "pool", "image", pa.timestamp("us", "UTC")),
]


def table(**columns: list[Any]) -> pa.Table:
    """Pairs with the columns of the pool and the scores that are named."""
    count = len(next(iter(columns.values())))
    types = {f"{c.node}.{c.name}": c.type for c in COLUMNS}
    keys = {"uid": [f"u{row:03}" for row in range(count)], "caption_id": ["c"] * count}
    owner = {"score": "scores"}
    named = {f"{owner.get(name, 'pool')}.{name}": values for name, values in columns.items()}
    return pa.table({**keys, **{name: pa.array(values, types[name]) for name, values in named.items()}})


def judged(rules: Any, pairs: pa.Table) -> list[str | None]:
    verdicts: list[str | None] = Rules(rules).check(COLUMNS).judge(pairs).to_pylist()
    return verdicts


# -- meaning -----------------------------------------------------------------------------------------------------------


def test_null_fails() -> None:
    assert judged([{"large": "pool.width >= 200"}], table(width=[300, None, 100])) == [None, "large", "large"]
    assert judged([{"known": "pool.width >= 200 OR NULL"}], table(width=[300, 100])) == [None, "known"]


def test_a_row_is_blamed_on_the_first_rule_that_it_fails_and_order_matters() -> None:
    ok, large = {"ok": "status = 'success'"}, {"large": "pool.width >= 200"}
    pairs = table(status=["success", "timeout", "timeout"], width=[100, 300, 100])
    assert judged([ok, large], pairs) == ["large", "ok", "ok"]
    assert judged([large, ok], pairs) == ["large", "ok", "large"]


NAN = float("nan")


@pytest.mark.parametrize(
    "sql",
    [
        *(
            "score > 0.3",
            "score >= 0.3",
            "0.3 < score",
            "score <> 0.1",
            "NOT score <= 0.3",
            "score BETWEEN 0.3 AND 'inf'",
        ),
        *("score - 1 > -0.7", "-score < -0.3", "score * 2 BETWEEN 0.6 AND 9e9", "greatest(score, 0.1) > 0.3"),
        *("[score][1] > 0.3", "len(list_filter([score * 1], lambda s: s > 0.3)) = 1", "score::FLOAT > 0.3"),
        *("CAST(replace('nan', 'x', status) AS DOUBLE) > 0.3 OR score > 0.3", "CASE WHEN true THEN score END > 0.3"),
        *(
            "score >= max(score) OVER () - 0.5",
            "score > avg(score) OVER () - 0.1",
            "score - 1 > min(score - 1) OVER ()",
        ),
        *("cume_dist() OVER (ORDER BY score DESC) <= 0.6", "percent_rank() OVER (ORDER BY score) >= 0.3"),
        *("ntile(2) OVER (ORDER BY score DESC) = 1", "ntile(4) OVER (ORDER BY score) >= 2"),
        *("cume_dist() OVER (ORDER BY 0 + score DESC, uid) <= 0.6", "rank() OVER (ORDER BY -score) <= 2"),
        *("row_number() OVER (ORDER BY score DESC) <= 2", "uid IN ('u001', 'u002') AND score IS NOT NULL"),
        "score >= quantile_cont(score, 0.4) OVER ()",
    ],
)
def test_nan_passes_nothing_and_hides_nothing(sql: str) -> None:
    """DuckDB takes NaN for the greatest number of all; to a rule it is no number."""
    pairs = table(score=[0.1, 0.7, 0.9, NAN], status=["x", "x", "x", "x"])
    assert judged([{"r": sql}], pairs) == ["r", None, None, "r"]
    pieces = Rules([{"r": sql}]).check(COLUMNS).judge_all([pairs.slice(0, 1), pairs.slice(1)])
    assert [code for piece in pieces for code in piece.tolist()] == [0, -1, -1, 0]


def test_nothing_divided_by_nothing_passes_nothing() -> None:
    pairs = table(width=[0, 3, 1], score=[0.0, 3.0, 4.0])
    assert judged([{"r": "score / pool.width >= 1"}], pairs) == ["r", None, None]
    assert judged([{"r": "row_number() OVER (ORDER BY pool.width / score DESC) = 1"}], pairs) == ["r", None, "r"]


def test_a_row_without_a_value_is_in_no_share_of_a_ranking() -> None:
    """Only one row of four has a score: the best half has one row, whichever end is the best."""
    pairs = table(score=[None, NAN, 0.5, None])
    for best in ("cume_dist() OVER (ORDER BY score DESC) <= 0.5", "percent_rank() OVER (ORDER BY score) >= 0.0"):
        assert judged([{"best": best}], pairs) == ["best", "best", None, "best"]


def test_comparisons_nested_beyond_reason_are_refused() -> None:
    sql = "score"
    for _ in range(40):
        sql = f"CASE WHEN {sql} + 1 > 0 THEN score END"
    with pytest.raises(SluiceError, match="rule 'r' compares too much inside what it compares"):
        Rules([{"r": f"{sql} > 0"}]).bind(COLUMNS)


def test_a_window_sees_only_the_survivors() -> None:
    """The best score of all was not downloaded; among the survivors another row is the best."""
    pairs = table(status=["success", "timeout", "success"], score=[0.5, 0.9, 0.7])
    best = {"best": "score = max(score) OVER ()"}
    assert judged([{"ok": "status = 'success'"}, best], pairs) == ["best", "ok", None]
    assert judged([best, {"ok": "status = 'success'"}], pairs) == ["best", "ok", "best"]


def test_a_second_window_sees_only_the_survivors_of_the_first() -> None:
    pairs = table(score=[1.0, 2.0, 3.0, 4.0])
    rules = [{"above": "score > avg(score) OVER ()"}, {"again": "score > avg(score) OVER ()"}]
    assert judged(rules, pairs) == ["above", "above", "again", None]


def test_a_rule_is_never_computed_on_rows_that_an_earlier_rule_dropped() -> None:
    pairs = table(status=["1", "none"], width=[1, 1])
    numeric = {"numeric": "regexp_full_match(status, '[0-9]+')"}
    assert judged([numeric, {"one": "CAST(status AS INT) = 1"}], pairs) == [None, "numeric"]
    with pytest.raises(SluiceError, match="rule 'one': Could not convert string 'none'"):
        judged([{"wide": "pool.width > 0"}, {"one": "CAST(status AS INT) = 1"}], pairs)


def test_tied_rows_are_kept_apart_by_their_keys() -> None:
    pairs = table(score=[0.5] * 100).take(pa.array(np.random.default_rng(0).permutation(100)))
    verdicts = judged([{"first": "row_number() OVER (ORDER BY score DESC) = 1"}], pairs)
    assert pairs["uid"].to_pylist()[verdicts.index(None)] == "u000"


def test_peers_of_a_frame_stay_peers() -> None:
    pairs = table(score=[0.5, 0.5, 0.7])
    frame = "RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING"
    peers = judged([{"r": f"first_value(score) OVER (ORDER BY score {frame}) = 0.5"}], pairs)
    assert peers == [None, None, "r"]
    assert judged([{"r": "rank() OVER (ORDER BY score) = 1"}], pairs) == [None, None, "r"]


def test_no_rows_have_no_verdicts() -> None:
    assert judged([{"large": "pool.width > 1"}], table(width=[])) == []
    assert judged([{"best": "score = max(score) OVER ()"}], table(score=[])) == []


def test_the_funnel_counts_what_each_rule_saw() -> None:
    rules = Rules([{"a": "true"}, {"b": "true"}, {"c": "true"}])
    funnel = rules.funnel(pa.array(["a", None, "c", "a", "superseded", None]))
    assert funnel == [
        {"rule": "a", "rows": 5, "dropped": 2, "left": 3},
        {"rule": "b", "rows": 3, "dropped": 0, "left": 3},
        {"rule": "c", "rows": 3, "dropped": 1, "left": 2},
    ]


Meaning = Callable[[dict[str, Any]], bool | None]


def conditions() -> st.SearchStrategy[tuple[str, Meaning]]:
    """SQL with what it means in three-valued logic, written down without looking at DuckDB."""

    def compared(column: str, literal: Any, sign: str) -> tuple[str, Meaning]:
        test = {"<": operator.lt, "=": operator.eq, ">=": operator.ge}[sign]
        sql = f"{column} {sign} {literal!r}"
        return sql, lambda row: None if row[column] is None else bool(test(row[column], literal))

    numbers = st.builds(compared, st.just("score"), st.integers(-2, 3), st.sampled_from(["<", "=", ">="]))
    words = st.builds(compared, st.just("status"), st.sampled_from(["a", "b"]), st.sampled_from(["<", "=", ">="]))
    nulls = st.sampled_from(["score", "status"]).map(lambda c: (f"{c} IS NULL", lambda row: row[c] is None))

    def negated(inner: tuple[str, Meaning]) -> tuple[str, Meaning]:
        return f"NOT ({inner[0]})", lambda row: None if (value := inner[1](row)) is None else not value

    def both(one: tuple[str, Meaning], other: tuple[str, Meaning]) -> tuple[str, Meaning]:
        def meaning(row: dict[str, Any]) -> bool | None:
            values = (one[1](row), other[1](row))
            return False if False in values else None if None in values else True

        return f"({one[0]}) AND ({other[0]})", meaning

    def either(one: tuple[str, Meaning], other: tuple[str, Meaning]) -> tuple[str, Meaning]:
        def meaning(row: dict[str, Any]) -> bool | None:
            values = (one[1](row), other[1](row))
            return True if True in values else None if None in values else False

        return f"({one[0]}) OR ({other[0]})", meaning

    return st.recursive(
        numbers | words | nulls,
        lambda inner: st.builds(negated, inner) | st.builds(both, inner, inner) | st.builds(either, inner, inner),
        max_leaves=4,
    )


ROW = st.fixed_dictionaries(
    {"status": st.none() | st.sampled_from(["a", "b", "c"]), "score": st.none() | st.integers(-3, 4).map(float)}
)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROW, max_size=12), rules=st.lists(conditions(), min_size=1, max_size=4))
def test_rules_over_one_row_mean_what_python_says(rows: list[dict[str, Any]], rules: list[tuple[str, Meaning]]) -> None:
    named = [{f"r{place}": sql} for place, (sql, _) in enumerate(rules)]
    expected = []
    for row in rows:
        failed = (f"r{place}" for place, (_, meaning) in enumerate(rules) if meaning(row) is not True)
        expected.append(next(failed, None))
    pairs = table(status=[row["status"] for row in rows], score=[row["score"] for row in rows])
    assert judged(named, pairs) == expected


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(ROW, max_size=12), rule=conditions(), cut=st.integers(0, 12))
def test_rows_judged_in_pieces_are_judged_together(
    rows: list[dict[str, Any]], rule: tuple[str, Meaning], cut: int
) -> None:
    rules = [{"r0": rule[0]}, {"mid": "score >= median(score) OVER ()"}, {"few": "count(*) OVER () < 4"}]
    bound = Rules(rules).check(COLUMNS)
    pairs = table(status=[row["status"] for row in rows], score=[row["score"] for row in rows])
    pieces = [bound.names_of(codes) for codes in bound.judge_all([pairs.slice(0, cut), pairs.slice(cut)])]
    assert [name for piece in pieces for name in piece.to_pylist()] == bound.judge(pairs).to_pylist()


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "reads"),
    [
        ("status = 'a'", ["pool.status"]),
        ("pool.width > crops.width", ["crops.width", "pool.width"]),
        ("uid = pool.uid AND scores.caption_id <> ''", ["caption_id", "uid"]),
        ("meta['license'] = 'cc0'", ["pool.meta"]),
        ("len(list_filter(tags, lambda status: status = 'x')) > 0", ["pool.tags"]),
        ("len(list_filter(tags, lambda tag: tag = status)) > 0", ["pool.status", "pool.tags"]),
        ('"status" = $$it\'s$$ -- why', ["pool.status"]),
        ("score > quantile_cont(score, 0.3) OVER (PARTITION BY status)", ["pool.status", "scores.score"]),
        ("row_number() OVER (ORDER BY score) = 1", ["caption_id", "scores.score", "uid"]),
    ],
)
def test_only_the_columns_that_a_rule_reads_are_needed(sql: str, reads: list[str]) -> None:
    bound = Rules([{"r": sql}]).check(COLUMNS)
    assert bound.reads() == reads
    assert set(bound.schema().names) == {"uid", "caption_id", *reads}


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("widht > 1", "rule 'r' reads 'widht', which no node has; did you mean 'width'?"),
        ("width > 1", "rule 'r' reads 'width', which several nodes have; write pool.width or crops.width"),
        ("pol.width > 1", "rule 'r' reads 'pol.width', but no node is named 'pol'; did you mean 'pool'?"),
        ("pool.score > 1", "rule 'r' reads 'pool.score', but pool has no column 'score'"),
        ("meta.license = 'x'", "a field is written meta['license']"),
        ("pool.meta.license = 'x'", "a field is written pool.meta['license']"),
        ("Status = 'x'", "did you mean 'status'?"),
        ("score", "rule 'r' is DOUBLE, not BOOLEAN"),
        ("NULL", "not BOOLEAN"),
        ("status > [1]", "rule 'r': Cannot compare values of type VARCHAR"),
        ("lowr(status) = 'x'", "rule 'r' calls lowr(), which DuckDB does not have; did you mean 'lower'?"),
        ("score > avg(score)", "avg(), which looks at many rows; write avg(…) OVER ()"),
        ("scores.score > (SELECT 1)", "has a subquery"),
        ("status.lower() = 'x'", "write lower(status, …)"),
        ("len(tags -> tags) > 1", "has an arrow"),
        (f"{'(' * 3000}true{')' * 3000}", "rule 'r'"),
        (f"status = '{'x' * 30_000}'", "characters; at most 20,000"),
    ],
)
def test_an_error_is_one_line_with_the_rule_and_the_remedy(sql: str, said: str) -> None:
    with pytest.raises(SluiceError) as caught:
        Rules([{"r": sql}]).check(COLUMNS)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rules",
    [[], {}, "true", [{"a": "true", "b": "true"}], [{"a": "true"}, {"a": "true"}], ["true"], [{"a": True}]]
    + [[{name: "true"}] for name in ("", "2nd", "a b", "a-b", "größe", "superseded", "a'; --")],
)
def test_rules_that_are_no_named_conditions_are_refused(rules: Any) -> None:
    with pytest.raises(SluiceError, match="rule"):
        Rules(rules)


def test_rules_split_before_the_first_window() -> None:
    rules = Rules({"a": "pool.width > 1", "b": "score > avg(score) OVER ()", "c": "status = 'x'"})
    leading, rest = rules.split()
    assert (leading.names, rest.names) == (("a",), ("b", "c"))
    assert (leading.local, rest.local, rules.local) == (True, False, False)


# -- what may not be ---------------------------------------------------------------------------------------------------

ESCAPES = [
    *("1=1) --", "true) OR (true", "true; DROP TABLE pairs", "true;", "SELECT true", "(SELECT true)", "true --\n) --"),
    *("true /*", "true */ /*", "true, true", "true AS x", "true FROM pairs", "true WHERE true", "true LIMIT 1"),
    *("true UNION SELECT true", "true QUALIFY true", "DISTINCT true", "true ORDER BY 1", "true WINDOW w AS ()"),
    *("true OFFSET 1", "true GROUP BY 1", "true USING SAMPLE 1", "*", "pairs.*", "COLUMNS('.*')", "#1", "?", "$1"),
    *("DEFAULT", "", "--", "FROM pairs", "VALUES (true)", "TABLE pairs", "WITH x AS (SELECT true) SELECT * FROM x"),
    *("WITH x AS (INSERT INTO pairs VALUES (1) RETURNING true) SELECT * FROM x", "ATTACH '/tmp/x.db'"),
    *(
        "COPY pairs TO '/tmp/x.csv'",
        "COPY (SELECT 1) TO '/tmp/x.csv'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "PRAGMA version",
    ),
    *(
        "SET enable_external_access = true",
        "CALL pragma_version()",
        "EXPORT DATABASE '/tmp/x'",
        "CREATE TABLE x(a INT)",
    ),
    *(
        "EXISTS (FROM read_csv('/etc/passwd'))",
        "(FROM '/etc/passwd') IS NOT NULL",
        "uid IN (FROM read_text('/etc/passwd'))",
    ),
    *("read_text('/etc/passwd') IS NOT NULL", "read_blob('/etc/passwd') IS NULL", "glob('/etc/*') IS NULL"),
    *("getenv('HOME') = ''", "query('SELECT true')", "query_table('pairs')", "json_execute_serialized_sql('{}')"),
    *("current_setting('secret_directory') = ''", "getvariable('x') = 1", "duckdb_secrets() IS NULL", "pairs.uid = ''"),
    *("main.pairs.uid = ''", "rowid = 1", "pairs IS NULL", "system.main.lower('X') = 'x'", "write_log('x') IS NULL"),
    *("sleep_ms(1) IS NULL", "error('x')", "nextval('s') = 1", "ARRAY(SELECT true)[1]", "uid = ANY(SELECT uid)"),
    *("__internal_decompress_string('x') = ''", "unnest([true])", "generate_subscripts(tags, 1) = 1", "x'00' AND"),
    *("json_serialize_plan('FROM read_csv(''/etc/passwd'')') IS NULL", "format_type(1, 1) = ''", "'\\'' OR true --"),
]


@pytest.mark.parametrize("sql", ESCAPES)
def test_sql_that_is_more_than_a_condition_is_refused(sql: str) -> None:
    with pytest.raises(SluiceError, match="rule 'r'"):
        Rules([{"r": sql}]).check(COLUMNS)


@pytest.mark.parametrize(
    "sql",
    [
        *(
            "random() > 0.5",
            "seen < now()",
            "seen < current_timestamp",
            "seen::DATE < current_date",
            "seen < get_current_time()",
        ),
        *("uuid() = uid", "seen::DATE < today()", "ago(INTERVAL 1 DAY) < seen", "version() = 'x'", "user = 'x'"),
        *(
            "age(seen) < INTERVAL 1 DAY",
            "current_localtimestamp() > seen",
            "txid_current() = 1",
            "current_query() = ''",
        ),
        *("reservoir_quantile(score, 0.5) OVER () < score", "pg_sleep(1) IS NULL", "lower(current_schema()) = ''"),
    ],
)
def test_what_differs_between_runs_is_refused(sql: str) -> None:
    with pytest.raises(SluiceError, match="rules must be repeatable"):
        Rules([{"r": sql}]).check(COLUMNS)


def test_every_function_whose_answer_duckdb_calls_volatile_is_refused() -> None:
    volatile = [name for name, function in functions().items() if not function.repeatable]
    assert len(volatile) > 20
    for name in volatile:
        with pytest.raises(SluiceError, match="rules must be repeatable"):
            Rules([{"r": f'"{name}"() IS NULL'}])


@pytest.mark.parametrize(
    "statement",
    [
        *("FROM read_csv('{file}')", "FROM read_text('{file}')", "FROM '{file}'", "COPY (SELECT 1) TO '{file}.out'"),
        *(
            "ATTACH '{file}.db'",
            "INSTALL httpfs",
            "LOAD httpfs",
            "SET enable_external_access = true",
            "RESET memory_limit",
        ),
        *(
            "SET allowed_paths = ['{file}']",
            "EXPORT DATABASE '{file}.d'",
            "CREATE SECRET s (TYPE s3)",
            "FROM secret_table",
        ),
        *("IMPORT DATABASE '{file}'", "SET lock_configuration = false", "FROM glob('{file}')", "CHECKPOINT nothing"),
    ],
)
def test_a_locked_duckdb_does_none_of_it_even_when_asked_outright(statement: str, tmp_path: Path) -> None:
    """The second wall: should the screen ever let something through, there is nothing behind it to reach."""
    secret_table = pa.table({"secret": [1]})
    file = tmp_path / "secret.csv"
    file.write_text("secret\n1\n")
    with locked() as connection, pytest.raises(duckdb.Error):
        connection.execute(statement.format(file=file)).fetchall()
    assert secret_table.num_rows == 1
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


# -- size --------------------------------------------------------------------------------------------------------------


def many(parts: int, rows: int) -> Iterator[pa.Table]:
    rng = np.random.default_rng(1)
    for part in range(parts):
        uids = pa.array([f"{part:016x}{row:016x}" for row in range(rows)])
        scores = pa.array(rng.random(rows))
        groups = pa.array(rng.integers(0, parts * rows // 3, rows), pa.int32())
        yield pa.Table.from_arrays([uids, uids, scores, groups], ["uid", "caption_id", "scores.score", "pool.width"])


def test_more_rows_than_memory_holds_are_spilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """400,000 survivors take about 45 MB; without a folder to spill to, 40 MB are proven to be too little."""
    best = {"best": "uid = first_value(uid) OVER (PARTITION BY pool.width ORDER BY score DESC)"}
    bound = Rules([best]).check(COLUMNS)
    kept = sum(int((codes == judge.KEPT).sum()) for codes in bound.judge_all(many(40, 10_000), memory="40MB"))
    groups = {int(group) for piece in many(40, 10_000) for group in np.unique(piece["pool.width"])}
    assert kept == len(groups)

    unspilled = judge.locked
    monkeypatch.setattr(judge, "locked", lambda memory, threads, folder: unspilled(memory, threads, ""))
    with pytest.raises(SluiceError, match="could not allocate"):
        list(bound.judge_all(many(40, 10_000), memory="40MB"))


@pytest.mark.parametrize(("sql", "threads"), [("score > avg(score) OVER ()", 1), ("score = max(score) OVER ()", None)])
def test_sums_of_floats_are_added_by_one_thread(sql: str, threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their last bit depends on the order of addition, and a pure stage promises the same bytes."""
    asked = []
    original = judge.locked

    def recorded(memory: str, threads: int | None, folder: str) -> duckdb.DuckDBPyConnection:
        asked.append(threads)
        return original(memory, threads, folder)

    monkeypatch.setattr(judge, "locked", recorded)
    Rules([{"r": sql}]).bind(COLUMNS).judge(table(score=[1.0, 2.0]))
    assert asked == [threads]
