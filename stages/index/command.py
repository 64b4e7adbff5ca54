"""The command `sluice neighbours`, joined to the command line through the entry-point group `sluice.commands`."""

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import click

from pipeline import cli
from pipeline.errors import SluiceError

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
@click.option("--uid", metavar="UID", help="Search for what looks like this image of the run.")
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
    from pipeline.catalog import Catalog
    from pipeline.store import Store
    from pipeline.upkeep import generations_of
    from stages.index.lookup import embedding_of, index_of, nearest, without
    from stages.index.queries import Encoders, of_uid

    if sum(asked is not None for asked in (image, text, uid)) != 1:
        raise SluiceError("say what to search for: one of --image FILE, --text TEXT, --uid UID")
    store = Store(root)
    with Catalog(root, run_id) as catalog:
        generations = generations_of(store, catalog.run)
        index = index_of(generations, node)
        source, column = embedding_of(index)
        encoders = Encoders(store, catalog.run, generations, source, column)
        if image is not None:
            query_d = encoders.of_image(image)
        elif text is not None:
            query_d = encoders.of_text(text)
        else:
            query_d = of_uid(catalog, source, column, str(uid))
        found = without(nearest(store, index, query_d, count + (uid is not None), probes), uid, count)
        rows = described(catalog, [one.uid for one in found])
    answer = [{"uid": one.uid, "cosine": round(one.cosine, 4), **rows.get(one.uid, {})} for one in found]
    if as_json:
        for row in answer:
            sys.stdout.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    else:
        _show(answer)


def described(catalog: Any, uids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By uid: `url` (without what may be a secret), `status`, the best `caption`, and what each selection decided.

    A selection's column is `kept`, or `<node>_kept` where there are several: `kept`, or the rule that dropped the pair.
    """
    from pipeline.judge import name

    known = catalog.sql("SELECT * FROM samples LIMIT 0").column_names
    chosen = [column for column in known if any(re.fullmatch(f"(.+_)?{one}", column) for one in COLUMNS)]
    listed = ", ".join(name(column) for column in chosen)
    query = f"SELECT uid, {listed} FROM samples WHERE uid IN (SELECT unnest(?::VARCHAR[]))"  # noqa: S608
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(catalog.sql(query, [list(uids)]).to_pylist(), key=_best, reverse=True):
        uid, values = row["uid"], {one: _first(row, one) for one in ("url", "status", "caption")}
        values["url"] = redacted(values["url"]) if values["url"] else None
        for column in chosen:
            if re.fullmatch("(.+_)?kept", column) and row[column] is not None:
                values[column] = "kept" if row[column] else row.get(f"{column.removesuffix('kept')}dropped_by")
        found.setdefault(uid, values)
    return found


def _best(row: dict[str, Any]) -> tuple[int, float]:
    """Kept by most selections, then by score."""
    kept = sum(bool(value) for column, value in row.items() if column == "kept" or column.endswith("_kept"))
    score = _first(row, "clip_score")
    return kept, score if score is not None else float("-inf")


def _first(row: dict[str, Any], column: str) -> Any:
    """The value of a column, whichever node wrote it."""
    return next((v for name, v in row.items() if name == column or name.endswith(f"_{column}")), None)


def redacted(url: str) -> str:
    """Without credentials, query and fragment, which may hold secrets."""
    scheme, slashes, rest = re.split(r"[?#]", url, maxsplit=1)[0].partition("//")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}"


def _show(answer: Sequence[dict[str, Any]]) -> None:
    import pyarrow as pa

    from pipeline import show

    if not answer:
        cli.out.print("the index is empty", highlight=False)
        return
    columns = list(dict.fromkeys(column for row in answer for column in row))
    show.table(cli.out, pa.table({column: [row.get(column) for row in answer] for column in columns}), 0)
