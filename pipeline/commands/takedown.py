"""`sluice takedown`: images that must go, from a list of uids, URLs, domains or digests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.cli import err, example, out, root_argument
from pipeline.errors import SluiceError

if TYPE_CHECKING:
    from pipeline.store import Store
    from pipeline.takedown.erasure import Erased, Found

PLACES_SHOWN = 20
WIDTH = 1000
"""Characters of a line that are shown."""


@example(
    "sluice takedown runs/demo --urls gone.txt --reason 'request 4711'          # says what would go",
    "sluice takedown runs/demo --urls gone.txt --reason 'request 4711' --yes",
    "sluice takedown s3://bucket/curation --domains opted-out.txt --copies --yes",
    "sluice takedown runs/demo                                # lists what was taken down",
    "sluice takedown runs/demo --resume                       # finishes one that was interrupted",
)
@click.command()
@root_argument
@click.option("--uids", metavar="FILE", help="Images by uid, one a line.")
@click.option("--urls", metavar="FILE", help="Images by URL, whatever the scheme.")
@click.option("--domains", metavar="FILE", help="All images of these domains and those under them.")
@click.option("--sha256s", metavar="FILE", help="Images by the SHA-256 of their bytes, as fetched or as stored.")
@click.option(
    "--copies/--no-copies",
    default=None,
    help="Whether the same bytes under other URLs go, too. By default yes, but not for --domains.",
)
@click.option("--reason", default="", metavar="TEXT", help="Kept with the tombstone, such as the number of a request.")
@click.option("--yes", is_flag=True, help="Do it; without it only what would go is said.")
@click.option("--resume", is_flag=True, help="Finish takedowns that were interrupted.")
@click.option("--force", is_flag=True, help="Forget interrupted runs. Only when no run is writing.")
def command(
    root: str,
    uids: str | None,
    urls: str | None,
    domains: str | None,
    sha256s: str | None,
    copies: bool | None,
    reason: str,
    yes: bool,
    resume: bool,
    force: bool,
) -> None:
    """Erase images from everything under ROOT, and keep them away.

    Their bytes leave the pools and the shards; caption, EXIF, embeddings, scores and the URL but for its host leave
    every table, where the row stays with the status `taken_down`. No later run fetches them, nor keeps the same bytes
    under another URL. What had them is listed: selections, shards with member and offset, checkpoints and indexes,
    which must be made anew; an index is deleted, and the next run makes it.

    A copy that a later run refuses for its bytes keeps its URL in the list of URLs: --urls erases it there.
    """
    from pipeline import upkeep
    from pipeline.store import Store
    from pipeline.takedown import erasure
    from pipeline.takedown.matching import Asked
    from pipeline.takedown.tombstones import unfinished

    store = Store(root)
    store.check_made()
    asked = Asked.read(uids=uids, urls=urls, domains=domains, sha256s=sha256s)
    if force:
        upkeep.clear_leases(store)
    if unfinished(store) and (resume or yes):
        with _bars() as progress:
            for done in erasure.finish(store, progress):
                _say_done(done)
    if resume:
        return
    if not asked.counts():
        _list(store, any((uids, urls, domains, sha256s)))
        return
    every_kind = asked.counts().keys() - {"domains"}
    with _bars() as progress:
        found = erasure.search(store, asked, bool(every_kind) if copies is None else copies, progress)
    _say_found(store, found)
    if erasure.is_done(store, found):
        out.print("all of it was taken down before; nothing is left to do", highlight=False)
        return
    if not yes:
        out.print("nothing was changed; add --yes to take them down", highlight=False)
        return
    with _bars() as progress:
        _say_done(erasure.take_down(store, found, reason, progress))
    out.print(
        "what the input files say of them stays there: take the rows out, as `source_file` and `source_row` name them",
        highlight=False,
    )


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for every phase, with the time left."""
    columns = (TextColumn("{task.description:>16}"), BarColumn(28), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as shown:
        tasks = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = shown.add_task(phase, total=total)
            shown.update(tasks[phase], completed=done, total=total)

        yield report


def _list(store: Store, asked_nothing: bool) -> None:
    from pipeline.show import plain
    from pipeline.takedown.matching import counted
    from pipeline.takedown.tombstones import tombstones, unfinished

    if asked_nothing:
        raise SluiceError("the lists name nothing; an entry a line, and `#` begins a comment")
    left = {tombstone.id for tombstone in unfinished(store)}
    grid = Table("takedown", "when", "asked", "images", "reason", "", box=None, pad_edge=False, header_style="bold")
    for one in tombstones(store):
        state = "interrupted: --resume finishes it" if one.id in left else "erased"
        grid.add_row(one.id, one.when, counted(one.asked), f"{one.images:,}", plain(one.reason), state)
    if grid.row_count:
        out.print(grid)
    else:
        out.print(plain(f"nothing was taken down in {store.root}", WIDTH))


def _say_found(store: Store, found: Found) -> None:
    from pipeline.show import plain

    images = f"{found.images:,} image{'' if found.images == 1 else 's'}"
    out.print(plain(f"{found.asked} asked for: {images} of {store.root}", WIDTH))
    if not found.seen.num_rows:
        return
    rows = found.seen.to_pylist()
    grid = Table("seen by", "node", "generation", "runs", "images", box=None, pad_edge=False, header_style="bold")
    groups: dict[tuple[str, str, int, str], set[str | None]] = {}
    for row in rows:
        groups.setdefault((row["what"], row["node"], row["generation"], row["runs"]), set()).add(row["uid"])
    for (what, node, generation, runs), seen in groups.items():
        count = "" if what == "made_from" else f"{len(seen):,}"
        grid.add_row(what.replace("_", " "), node, str(generation), runs, count)
    out.print(grid)
    places = [row for row in rows if row["what"] in ("shard", "adopted")]
    for row in places[:PLACES_SHOWN]:
        adopted = " (adopted: erase it there yourself)" if row["what"] == "adopted" else ""
        line = f"{row['shard']} {row['member'] or row['uid']} at byte {row['offset']}{adopted}"
        out.print(plain(line, WIDTH), soft_wrap=True)
    if len(places) > PLACES_SHOWN:
        out.print(f"… and {len(places) - PLACES_SHOWN:,} more places; the tombstone keeps them all", highlight=False)


def _say_done(done: Erased) -> None:
    out.print(
        f"takedown {done.tombstone} is done: {done.records:,} records were written anew, "
        f"{done.deleted:,} files deleted",
        highlight=False,
    )
