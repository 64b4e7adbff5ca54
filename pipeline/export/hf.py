"""A data set of the Hugging Face hub: a card, and the data where the hub's viewer looks for it.

README.md                      the card: YAML for the hub, and for people where the data comes from
data/00000000.tar …            the shards, with --copy-shards: the WebDataset layout (files of a key are a sample)
data/00000000.parquet …        without it: url, caption and sizes of every kept pair, and no pixels
"""

from __future__ import annotations

import json

from pipeline.errors import SluiceError
from pipeline.export.card import card
from pipeline.export.datacomp import write_tables
from pipeline.export.facts import Facts
from pipeline.export.features import features
from pipeline.export.options import FILL_IN, Options
from pipeline.export.selection import Selection
from pipeline.export.target import Target
from pipeline.stage import Column

FOLDER = "data"
COLUMNS = ("url", "caption", "width", "height", "original_width", "original_height", "sha256", "source")


def write(selection: Selection, target: Target, options: Options) -> list[str]:
    """The data, then the card."""
    if options.copy_shards:
        pattern = _copied(selection, target)
    else:
        pairs(selection, target, options, FOLDER + "/{:08d}.parquet", options.rows_per_file)
        pattern = f"{FOLDER}/*.parquet"
    facts = Facts.of(selection)
    listed = features(selection) if options.copy_shards else None
    target.write("README.md", card(facts, options, pattern, listed).encode())
    remarks = [] if options.copy_shards else facts.remarks("README.md")
    if options.copy_shards and listed is None:
        remarks.append("README.md lists no features, for a type in the shards' JSON is unknown; readers will guess")
    if options.license == FILL_IN:
        remarks.append(f"README.md says {FILL_IN!r} for the licence, which only you can know: give --license")
    return remarks


def _copied(selection: Selection, target: Target) -> str:
    shards = selection.shards()
    if not shards:
        raise SluiceError(f"--copy-shards: run {selection.run.id} made no shards of {selection.node}; leave it out")
    sizes = {}
    for record, file in shards:
        name = file.path.rpartition("/")[2]
        target.copy(f"{FOLDER}/{name}", selection.store, selection.store.place(record, file), file)
        sizes[name] = record.rows["samples"]
    target.write(f"{FOLDER}/sizes.json", json.dumps(sizes, indent=1).encode())
    return f"{FOLDER}/*.tar"


def pairs(
    selection: Selection, target: Target, options: Options, path: str, rows_per_file: int | None
) -> dict[str, Column]:
    """Every kept pair without its pixels, as Parquet files under `path` (one, without a limit); the columns by name."""
    columns = {name: found for name in COLUMNS if (found := selection.column(name)) is not None}
    columns |= {name: selection.demand(asked, "name another with --column") for name, asked in options.columns.items()}
    with selection.kept(columns, target.spool_folder) as kept:
        total = kept.count()
        if not total:
            raise SluiceError(f"{selection.node} keeps nothing, so there is nothing to export; loosen its rules")
        kept.columns = ["caption_id", *kept.columns]
        write_tables(kept, total, target, path, rows_per_file or total)
    return columns
