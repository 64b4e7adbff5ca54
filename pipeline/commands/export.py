"""`sluice export`: a selection in the formats of others."""

from __future__ import annotations

from collections.abc import Sequence

import click

from pipeline.cli import err, example, out, root_argument
from pipeline.errors import SluiceError


@example(
    "sluice export runs/demo --node kept --format datacomp --out exports/datacomp",
    "sluice export runs/demo --node kept --format datacomp --column clip_l14_similarity_score=clip_score --out d",
    "sluice export runs/demo --node kept --format clip-retrieval --out s3://bucket/index",
    "sluice export runs/demo --node shards --format hf --copy-shards --license cc-by-4.0 --out exports/hub",
    "sluice export runs/demo --node kept --format croissant --url https://example.org/data --out exports/croissant",
)
@click.command()
@root_argument
@click.option("--node", required=True, help="A selection, or the shards that were made of one.")
@click.option(
    "--format", "form", required=True, metavar="FORMAT", help="One of datacomp, clip-retrieval, hf, croissant."
)
@click.option("--out", "target", required=True, metavar="FOLDER|URL", help="An empty folder, or a place in a store.")
@click.option("--run", "run_id", help="Export an older run, such as 0003.")
@click.option(
    "--column", "columns", multiple=True, metavar="NAME=[NODE.]COLUMN", help="A column and its name in the export."
)
@click.option("--rows-per-file", default=1_000_000, show_default=True, type=click.IntRange(min=1), help="In Parquet.")
@click.option("--copy-shards", is_flag=True, help="hf: copy the shards, pixels included.")
@click.option("--name", help="hf, croissant: what the data set is called.")
@click.option("--license", "licence", help="hf, croissant: an SPDX id or a URL.")
@click.option("--creator", help="croissant: who made the data set.")
@click.option("--url", help="croissant: the data set's page.")
@click.option("--published", metavar="DATE", help="croissant: when it was published.")
def command(
    root: str,
    node: str,
    form: str,
    target: str,
    run_id: str | None,
    columns: Sequence[str],
    rows_per_file: int,
    copy_shards: bool,
    name: str | None,
    licence: str | None,
    creator: str | None,
    url: str | None,
    published: str | None,
) -> None:
    """Write what NODE kept as DataComp, clip-retrieval, the Hugging Face hub or Croissant have it.

    Files appear whole; nothing is overwritten, and the same command finishes what was interrupted. Pixels stay where
    they are, unless --copy-shards asks for them.
    """
    from pipeline.export import export
    from pipeline.export.options import FILL_IN, Options

    named = dict(_named(column) for column in columns)
    options = Options(
        rows_per_file=rows_per_file,
        columns=named,
        copy_shards=copy_shards,
        name=name,
        license=licence or FILL_IN,
        creator=creator or FILL_IN,
        url=url or FILL_IN,
        published=published or FILL_IN,
    )
    done = export(root, node, form, target, run_id, options)
    for remark in done.remarks:
        err.print(remark, highlight=False, soft_wrap=True)
    from pipeline.show import size

    total = size(sum(file.bytes for file in done.files))
    out.print(f"{len(done.files):,} files, {total}, in {target}", highlight=False, soft_wrap=True)


def _named(column: str) -> tuple[str, str]:
    name, equals, asked = column.partition("=")
    if not equals or not name or not asked:
        raise SluiceError(f"--column {column!r}: write it as NAME=COLUMN, such as clip_l14_similarity_score=clip_score")
    return name, asked
