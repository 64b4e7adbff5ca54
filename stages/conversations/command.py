"""The command `sluice conversations`, joined to the command line by an entry point of `sluice.commands`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pipeline import cli
from pipeline.errors import SluiceError
from pipeline.records import Record
from pipeline.runs import run_of, with_shards
from pipeline.store import Store
from stages.conversations.conversations import SHARD
from stages.conversations.turns import as_llava, as_sharegpt

FORMS = {"llava": as_llava, "sharegpt": as_sharegpt}


@cli.example(
    "sluice conversations runs/demo --node conversations --out mix.json --images images",
    "sluice conversations runs/demo --node conversations --out chats.json --form sharegpt",
)
@click.command()
@cli.root_argument
@click.option("--node", required=True, metavar="NODE", help="One that made conversations.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The JSON file to write.")
@click.option("--form", type=click.Choice(list(FORMS)), default="llava", show_default=True, help="Whose form it has.")
@click.option("--images", type=click.Path(file_okay=False, path_type=Path), help="Also write the images there.")
@click.option("--run", "run_id", help="Of what an older run left, such as 0003.")
def conversations(root: str, node: str, out: Path, form: str, images: Path | None, run_id: str | None) -> None:
    """Write the conversations of ROOT as one JSON file, as trainers of other projects read it.

    The names of images in it are those that they have below --images.
    """
    store = Store(root)
    records = with_shards(store, run_of(store, run_id), [node])[node].records
    count = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as sink:
            sink.write("[")
            for document, pictures in _samples(store, [record for record in records if record.file(SHARD)]):
                for name, data in pictures.items() if images is not None else ():
                    assert images is not None
                    images.mkdir(parents=True, exist_ok=True)
                    (images / name).write_bytes(data)
                sink.write(",\n " if count else "\n ")
                sink.write(json.dumps(FORMS[form](document, list(pictures)), ensure_ascii=False))
                count += 1
            sink.write("\n]\n")
        if not count:
            raise SluiceError(f"--node {node!r} holds pairs and no conversation; name one that made conversations")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    cli.out.print(f"{count:,} conversations in {out}", highlight=False, markup=False, soft_wrap=True)


def _samples(store: Store, records: list[Record]) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    """Every conversation with its images by name, in their order."""
    from models.data.shards import Damaged, DataError, Samples, Unreachable

    for record in records:
        file = record.file(SHARD)
        assert file is not None
        try:
            for sample in Samples.open(store.url(store.place(record, file))):
                document = json.loads(sample.members.get("json", b"{}"))
                if document.get("conversations"):
                    pictures = {f"{sample.key}.{e}": d for e, d in sample.members.items() if e not in ("json", "txt")}
                    yield document, pictures
        except Unreachable as error:
            raise SluiceError(f"{record.node}: {error}; try again later") from None
        except (DataError, Damaged) as error:
            raise SluiceError(f"{record.node}: {error}; `sluice verify {store.root} --repair`") from None
