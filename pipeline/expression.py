"""One SQL expression that comes from elsewhere: parsed, screened, and its names resolved.

DuckDB parses the text to a tree. The tree is checked against what a rule may hold, the columns in it are replaced, and
the SQL that is executed is printed from the tree: the text itself is never pasted into a query.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import duckdb

from pipeline.errors import SluiceError, did_you_mean

Node = dict[str, Any]
"""A node of DuckDB's parse tree."""
Names = tuple[str, ...]
"""A column as written: `("width",)` or `("pool", "width")`."""

MAX_CHARACTERS = 20_000
ORDER_KEYS = ("uid", "caption_id")
"""They tell any two pairs apart, so that rows that tie in a window's order still have one order."""

PLAIN = {"CASE", "CAST", "TYPE", "BETWEEN", "COLLATE", "COMPARISON", "CONJUNCTION", "CONSTANT", "OPERATOR"}
REFUSED = {
    "SUBQUERY": "has a subquery; write list_contains(l, x) for x = ANY(l), and avg(x) OVER () for an average of all",
    "STAR": "has a *; name the columns",
    "PARAMETER": "has a parameter; write the value itself",
    "POSITIONAL_REFERENCE": "refers to a column by its number; name it",
}
TIE_BROKEN = {"row_number", "ntile", "lead", "lag", "first_value"}
"""Window functions that depend on the order of tied rows, and mean the same when the ties are broken."""
STEADY = {
    *("rank", "dense_rank", "rank_dense", "percent_rank", "cume_dist"),
    *("count", "count_star", "count_if", "countif", "min", "max", "bool_and", "bool_or"),
    *("quantile_cont", "quantile_disc", "median", "mad"),
}
"""Window functions with the same result in whatever order threads add the rows: no sum of floats is among them."""
SHARES = {"cume_dist", "percent_rank", "ntile"}
"""Window functions that say where a row stands between the first and the last: a row without a value stands nowhere."""
COMPARED = {"COMPARISON": ("left", "right"), "BETWEEN": ("input", "lower", "upper")}
"""Where a node of a class has what it compares."""
NUMBER = "CASE WHEN typeof(x) IN ('FLOAT', 'DOUBLE') AND isnan(TRY_CAST(x AS DOUBLE)) THEN NULL ELSE x END"
"""`x`, but NULL for NaN. DuckDB computes x once, and leaves the rest out where x is no float."""
PLACED = "CASE WHEN k IS NOT NULL THEN w END"
"""`w`, the place of a row in the order of `k`, for the rows that have a `k`."""
MAX_NODES = 5_000
"""Of an expression with what was put around its values: every nesting repeats what is nested."""
UNREPEATABLE = {
    *("version", "current_setting", "current_localtime", "current_localtimestamp", "reservoir_quantile"),
    *("json_serialize_sql", "json_deserialize_sql", "json_serialize_plan"),
}
"""DuckDB calls these consistent, but the clock, a sample, or the engine's version and settings decide."""
CLOCKS_AND_USERS = {
    *("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"),
    *("user", "current_user", "session_user", "current_role", "current_catalog", "current_schema"),
}
"""They look like columns; DuckDB takes them for functions where no column has the name."""


@dataclass(frozen=True)
class Function:
    """What DuckDB says about a function name, all its forms together."""

    kinds: frozenset[str]
    repeatable: bool
    macros: tuple[tuple[str, frozenset[str]], ...]
    """(definition, parameters) of the forms that are macros."""


