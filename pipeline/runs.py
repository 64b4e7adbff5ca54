"""Which run is meant, and which of its nodes were made from which."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.errors import SluiceError, did_you_mean
from pipeline.leases import no_run
from pipeline.records import Generation, Run
from pipeline.store import Store

ID_DIGITS = 4


def run_of(store: Store, asked: str | None = None) -> Run:
    """The run of this id (`0003`, or just `3`), or the newest.

    Raises `SluiceError` where there is none.
    """
    wanted = asked.zfill(ID_DIGITS) if asked is not None and asked.isascii() and asked.isdigit() else asked
    seen = []
    for run in store.runs():
        if wanted is None or run.id == wanted:
            return run
        seen.append(run.id)
    if not seen:
        raise no_run(store)
    raise SluiceError(f"{store.root} has no run {asked!r}{did_you_mean(str(wanted), seen)}")


def generations_of(store: Store, run: Run) -> dict[str, Generation]:
    """Every node's generation. Raises `SluiceError` for one that is gone."""
    found = {}
    for node, number in run.generations.items():
        generation = store.generation(node, number)
        if generation is None:
            raise SluiceError(
                f"{store.root}/{node} has no generation {number}, which run {run.id} left: it was collected; "
                f"`sluice status {store.root} --runs` lists the runs"
            )
        found[node] = generation
    return found


def ancestors(node: str, generations: Mapping[str, Generation]) -> set[str]:
    """The nodes of a run that a node was made from, near and far."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        for other in generations[waiting.pop()].inputs:
            if other in generations and other not in found:
                found.add(other)
                waiting.append(other)
    return found
