"""Which images are copies of each other.

    copies:
      from: [pool, scores]
      steps: [{stages.dedup.NearDuplicates: {perceptual_bits: 6, cosine: 0.95, verify: pixels}}]

Phases, each of them tasks that are committed one by one: rows are cut by what they are compared by (bytes, hash, cell
of embeddings), the pieces are searched, what was found is brought together at the part of one end, looked at, grouped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline.attempt import Attempt
from pipeline.dag import resolve
from pipeline.errors import SluiceError
from pipeline.records import ABOUT, Record
from pipeline.stage import PIXELS, Column, Promise, TableStage, Task, Work
from stages.dedup import search, verify
from stages.dedup.edges import CANDIDATES, ENDS, JUDGED, TABLE, shown, strength, together
from stages.dedup.grouping import IMAGE, group, group_task, image_table, pick
from stages.dedup.parts import Layout, layout_of, tasks
from stages.kit.exchange import Scatter, gather, spread_to

Holders = Callable[[int], tuple[Record, ...]]
"""Which records hold the rows of a bucket."""


class NearDuplicates(TableStage):
    """Add `duplicate_group` (the own uid where there is no copy) and `similarity`, and write the edges between copies.

    Candidates are images with the same bytes, with perceptual hashes within `perceptual_bits`, or with embeddings whose
    cosine is at least `cosine`. Hashes and embeddings take look-alikes for copies, so that candidates are compared on
    their pixels: a copy may be encoded anew, resized, cropped to 60 % and recoloured as a whole; a picture in which one
    thing differs is none, nor is a mirrored one, whose captions would be wrong.

    The thresholds here should be loose: `Groups` makes groups by tighter ones, and searches nothing.

    Images that mean the same, not only copies, go as SemDeDup has it (Abbas et al. 2023): by `cosine: 1 - epsilon`
    alone, with `perceptual_bits: null` and `verify: none`; of each group the member is kept that its cell's centre is
    least like, by the rule

        uid = first_value(uid) OVER (PARTITION BY duplicate_group ORDER BY cell_similarity NULLS LAST, uid)

    How many cells there are follows from the number of embeddings and from how they cluster; `sluice status` says it.
    """

    revision: ClassVar[int] = 2
    promise: ClassVar[Promise] = "numeric"
    seeded: ClassVar[bool] = True

    perceptual_bits: int | None = Field(default=6, ge=0, le=16)
    """Bits of 64 in which the hashes of copies may differ; None: hashes are not compared. All pairs are found."""
    cosine: float | None = Field(default=0.95, gt=0.5, le=1)
    """The least cosine of the embeddings of copies; None: embeddings are not compared."""
    verify: Literal["pixels", "none"] = "pixels"
    """Whether candidates are compared on their pixels."""
    hash_column: str = "phash"
    """The pool's column with 64-bit hashes, `column` or `node.column`."""
    embedding: str = "image_embedding"
    """The column with embeddings of the images, `column` or `node.column`. Those of models bring up copies and all that
    means the same; `copy_embedding` (stages.copy_embedding) needs no model and takes a cosine of 0.85."""
    most: int = Field(default=64, ge=2)
    """Neighbours of an image that a search keeps at most: half of them the nearest, half those with the smallest uids.
    n pictures that say "image not found" so give n * most candidates and not n * n."""
    rows_per_cell: int = Field(default=100_000, ge=1)
    """Embeddings that one task searches, about."""
    cell_similarity: bool = False
    """Whether to add `cell_similarity`, the cosine of an embedding to the centre of its cell; null for an image whose
    bytes another one has. New input moves the centres, and with them the values of all images."""

    @model_validator(mode="after")
    def _finds_something(self) -> "NearDuplicates":
        if self.perceptual_bits is None and self.cosine is None and self.verify == "pixels":
            raise ValueError("only equal bytes are looked for, which need no pixels; set perceptual_bits or cosine")
        if self.cosine is None and self.cell_similarity:
            raise ValueError("cell_similarity is of embeddings, which are not compared; set cosine")
        return self

    def needs(self) -> frozenset[str]:
        hashes = {self.hash_column} if self.perceptual_bits is not None else set()
        vectors = {self.embedding} if self.cosine is not None else set()
        return frozenset({"sha256", *hashes, *vectors, *({PIXELS} if self.verify == "pixels" else ())})

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` for columns of another kind than hashes and embeddings."""
        if self.perceptual_bits is not None:
            found = resolve(self.hash_column, inputs)
            if found.type != pa.uint64() or found.grain != "image":
                raise SluiceError(f"hash_column: {self.hash_column!r} is {found.type} of {found.grain}s, not uint64")
        if self.cosine is not None:
            found = resolve(self.embedding, inputs)
            inner = getattr(found.type, "value_type", None)
            if inner is None or not pa.types.is_floating(inner) or found.grain != "image":
                raise SluiceError(
                    f"embedding: {self.embedding!r} is {found.type} of {found.grain}s; expected lists of floats"
                )

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        return {"image": self._image, "edge": TABLE}

    @property
    def _image(self) -> pa.Schema:
        return pa.schema([*IMAGE, search.CELL_SIMILARITY]) if self.cell_similarity else IMAGE

    def ended(self, rows: pa.Table) -> Mapping[str, int]:
        return {"kept": rows.num_rows}  # each stands alone

    def assemble(self, work: Work) -> list[Record]:
        layout = layout_of(work.inputs)
        rows = sum(record.rows.get("image", 0) for record in work.inputs[layout.pool].records)
        bits = (rows // search.ROWS_AT_ONCE).bit_length()
        same = self._same(work, layout, bits)
        found, said = list(same), list(same)
        cut: list[Record] = []
        twins = spread_to(work, "spread-twins", same, layout.group_bits, last=(layout.parts - 1) >> layout.fold)
        if self.perceptual_bits is not None:
            near = self._near_hashes(work, layout, rows, twins)
            found, said = found + near, said + near
        if self.cosine is not None:
            cells, cut, near = self._near_vectors(work, layout, rows, twins)
            found, said = found + near, [*said, cells, *cut, *near]
        judged = self._judged(work, layout, found)
        grouped = work.map("group", [group_task(judged, layout)], group, final=False)
        edges = spread_to(work, "spread-edges", judged, layout.bits, last=layout.parts - 1)
        groups = spread_to(work, "spread-groups", grouped, layout.bits, last=layout.parts - 1)
        about = {**_about(said), **grouped[0].notes[ABOUT]}
        names = [record.part for record in work.inputs[layout.pool].records]
        finals = [
            replace(
                task,
                inputs={
                    **task.inputs,
                    "edges": edges(number),
                    "groups": groups(number),
                    **({"cells": (cut[number >> layout.fold],)} if self.cell_similarity else {}),
                },
                hints={"pool": layout.pool, "names": names, "about": about},
            )
            for number, task in enumerate(tasks(work.inputs, layout, [layout.pool], single=True))
        ]
        return work.map("final", finals, self.finish)

    # -- candidates ----------------------------------------------------------------------------------------------------

    def _same(self, work: Work, layout: Layout, bits: int) -> list[Record]:
        cuts = [replace(task, hints={"pool": layout.pool}) for task in tasks(work.inputs, layout, [layout.pool])]
        cut = work.map("cut-bytes", cuts, search.cut_bytes, final=False)
        holders = spread_to(work, "spread-bytes", cut, bits)
        buckets = [_bucket(number, bits, layout, holders(number)) for number in range(1 << bits)]
        return work.map("same-bytes", buckets, search.same_bytes, final=False)

    def _near_hashes(self, work: Work, layout: Layout, rows: int, twins: Holders) -> list[Record]:
        assert self.perceptual_bits is not None
        column = resolve(self.hash_column, work.columns)
        chunks = self.perceptual_bits + 1 if rows > search.HASHES_AT_ONCE else 1
        cuts = self._cuts(work, layout, column, twins, {"chunks": chunks})
        cut = work.map("cut-hashes", cuts, search.cut_hashes, final=False)
        bits = search.hash_bits(rows, chunks)
        holders = spread_to(work, "spread-hashes", cut, bits)
        buckets = [_bucket(number, bits, layout, holders(number)) for number in range(1 << bits)]
        buckets = [
            replace(task, payload={**task.payload, "within": self.perceptual_bits, "chunks": chunks, "most": self.most})
            for task in buckets
        ]
        return work.map("near-hashes", buckets, search.near_hashes, final=False)

    def _near_vectors(
        self, work: Work, layout: Layout, rows: int, twins: Holders
    ) -> tuple[Record, list[Record], list[Record]]:
        """The cells, the embeddings cut by them, and the pairs."""
        assert self.cosine is not None
        column = resolve(self.embedding, work.columns)
        share = min(1.0, search.SAMPLE / max(1, rows))
        samples = self._cuts(work, layout, column, twins, {"share": share})
        sampled = work.map("sample", samples, search.sample, final=False)
        training = Task(
            "all",
            {"rows": rows, "rows_per_cell": self.rows_per_cell, "seed": work.seed},
            {"samples": tuple(sampled)},
            rows=sum(record.rows["sample"] for record in sampled),
        )
        (cells,) = work.map("cells", [training], search.train, final=False)
        cuts = self._cuts(work, layout, column, twins, {"cosine": self.cosine})
        cuts = [replace(task, inputs={**task.inputs, "cells": (cells,)}) for task in cuts]
        cut = work.map("cut-vectors", cuts, search.cut_vectors, final=False)
        count = cells.notes["cells"]
        bits = (count - 1).bit_length()
        holders = spread_to(work, "spread-vectors", cut, bits, last=count - 1)
        buckets = [_bucket(number, bits, layout, holders(number)) for number in range(count)]
        buckets = [
            replace(task, payload={**task.payload, "cosine": self.cosine, "most": self.most, "seed": work.seed})
            for task in buckets
        ]
        return cells, cut, work.map("near-vectors", buckets, search.near_vectors, final=False)

    def _cuts(
        self, work: Work, layout: Layout, column: Column, twins: Holders, payload: Mapping[str, object]
    ) -> list[Task]:
        """The tasks that read a column of all images but those whose bytes another one has."""
        nodes = list(dict.fromkeys([layout.pool, column.node]))
        return [
            replace(
                task,
                payload={**task.payload, **payload, "group_bits": layout.group_bits},
                inputs={**task.inputs, search.TWINS: twins(number)},
                hints={"pool": layout.pool, "column": column},
            )
            for number, task in enumerate(tasks(work.inputs, layout, nodes))
        ]

    # -- edges ---------------------------------------------------------------------------------------------------------

    def _judged(self, work: Work, layout: Layout, found: Sequence[Record]) -> list[Record]:
        """The candidates of all phases brought together, each with what its pixels say."""
        last = (layout.parts - 1) >> layout.fold
        groups = tasks(work.inputs, layout, [layout.pool])
        holders = spread_to(work, "spread-found", found, layout.group_bits, last=last)
        merges = [
            Task(f"{number:05d}", {**group.payload, "layout": asdict(layout)}, {"edges": holders(number)})
            for number, group in enumerate(groups)
        ]
        if self.verify == "none":
            return work.map("merge", merges, self.merge, final=False)
        merged = work.map("merge", merges, self.merge, final=False)
        for phase, do in (("locate", verify.locate), ("look", verify.look)):
            holders = spread_to(work, f"spread-{phase}", merged, layout.group_bits, last=last)
            located = [
                replace(
                    group,
                    payload={**group.payload, "layout": asdict(layout), "files": _bytes_of(group, layout.pool)},
                    inputs={**group.inputs, "edges": holders(number)},
                    hints={"pool": layout.pool},
                )
                for number, group in enumerate(groups)
            ]
            merged = work.map(phase, located, do, final=False)
        return merged

    def merge(self, task: Task, attempt: Attempt) -> None:
        """The candidates with their smaller uid in some parts, each pair once."""
        layout = Layout(**task.payload["layout"])
        number = task.payload["number"]
        tables = gather(attempt, task.inputs["edges"], layout.group_bits, number)
        rows = together(tables)
        rows = rows.filter(pc.equal(pc.shift_right(rows.column("part_a"), layout.fold), number))
        scatter = Scatter(attempt)
        if self.verify == "none":
            for name in ("agreement", "verified"):
                field = JUDGED.field(name)
                rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
            pick(attempt, rows.append_column("strength", pa.array(strength(rows))))
        else:
            rows = rows.set_column(0, CANDIDATES.field(0), [layout.places(rows.column("part_b").to_numpy())])
        scatter.add(rows)
        scatter.close()
        attempt.note(bits=0)

    def finish(self, task: Task, attempt: Attempt) -> None:
        """The image table and the edge table of one part."""
        bits, number = task.payload["bits"], task.payload["number"]
        tables = gather(attempt, task.inputs["edges"], bits, number)
        rows = pa.concat_tables([JUDGED.empty_table(), *tables])
        rows = rows.filter(pc.equal(rows.column("part_a"), number))
        rows = rows.sort_by([(name, "ascending") for name, _ in ENDS])
        image = image_table(task, attempt, task.hints["pool"])
        attempt.write("image", search.beside_cells(task, attempt, image) if self.cell_similarity else image)
        attempt.write("edge", shown(rows, task.hints["names"]))
        attempt.note(**{ABOUT: task.hints["about"]})


def _bucket(number: int, bits: int, layout: Layout, rows: tuple[Record, ...]) -> Task:
    return Task(f"{number:05d}", {"bits": bits, "number": number, "layout": asdict(layout)}, {"rows": rows})


def _bytes_of(task: Task, pool: str) -> list[str]:
    """What must stay as it is for the offsets of the images to hold."""
    return [record.bytes_hash() for record in task.inputs[pool]]


def _about(said: Sequence[Record]) -> dict[str, float]:
    """What the searches say of themselves: pairs by evidence, cells as they were chosen, what was cut off."""
    about: dict[str, float] = {}
    for record in said:
        for name in ("same_bytes", "near_hashes", "near_vectors", "cells", "largest_cell", "border", "cut_off"):
            if name in record.notes:
                about[name] = about.get(name, 0) + record.notes[name]
    return about
