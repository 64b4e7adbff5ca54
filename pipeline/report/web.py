"""How the web answered: rows by status, hosts by rows, and files that many URLs serve.

Any image table with `url` and `status` says so, with `sha256` also which URLs have the same bytes.
"""

# ruff: noqa: S608 - names are quoted
from __future__ import annotations

from dataclasses import dataclass

from pipeline.judge import name
from pipeline.pairs import Table, live
from pipeline.report.numbers import Ask

SUCCESS = "success"
HOSTS = 25
STATUSES = 40
PLACEHOLDERS = 12
LEAST_URLS = 3
"""So many URLs with the very same bytes are a placeholder, or one picture that many pages show."""
BY_HOST = name("urls by host and status")
"""No node can have such a name."""
HOST = "lower(regexp_replace(regexp_extract(url, '^[^:/?#]*://([^/?#]*)', 1), '^.*@', ''))"


@dataclass(frozen=True)
class Host:
    """A host: its URLs, how many of them gave an image, and how the others ended, the most frequent first."""

    name: str
    urls: int
    success: int
    failures: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Placeholder:
    """A file that many URLs serve."""

    sha256: str
    urls: int
    hosts: int
    sample: str
    """One of the URLs."""
    uid: str
    """Its image."""


@dataclass(frozen=True)
class WebReport:
    """What one pool says about the web."""

    node: str
    urls: int
    images: int
    """URLs that gave one."""
    statuses: tuple[tuple[str, int], ...]
    """URLs by how they ended, the most frequent first."""
    all_statuses: int
    hosts: tuple[Host, ...]
    """The largest ones."""
    all_hosts: int
    placeholders: tuple[Placeholder, ...]


def web_report(ask: Ask, table: Table) -> WebReport | None:
    """None where a table says nothing of URLs."""
    if table.kind != "image" or not {"url", "status"} <= set(table.schema.names):
        return None
    rows = f"({live(table)})"
    # Hosts are told apart once for every status: a host has few of them, a pool has many hosts.
    by_host = f"SELECT {HOST} AS host, status, count(*) AS n FROM {rows} GROUP BY ALL"
    ask(f"CREATE OR REPLACE TEMP TABLE {BY_HOST} AS {by_host}")
    statuses = ask(
        "SELECT coalesce(status, 'null') AS status, sum(n)::BIGINT AS n, sum(sum(n)) OVER ()::BIGINT AS urls, "
        f"sum(sum(n) FILTER (status = '{SUCCESS}')) OVER ()::BIGINT AS images, count(*) OVER () AS statuses "
        f"FROM {BY_HOST} GROUP BY ALL ORDER BY n DESC, status LIMIT {STATUSES}"
    ).to_pylist()
    whole = statuses[0] if statuses else {"urls": 0, "images": 0, "statuses": 0}
    hosts = ask(
        f"SELECT host, sum(n)::BIGINT AS urls, coalesce(sum(n) FILTER (status = '{SUCCESS}'), 0)::BIGINT AS success, "
        f"list({{'status': status, 'n': n}} ORDER BY n DESC, status) FILTER (status <> '{SUCCESS}') AS failures, "
        f"count(*) OVER () AS hosts FROM {BY_HOST} GROUP BY host ORDER BY urls DESC, host LIMIT {HOSTS}"
    ).to_pylist()
    ask(f"DROP TABLE {BY_HOST}")
    return WebReport(
        table.node,
        whole["urls"],
        whole["images"] or 0,
        tuple((row["status"], row["n"]) for row in statuses),
        whole["statuses"],
        tuple(
            Host(
                row["host"] or "",
                row["urls"],
                row["success"],
                tuple((f["status"], f["n"]) for f in row["failures"] or []),
            )
            for row in hosts
        ),
        hosts[0]["hosts"] if hosts else 0,
        _placeholders(ask, rows) if "sha256" in table.schema.names else (),
    )


def _placeholders(ask: Ask, rows: str) -> tuple[Placeholder, ...]:
    # Of hashes: 8 bytes a file are held instead of 64 and more.
    several = (
        f"SELECT hash(sha256) AS h, count(*) AS n FROM {rows} "
        f"WHERE status = '{SUCCESS}' AND sha256 IS NOT NULL GROUP BY h "
        f"HAVING n >= {LEAST_URLS} ORDER BY n DESC, h LIMIT {2 * PLACEHOLDERS}"
    )
    found = ask(
        f"SELECT sha256, count(*) AS urls, count(DISTINCT {HOST}) AS hosts, min(url) AS sample, min(uid) AS uid "
        f"FROM {rows} AS one SEMI JOIN ({several}) AS several ON hash(one.sha256) = several.h "
        f"WHERE status = '{SUCCESS}' GROUP BY sha256 HAVING urls >= {LEAST_URLS} "
        f"ORDER BY urls DESC, sha256 LIMIT {PLACEHOLDERS}"
    ).to_pylist()
    return tuple(Placeholder(**row) for row in found)
