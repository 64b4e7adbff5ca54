"""`sluice catalog`: a run as one DuckDB file, without embeddings."""

from __future__ import annotations

import click

from pipeline.cli import err, example, out, root_argument


@example(
    "sluice catalog runs/demo --out demo.duckdb",
    "sluice catalog s3://bucket/curation --run 0003 --out curation.duckdb",
    "python -c \"from pipeline.console import open_catalogue as o; print(o('demo.duckdb').ask('FROM drops'))\"",
)
@click.command()
@root_argument
@click.option("--out", "target", required=True, metavar="FILE.duckdb", type=click.Path(dir_okay=False))
@click.option("--run", "run_id", help="Of an older run, such as 0003.")
def command(root: str, target: str, run_id: str | None) -> None:
    """Write every view of a run as a table of one DuckDB file that stands alone.

    Embeddings are left out. The file says nothing about the store that it came from, and may be opened where SQL comes
    from strangers: `pipeline.console.open_catalogue` lets them read it, and nothing else.
    """
    from pipeline.catalogue_file import write_catalogue

    with err.status("") as status:
        rows = write_catalogue(
            root, target, run_id, lambda view, place, total: status.update(f"{place} of {total}: {view}")
        )
    for view, count in rows.items():
        out.print(f"{count:>14,} rows  {view}", highlight=False)
