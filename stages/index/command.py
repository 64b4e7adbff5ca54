"""The command `sluice neighbours`, joined to the command line through the entry-point group `sluice.commands`."""

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import click
import pyarrow as pa

from pipeline import cli, show
from pipeline.catalog import Catalog
from pipeline.errors import SluiceError
from pipeline.judge import name
from pipeline.lookup import Lookup
from pipeline.runs import generations_of
from pipeline.store import Store
from pipeline.takedown.tombstones import TAKEN_DOWN
from stages.index.lookup import embedding_of, index_of, nearest, without
from stages.index.queries import Encoders, of_uid

COLUMNS = ("url", "status", "caption", "clip_score", "kept", "dropped_by")


@cli.example(
    "sluice neighbours runs/demo --image cat.jpg",
    'sluice neighbours runs/demo --text "a cat on a mat" -k 20 --json',
    "sluice neighbours runs/demo --uid 0f3c… --node index",
)
@click.command()
@cli.root_argument
@click.option("--image", metavar="FILE", help="Search for what looks like this picture.")
@click.option("--text", metavar="TEXT", help="Search for what these words say.")
@click.option("--uid", metavar="UID|URL", help="Search for what looks like this image of the run.")
@click.option("--node", metavar="NODE", help="Which index, where there are several.")
@click.option("--run", "run_id", help="Ask an older run, such as 0003.")
@click.option("-k", "count", default=10, show_default=True, type=click.IntRange(min=1), help="How many.")
@click.option("--probes", type=click.IntRange(min=1), help="Cells of an inverted index to search; more is more exact.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def neighbours(
    root: str,
    image: str | None,
    text: str | None,
    uid: str | None,
    node: str | None,
    run_id: str | None,
    count: int,
    probes: int | None,
    as_json: bool,
) -> None:
    """Show the images of a run nearest to a picture, to words, or to one of its own."""
    if sum(asked is not None for asked in (image, text, uid)) != 1:
        raise SluiceError("say what to search for: one of --image FILE, --text TEXT, --uid UID")
    store = Store(root)
    with Catalog(root, run_id) as catalog:
        generations = generations_of(store, catalog.run)
        index = index_of(store, catalog.run, generations, node)
        source, column = embedding_of(index)
        encoders = Encoders(store, catalog.run, generations, source, column)
        if image is not None:
            query_d = encoders.of_image(image)
        elif text is not None:
            query_d = encoders.of_text(text)
        else:
            uid, _ = Lookup(store, generations).resolve(str(uid))
            if described(catalog, [uid]).get(uid, {}).get("status") == TAKEN_DOWN:
                raise SluiceError(f"--uid: {uid} was taken down, and its embedding with it; name another image")
            query_d = of_uid(catalog, source, column, uid)
        found = without(nearest(store, index, query_d, count + (uid is not None), probes), uid, count)
        rows = described(catalog, [one.uid for one in found])
    answer = [{"uid": one.uid, "cosine": round(one.cosine, 4), **rows.get(one.uid, {})} for one in found]
    if as_json:
        for row in answer:
            sys.stdout.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    else:
        _show(answer)


def described(catalog: Catalog, uids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By uid: `url` (without what may be a secret), `status`, the best `caption`, and what each selection decided.

    A selection's column is `kept`, or `<node>_kept` where there are several: `kept`, or the rule that dropped the pair.
    """
    known = catalog.sql("SELECT * FROM samples LIMIT 0").column_names
    places = ["", *(f"{node}_" for node in catalog.run.generations)]  # of a name that several nodes have
    found = {one: [p + one for p in places if p + one in known] for one in COLUMNS}
    listed = ", ".join(name(column) for columns in found.values() for column in columns)
    query = f"SELECT uid, {listed} FROM samples WHERE uid IN (SELECT unnest(?::VARCHAR[]))"  # noqa: S608
    rows: dict[str, tuple[tuple[int, float], dict[str, Any]]] = {}
    for pair in catalog.sql(query, [list(uids)]).to_pylist():
        first = {one: next((pair[c] for c in columns if pair[c] is not None), None) for one, columns in found.items()}
        said = {"url": first["url"] and redacted(first["url"]), "status": first["status"], "caption": first["caption"]}
        for column in found["kept"]:
            dropped_by = pair.get(f"{column.removesuffix('kept')}dropped_by")
            said[column] = None if pair[column] is None else "kept" if pair[column] else dropped_by
        score = first["clip_score"] if first["clip_score"] is not None else -2.0
        rank = (sum(pair[column] is True for column in found["kept"]), score)
        if pair["uid"] not in rows or rank > rows[pair["uid"]][0]:
            rows[pair["uid"]] = rank, said
    return {uid: said for uid, (_, said) in rows.items()}


def redacted(url: str) -> str:
    """Without credentials, query and fragment, which may hold secrets."""
    scheme, slashes, rest = re.split(r"[?#]", url, maxsplit=1)[0].partition("//")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}"


def _show(answer: Sequence[dict[str, Any]]) -> None:
    if not answer:
        cli.out.print("the index is empty", highlight=False)
        return
    columns = list(dict.fromkeys(column for row in answer for column in row))
    show.table(cli.out, pa.table({column: [row.get(column) for row in answer] for column in columns}), 0)