class Expression:
    """One expression over the columns of a row, perhaps with windows over all rows.

    Raises `SluiceError` for anything else: statements, subqueries, bare aggregates, and what is not repeatable.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._tree = parse(text)
            _screen(self._tree)
            nodes = list(_nodes(self._tree))
        except RecursionError:
            raise SluiceError("is nested too deeply; use fewer parentheses") from None
        windows = [node for node, _ in nodes if node["class"] == "WINDOW"]
        self.local = not windows
        """Whether a row's verdict depends on that row alone."""
        self.steady = all(_function_name(node) in STEADY or _breaks_ties(node) for node in windows)
        """Whether any number of threads give the same verdicts."""
        columns = [_column_names(node) for node, bound in nodes if _is_column(node, bound)]
        self.names: tuple[Names, ...] = tuple(dict.fromkeys(columns))
        """The columns, as written."""

    def bind(self, resolve: Callable[[Names], str]) -> tuple[str, frozenset[str]]:
        """The SQL with every column replaced by what `resolve` gives, and the columns that it then reads.

        DuckDB takes NaN for the greatest number of all. In this SQL, one that is computed is NULL to every comparison
        and window; those in columns are for the caller to make NULL. A row without a value is in no share of a ranking.

        Raises `SluiceError` where DuckDB does not print back what it parsed.
        """
        tree = deepcopy(self._tree)
        reads = set()
        for node, bound in list(_nodes(tree)):
            if _is_column(node, bound):
                node["column_names"] = [resolve(_column_names(node))]
                reads.add(node["column_names"][0])
            elif node["class"] == "WINDOW" and _breaks_ties(node):
                orders = node["arg_orders"] or node["orders"]
                ordered = [order["expression"] for order in orders]
                orders += [order for order in _key_orders() if order["expression"] not in ordered]
                reads.update(ORDER_KEYS)
        _make_nan_null(tree)
        return printed(tree), frozenset(reads)


# -- the parser --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:")
    connection.execute("SET enable_external_access = false")
    return connection


