"""What a pool says about the web: which links have rotted, and which images stand for what is no longer there.

    sluice links runs/demo --pool pool

Joined to the command line through the entry-point group `sluice.commands`.
"""

import click
import pyarrow as pa

from pipeline import cli, show
from pipeline.catalog import Catalog
from pipeline.errors import SluiceError, did_you_mean
from pipeline.judge import name
from pipeline.report.web import HOST, LEAST_URLS

STATUSES_SHOWN = 3
POOL_COLUMNS = ("url", "status", "sha256", "final_url")


def pool_of(catalog: Catalog, pool: str | None = None) -> str:
    """The pool that is meant: the one that is named, or the only one. Raises `SluiceError`."""
    found = catalog.sql(
        "SELECT table_name FROM information_schema.columns WHERE table_schema = ? AND list_contains(?, column_name) "
        "GROUP BY ALL HAVING count(*) = ? ORDER BY ALL",
        [catalog.run.dag, list(POOL_COLUMNS), len(POOL_COLUMNS)],
    )
    pools = [str(node) for node in found.column(0).to_pylist() if node != "samples"]
    if pool is None and len(pools) == 1:
        return pools[0]
    if pool is None:
        raise SluiceError(
            f"run {catalog.run.id} has {len(pools)} pools ({', '.join(pools) or 'none'}); name one with --pool"
        )
    if pool not in pools:
        raise SluiceError(f"run {catalog.run.id} has no pool {pool!r}{did_you_mean(pool, pools)}")
    return pool


def statuses(catalog: Catalog, pool: str) -> pa.Table:
    """How the rows of a pool ended: `status`, `urls`, `share` of all, `hosts`; the most frequent first."""
    return catalog.sql(
        f"SELECT status, count(*) AS urls, count(*) / sum(count(*)) OVER () AS share, count(DISTINCT {HOST}) AS hosts "  # noqa: S608
        f"FROM {name(pool)} GROUP BY ALL ORDER BY urls DESC, status"
    )


def link_rot(catalog: Catalog, pool: str) -> pa.Table:
    """By host: `urls`, `success` (the share of them), `failures` (the most frequent three, with counts)."""
    return catalog.sql(
        f"""
        WITH counts AS (SELECT {HOST} AS host, status, count(*) AS n FROM {name(pool)} GROUP BY ALL)
        SELECT host, sum(n)::BIGINT AS urls, coalesce(sum(n) FILTER (status = 'success'), 0) / sum(n) AS success,
            array_to_string((list(status || ' ' || n ORDER BY n DESC, status) FILTER (status <> 'success'))
                [:{STATUSES_SHOWN}], ', ') AS failures
        FROM counts GROUP BY host ORDER BY urls DESC, host
        """  # noqa: S608
    )


def placeholders(catalog: Catalog, pool: str, least: int = LEAST_URLS) -> pa.Table:
    """Files that many URLs serve: `sha256`, `urls`, `hosts`, `sample` (one of the URLs); the most frequent first."""
    return catalog.sql(
        f"SELECT sha256, count(*) AS urls, count(DISTINCT {HOST}) AS hosts, min(url) AS sample FROM {name(pool)} "  # noqa: S608
        "WHERE status = 'success' GROUP BY sha256 HAVING count(*) >= ? ORDER BY urls DESC, sha256",
        [least],
    )


@cli.example("sluice links runs/demo", "sluice links runs/demo --pool pool --least 10 --rows 0")
@click.command()
@cli.root_argument
@click.option("--pool", metavar="NODE", help="Which pool, where there are several.")
@click.option("--run", "run_id", help="Ask an older run, such as 0003.")
@click.option("--least", default=LEAST_URLS, show_default=True, help="URLs that make one file a placeholder.")
@click.option("--rows", default=20, show_default=True, help="Rows of each table; 0 shows all.")
def links(root: str, pool: str | None, run_id: str | None, least: int, rows: int) -> None:
    """Show how a pool's links ended, by status and by host, and the files that many URLs serve."""
    with Catalog(root, run_id) as catalog:
        chosen = pool_of(catalog, pool)
        for title, table in (
            ("How the links ended", statuses(catalog, chosen)),
            ("By host", link_rot(catalog, chosen)),
            (f"One file under {least} URLs or more", placeholders(catalog, chosen, least)),
        ):
            cli.out.print(f"\n{title}", style="bold", highlight=False)
            show.table(cli.out, table, rows)
