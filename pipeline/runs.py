"""Which run is meant, and which of its nodes were made from which."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from pipeline.errors import SluiceError, did_you_mean
from pipeline.leases import no_run
from pipeline.records import Generation, Run
from pipeline.store import Store

ID_DIGITS = 4


def run_of(store: Store, asked: str | None = None, runs: Iterable[Run] | None = None) -> Run:
    """The run of this id (`0003`, or just `3`), or the newest.

    `runs`: the store's, newest first, where they were read already. Raises `SluiceError` where there is none.
    """
    wanted = asked.zfill(ID_DIGITS) if asked is not None and asked.isascii() and asked.isdigit() else asked
    seen = []
    for run in store.runs() if runs is None else runs:
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


def with_shards(store: Store, run: Run, nodes: Sequence[str]) -> dict[str, Generation]:
    """Every node's generation, of a run in which all of `nodes` made shards.

    Raises `SluiceError` for one that made none, with the run that did where there is one, and as `generations_of`.
    """
    generations = generations_of(store, run)
    known = {name for name, generation in generations.items() if holds_shards(generation)}
    missing = [node for node in nodes if node not in known]
    if not missing:
        return generations
    others = {
        id: {name for name, generation in theirs.items() if holds_shards(generation)}
        for id, theirs in _others(store, run)
    }
    anywhere = known.union(*others.values())
    for node in missing:  # a name that is wrong is told before a run that is
        if node not in anywhere:
            raise SluiceError(f"--node {node!r} made no shards{did_you_mean(node, anywhere)}")
    whole = next((id for id, made in others.items() if made.issuperset(nodes)), None)
    one = whole or next(id for id, made in others.items() if missing[0] in made)
    told = f": --run {whole}" if whole else f", but none made those of all: {', '.join(nodes)}"
    raise SluiceError(f"--node {missing[0]!r} made no shards in run {run.id}; run {one} did{told}")


def holds_shards(generation: Generation) -> bool:
    return any(record.file("shard") is not None for record in generation.records)


def in_another(
    store: Store, run: Run, node: str | None, of_kind: Callable[[Mapping[str, Generation]], Collection[str]]
) -> str:
    """`"; run 0003 has it: --run 0003"`: the newest other run in which a node is of a kind; `""` where none has.

    `node`: None for any. `of_kind`: which nodes of a run are.
    """
    for id, generations in _others(store, run, node):
        try:
            found = of_kind(generations)
        except SluiceError:  # what an older run has lost is no answer to what was asked of this one
            continue
        if node in found or (node is None and found):
            return f"; run {id} has {'one' if node is None else 'it'}: --run {id}"
    return ""


def _others(store: Store, run: Run, node: str | None = None) -> Iterator[tuple[str, dict[str, Generation]]]:
    """The other runs, newest first, with every node's generation; not those of which anything was collected, nor those
    without `node`, of which nothing is read."""
    for other in store.runs():
        if other.id != run.id and (node is None or node in other.generations):
            found = {name: store.generation(name, number) for name, number in other.generations.items()}
            there = {name: generation for name, generation in found.items() if generation is not None}
            if len(there) == len(found):
                yield other.id, there


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