def parse(text: str) -> Node:
    """The tree of `text`, which must be one expression and nothing else.

    It must parse to the same tree bare and in parentheses: bare refuses `1) OR (1`, parentheses refuse `1 LIMIT 1`.
    Raises `SluiceError`.
    """
    if len(text) > MAX_CHARACTERS:
        raise SluiceError(f"has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    bare, enclosed = _select(text), _select(f"(\n{text}\n)")
    if bare is None or bare != enclosed or bare["alias"]:
        raise SluiceError("is not one expression; write a condition on columns such as width >= 200")
    return bare


def _select(expression: str) -> Node | None:
    """The tree of the only item of `SELECT <expression>`; None where the text says more than that."""
    answer = _connection().cursor().execute("SELECT json_serialize_sql(?)", [f"SELECT {expression}"]).fetchone()
    parsed = json.loads(answer[0]) if answer else {}
    if parsed["error"]:
        if parsed.get("error_type") == "parser":
            raise SluiceError(f"is no SQL expression: {parsed['error_message']}")
        return None
    select = _without_places(parsed["statements"][0]["node"])
    items: list[Node] = select.pop("select_list", [])
    alone = len(parsed["statements"]) == 1 and len(items) == 1 and select == _empty_select()
    return items[0] if alone else None


@lru_cache(maxsize=1)
def _empty_select() -> Node:
    """What surrounds the item of a SELECT that has nothing else."""
    answer = _connection().cursor().execute("SELECT json_serialize_sql('SELECT 1')").fetchone()
    assert answer is not None
    select: Node = _without_places(json.loads(answer[0])["statements"][0]["node"])
    del select["select_list"]
    return select


def _without_places(value: Any) -> Any:
    """Without where in the text a node stood, and without how an operator was written."""
    if isinstance(value, dict):
        ignored = ("query_location", "query_location_length", "is_operator")
        return {name: _without_places(inner) for name, inner in value.items() if name not in ignored}
    return [_without_places(inner) for inner in value] if isinstance(value, list) else value


def printed(tree: Node) -> str:
    """SQL that parses to `tree` again, operators between their operands."""
    select = {**_empty_select(), "select_list": [_with_operators(tree)]}
    document = json.dumps({"error": False, "statements": [{"node": select, "named_param_map": []}]})
    answer = _connection().cursor().execute("SELECT json_deserialize_sql(?::JSON)", [document]).fetchone()
    sql = str(answer[0]).removeprefix("SELECT ") if answer else ""
    if _select(sql) != tree:
        raise SluiceError(
            "is not printed back unchanged by DuckDB; write it another way, such as list_filter() for [x for …]"
        )
    return sql


def _with_operators(value: Any) -> Any:
    """As `printed` reads it: `a + b` instead of `"+"(a, b)`."""
    if isinstance(value, list):
        return [_with_operators(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    node = {name: _with_operators(inner) for name, inner in value.items()}
    if node.get("class") == "FUNCTION" and not _function_name(node).isidentifier():
        node["is_operator"] = True
    return node


@lru_cache(maxsize=1)
def _order_template() -> str:
    return json.dumps(parse(f"row_number() OVER (ORDER BY {', '.join(ORDER_KEYS)})")["orders"])


def _key_orders() -> list[Node]:
    orders: list[Node] = json.loads(_order_template())
    return orders


# -- the tree ----------------------------------------------------------------------------------------------------------


def _nodes(value: Any, bound: frozenset[str] = frozenset()) -> Iterator[tuple[Node, frozenset[str]]]:
    """Every node in a tree, with the names that the lambdas around it bind. The parameters themselves are left out."""
    if isinstance(value, list):
        for inner in value:
            yield from _nodes(inner, bound)
        return
    if not isinstance(value, dict):
        return
    if "class" in value:
        yield value, bound
    if value.get("class") == "LAMBDA":
        columns = [node for node, _ in _nodes(value["lhs"]) if node["class"] == "COLUMN_REF"]
        parameters = {name for node in columns for name in node["column_names"]}
        yield from _nodes(value["expr"], bound | parameters)
        return
    for inner in value.values():
        yield from _nodes(inner, bound)


def _make_nan_null(tree: Node) -> None:
    """Let comparisons and windows see NULL where what they look at is computed and comes to NaN."""
    nodes = list(_nodes(tree))
    for node, bound in reversed(nodes):  # the inner ones first: what is computed stands three times in `NUMBER`
        looked_at = [(node, side) for side in COMPARED.get(node["class"], ()) if "DISTINCT" not in node["type"]]
        if node["class"] == "WINDOW":
            owners = [*node["orders"], *node["arg_orders"], *node["arguments"]]
            looked_at += [(owner, "expression") for owner in owners]
        for owner, place in looked_at:
            if _may_be_nan(owner[place], bound):
                if sum(1 for _ in _nodes(owner[place])) > MAX_NODES:
                    raise SluiceError("compares too much inside what it compares; write it as several rules")
                owner[place] = _filled(NUMBER, x=owner[place])
    for node, _ in nodes:
        if _is_share(node) and node["orders"]:
            window = dict(node)
            node.clear()
            node.update(_filled(PLACED, k=window["orders"][0]["expression"], w=window))


def _may_be_nan(node: Node, bound: frozenset[str]) -> bool:
    """Whether a node is computed from a column, and neither a truth value nor a share."""
    if _is_column(node, bound) or _is_share(node) or node["class"] in ("COMPARISON", "BETWEEN", "CONJUNCTION"):
        return False
    return any(inner["class"] == "COLUMN_REF" for inner, _ in _nodes(node))


def _is_share(node: Node) -> bool:
    return node["class"] == "WINDOW" and _function_name(node) in SHARES


def _filled(template: str, **trees: Node) -> Node:
    """The tree of `template`, with a copy of a tree for each column that is named like it."""
    node = deepcopy(_template(template))
    for column in [column for column, _ in _nodes(node) if column["class"] == "COLUMN_REF"]:
        tree = deepcopy(trees[column["column_names"][0]])
        column.clear()
        column.update(tree)
    return node


@lru_cache(maxsize=4)
def _template(text: str) -> Node:
    return parse(text)


def _is_column(node: Node, bound: frozenset[str]) -> bool:
    return node["class"] == "COLUMN_REF" and node["column_names"][0] not in bound


def _column_names(node: Node) -> Names:
    return tuple(node["column_names"])


def _breaks_ties(window: Node) -> bool:
    """Whether more keys may end the window's ORDER BY: not where its frame counts peers, which they would part."""
    start, end = window["start"], window["end"]
    counts_peers = start.endswith(("RANGE", "GROUPS")) or (end.startswith("EXPR") and end.endswith(("RANGE", "GROUPS")))
    return _function_name(window) in TIE_BROKEN and not counts_peers


def _function_name(node: Node) -> str:
    return str(node["qualified_name"]["path"][-1]).lower()


# -- what may be in it -------------------------------------------------------------------------------------------------


def _screen(tree: Node, parameters: frozenset[str] | None = None) -> None:
    """Raise `SluiceError` for what a rule may not hold. `parameters`: of the macro whose definition this is."""
    for node, bound in _nodes(tree):
        kind = node["class"]
        if kind in REFUSED:
            raise SluiceError(REFUSED[kind])
        if kind == "LAMBDA" and node["syntax_type"] != "LAMBDA_KEYWORD":
            raise SluiceError(
                "has an arrow ->; write list_filter(l, lambda x: x > 1), or json_extract(j, '$.a') for JSON"
            )
        if kind in ("FUNCTION", "WINDOW"):
            _screen_function(node)
        elif kind == "COLUMN_REF":
            if parameters is not None and _is_column(node, bound | parameters):
                _refuse_unrepeatable(node["column_names"][0])
        elif kind not in PLAIN and kind != "LAMBDA":
            raise SluiceError(f"holds {kind.lower()}, which a rule may not; write a condition such as width >= 200")


def _screen_function(node: Node) -> None:
    *owner, name = node["qualified_name"]["path"]
    shown = str(name).lower()
    known = functions().get(shown)
    if owner:
        raise SluiceError(f"calls {'.'.join([*owner, name])}(); write {name}({'.'.join(owner)}, …)")
    if known is None or shown.startswith("__"):
        raise SluiceError(f"calls {name}(), which DuckDB does not have{did_you_mean(shown, functions())}")
    if not known.repeatable or shown in UNREPEATABLE or (shown == "age" and len(node.get("arguments", ())) < 2):
        _refuse_unrepeatable(f"{name}()")
    if known.kinds == {"table"}:
        raise SluiceError(f"calls {name}(), which makes many rows of one; write list_contains() or list_filter()")
    if node["class"] == "FUNCTION" and not known.kinds & {"scalar", "macro"}:
        raise SluiceError(f"calls {name}(), which looks at many rows; write {name}(…) OVER () for all rows")
    for definition, parameters in known.macros:
        _screen(parse(definition), parameters)


def _refuse_unrepeatable(what: str) -> NoReturn:
    raise SluiceError(f"reads {what}, which can differ between runs; rules must be repeatable")


def refuse_clocks(names: Names) -> None:
    """Raise `SluiceError` for a name that is no column but that DuckDB would take for the clock or the user."""
    if len(names) == 1 and names[0].lower() in CLOCKS_AND_USERS:
        _refuse_unrepeatable(names[0])


@lru_cache(maxsize=1)
def functions() -> Mapping[str, Function]:
    """Every function that DuckDB has, by name in small letters."""
    query = """
        SELECT lower(function_name), function_type, stability, macro_definition, parameters FROM duckdb_functions()
    """
    rows = _connection().cursor().execute(query).fetchall()
    found: dict[str, Function] = {}
    for name, kind, stability, definition, parameters in rows:
        before = found.get(name, Function(frozenset(), True, ()))
        macro = ((definition, frozenset(parameters)),) if kind == "macro" else ()
        repeatable = before.repeatable and stability in (None, "CONSISTENT")
        found[name] = Function(before.kinds | {kind}, repeatable, before.macros + macro)
    return found
