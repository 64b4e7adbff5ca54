"""What can be said of a selection for people: where it came from, what was done, what was left out."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.export.selection import Selection
from pipeline.runs import ancestors
from pipeline.takedown.tombstones import tombstones


@dataclass(frozen=True)
class Source:
    """An input file, by its bare name: a card is read by others than those who may know the paths."""

    node: str
    path: str
    digest: str


@dataclass(frozen=True)
class Facts:
    """All of it follows from records: the same run says the same."""

    dag: str
    run: str
    node: str
    hash: str
    sources: tuple[Source, ...]
    input_rows: Mapping[str, tuple[int, int]]
    """Rows that every node without inputs read, and the images that it made of them."""
    statuses: Mapping[str, Mapping[str, int]]
    """Images by status, of every pool."""
    rules: tuple[tuple[str, str], ...]
    funnel: tuple[Mapping[str, Any], ...]
    steps: Mapping[str, tuple[str, ...]]
    """The stages of every node that the selection was made from, and its own."""
    pairs: int
    samples: int | None
    """In the shards."""
    shards: tuple[tuple[str, int, str], ...]
    """(place, bytes, SHA-256). A place on a disk begins with the root's name: what is above it is nobody's business."""
    local: bool
    """The root is a folder."""
    text: str
    """The DAG."""
    taken_down: int
    """Takedowns that were carried out in this root."""

    @classmethod
    def of(cls, selection: Selection) -> Facts:
        generations = selection.generations
        above = [*ancestors(selection.node, generations), selection.node]
        named = [node for node in generations if node in above]
        pools = [node for node in named if any(record.file("tar") for record in generations[node].records)]
        sources = [
            Source(node, posixpath.basename(path), digest)
            for node in named
            if not generations[node].inputs
            for files in generations[node].resources.values()
            for path, digest in files
        ]
        shards = selection.shards()
        return cls(
            dag=selection.run.dag,
            run=selection.run.id,
            node=selection.node,
            hash=selection.hash,
            sources=tuple(sources),
            input_rows={
                node: (sum(generations[node].statuses.values()), generations[node].images)
                for node in named
                if not generations[node].inputs
            },
            statuses={node: generations[node].statuses for node in pools},
            rules=tuple(_rules(selection)),
            funnel=tuple(selection.funnel().to_pylist()),
            steps={node: tuple(s["stage"] for s in generations[node].identity.get("steps", ())) for node in named},
            pairs=selection.generation.statuses.get("kept", 0),
            samples=sum(record.rows["samples"] for record, _ in shards) if shards else None,
            shards=tuple(
                (_place(selection, selection.store.place(record, file)), file.bytes, file.sha256)
                for record, file in shards
            ),
            local=selection.store.local,
            text=selection.run.text,
            taken_down=len(tombstones(selection.store)),
        )

    def identity(self) -> dict[str, str]:
        """Which selection this is."""
        return {"dag": self.dag, "run": self.run, "node": self.node, "selection": self.hash}

    def remarks(self, name: str) -> list[str]:
        """That places in the file `name` hold only beside the root, where they do."""
        if not (self.local and self.shards):
            return []
        top = self.shards[0][0].partition("/")[0]
        return [f"{name} names shards below {top}/, which is not copied: publish {top}/shards beside it"]


def _place(selection: Selection, path: str) -> str:
    store = selection.store
    return f"{posixpath.basename(store.path)}/{path}" if store.local else store.url(path)


def _rules(selection: Selection) -> list[tuple[str, str]]:
    """The thresholds, as the selection's own record of what it is has them."""
    for step in selection.generation.identity.get("steps", ()):
        rules = step["parameters"].get("rules")
        if rules is not None:
            return [(name, condition) for rule in rules for name, condition in rule.items()]
    return []
