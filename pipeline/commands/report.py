"""`sluice report`: a run as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline import cli, show
from pipeline.errors import SluiceError


@cli.example(
    "sluice report runs/demo",
    "sluice report runs/demo --run 0003 --out before.html",
    "sluice report s3://bucket/curation --out curation.html",
)
@click.command()
@cli.root_argument
@click.option("--run", "run_id", help="Show an older run, such as 0003.")
@click.option(
    "--out", "target", default="report.html", show_default=True, type=click.Path(dir_okay=False), help="Write there."
)
def report(root: str, run_id: str | None, target: str) -> None:
    """Write a run as one HTML file: funnel, distributions with their thresholds, pictures on both sides of each.

    The file needs nothing beside it, runs no script and asks nothing of any network: it can be sent to anyone who may
    see the pictures.
    """
    from pipeline.report import report as page_of

    page = page_of(root, run_id).encode()
    try:
        Path(target).write_bytes(page)
    except OSError as error:
        raise SluiceError(f"--out {target}: {error.strerror}; name a file in a folder that exists") from None
    cli.out.print(f"{target}, {show.size(len(page))}: open it in a browser", highlight=False, soft_wrap=True)
