"""Groups of copies by other thresholds, out of edges that were found before.

copies:
  from: [pool, scores]
  steps: [{stages.dedup.NearDuplicates: {perceptual_bits: 10, cosine: 0.9}}]
strict:
  from: [pool, copies]
  steps: [{stages.dedup.Groups: {perceptual_bits: 4, cosine: 0.97}}]
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.records import ABOUT, Generation, Record, digest
from pipeline.stage import Column, Promise, TableStage, Task, Work
from stages.dedup.edges import strength
from stages.dedup.grouping import IMAGE, PICKED, group, group_task, image_table, pick
from stages.dedup.parts import layout_of, tasks
from stages.dedup.uids import halves
from stages.kit.exchange import spread_to


class Groups(TableStage):
    """Group the edges of `NearDuplicates` by thresholds at most as loose as those it searched with.

    An edge counts where its bytes are equal, its hashes within `perceptual_bits` or its cosine at least `cosine`.
    Pairs that were compared on pixels and refused never count.
    """

    promise: ClassVar[Promise] = "pure"

    perceptual_bits: int | None = Field(default=None, ge=0, lt=64)
    """The most bits in which two hashes may differ; None: hashes prove nothing."""
    cosine: float | None = Field(default=None, gt=0, le=1)
    """The least cosine; None: embeddings prove nothing."""
    agreement: float | None = Field(default=None, ge=0, le=1)
    """The least agreement of the pixels; a pair that nobody looked at has none."""

    def needs(self) -> frozenset[str]:
        return frozenset({"uid_a", "uid_b", "evidence", "hamming", "cosine"})

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        return {"image": IMAGE}

    def ended(self, rows: pa.Table) -> Mapping[str, int]:
        return {"kept": rows.num_rows}  # each stands alone

    def assemble(self, work: Work) -> list[Record]:
        layout = layout_of(work.inputs)
        edges = _edges_of(work.inputs)
        numbers = {record.part: number for number, record in enumerate(work.inputs[layout.pool].records)}
        found = []
        for task in tasks(work.inputs, layout, [edges]):
            # Where the other end of an edge lies is no content of the edge table, but decides where its group goes.
            files = [digest(list(numbers)), *(record.bytes_hash() for record in task.inputs[edges])]
            hints = {"edges": edges, "parts": numbers}
            found.append(replace(task, payload={**task.payload, "files": files}, hints=hints))
        picked = work.map("pick", found, self.pick, final=False)
        grouped = work.map("group", [group_task(picked, layout)], group, final=False)
        holders = spread_to(work, "spread-groups", grouped, layout.bits, last=layout.parts - 1)
        about = grouped[0].notes[ABOUT]
        finals = [
            replace(
                task, inputs={**task.inputs, "groups": holders(number)}, hints={"pool": layout.pool, "about": about}
            )
            for number, task in enumerate(tasks(work.inputs, layout, [layout.pool], single=True))
        ]
        return work.map("final", finals, self.finish)

    def pick(self, task: Task, attempt: Attempt) -> None:
        """The edges of some parts that pass."""
        numbers = task.hints["parts"]
        picked = [PICKED.empty_table()]
        for place, record in enumerate(task.inputs[task.hints["edges"]]):
            rows = attempt.read(record, "edge")
            rows = rows.filter(self._passes(rows))
            same = pc.match_substring(rows.column("evidence"), "sha256")
            rows = rows.append_column("same_bytes", same)
            a, b = halves(rows.column("uid_a")), halves(rows.column("uid_b"))
            part_a = np.full(rows.num_rows, task.payload["first"] + place, np.int64)
            part_b = np.array([numbers[part] for part in rows.column("part_b").to_pylist()], np.int64)
            columns = [*a, *b, part_a, part_b, strength(rows)]
            picked.append(pa.table([pa.array(column) for column in columns], schema=PICKED))
        pick(attempt, pa.concat_tables(picked))

    def _passes(self, edges: pa.Table) -> pa.Array:
        counts = pc.match_substring(edges.column("evidence"), "sha256")
        if self.perceptual_bits is not None:
            near = pc.less_equal(edges.column("hamming"), self.perceptual_bits)
            counts = pc.or_(counts, pc.fill_null(near, False))
        if self.cosine is not None:
            near = pc.greater_equal(edges.column("cosine"), pa.scalar(self.cosine, pa.float32()))
            counts = pc.or_(counts, pc.fill_null(near, False))
        if self.agreement is not None:
            agree = pc.greater_equal(edges.column("agreement"), pa.scalar(self.agreement, pa.float32()))
            counts = pc.and_(counts, pc.fill_null(agree, False))
        return pc.and_(counts, pc.fill_null(edges.column("verified"), True))

    def finish(self, task: Task, attempt: Attempt) -> None:
        """The image table of one part."""
        attempt.write("image", image_table(task, attempt, task.hints["pool"]))
        attempt.note(**{ABOUT: task.hints["about"]})


def _edges_of(inputs: Mapping[str, Generation]) -> str:
    for node, generation in inputs.items():
        if any(record.file("edge") for record in generation.records):
            return node
    raise SluiceError(f"none of {', '.join(inputs)} has edges; add the node of stages.dedup.NearDuplicates to `from`")
