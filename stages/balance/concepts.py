"""Balance captions over a list of concepts, as MetaCLIP does (Xu et al. 2023, Demystifying CLIP Data, Algorithm 1).

    balance:
      from: [pool, kept]
      steps: [{stages.balance.BalanceConcepts: {concepts: metadata.json, cap: 20000, among: kept}}]

Phases: the captions of every part are matched and counted; the counts are summed; every part is drawn from.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.attempt import Attempt
from pipeline.dag import resolve
from pipeline.errors import SluiceError
from pipeline.records import Generation, Record
from pipeline.rows import qualified
from pipeline.stage import KEYS, Column, File, Promise, TableStage, Task, Work
from stages.balance.among import check_among, taking_part
from stages.balance.draws import draws, read_counts, statuses, summed, write_counts
from stages.balance.matching import matcher_of, read_concepts
from stages.kit.parts import part_tasks, rows_of

ADDED = pa.schema(
    [("concepts", pa.list_(pa.string())), ("balance_probability", pa.float32()), ("balanced", pa.bool_())]
)
MATCHES = pa.schema([*KEYS["caption"], ("entries", pa.list_(pa.int32())), ("counted", pa.bool_())])


class BalanceConcepts(TableStage):
    """Add `concepts`, `balance_probability` and `balanced` to every caption.

    An entry that `n` captions hold lets each of them through with probability min(1, cap / n); a caption stays if any
    of its entries lets it through, so with 1 - prod(1 - min(1, cap / n)). One that holds no entry never stays. So of a
    frequent entry about `cap` captions remain, and of a rare one all.

    The draw of a pair depends on the DAG's seed, its uid and its caption_id only: on no part, worker or other pair. A
    larger cap adds pairs and takes none away. Nothing is dropped here; `stages.select.Select` does it by `balanced`.
    """

    promise: ClassVar[Promise] = "pure"
    seeded: ClassVar[bool] = True

    concepts: File
    """One concept a line, or a JSON list of them; matching.py says what counts as a match."""
    cap: int = Field(default=20_000, ge=1)
    """t of the paper: captions of an entry that remain, about. The paper takes 20,000 for 400 million pairs, and
    170,000 for 2.5 billion: so that about as large a share lies in the tail (section 3.4)."""
    lowercase: bool = False
    """Compare without regard to case; the paper compares as it is written."""
    among: str | None = "status"
    """The column that says which pairs are counted and drawn: true, or the status `success`; None: all. The others get
    their concepts, and null for the rest."""
    shown: int = Field(default=8, ge=1)
    """Entries that `concepts` lists at most: the rarest, which are the likeliest to keep a pair."""

    def needs(self) -> frozenset[str]:
        return frozenset({"caption", *({self.among} if self.among is not None else ())})

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` for a list that cannot be read, and for columns of another kind."""
        column = resolve("caption", inputs)
        if column.type not in (pa.string(), pa.large_string()):
            raise SluiceError(f"caption is {column.type}; expected text")
        check_among(self.among, inputs, "caption")
        read_concepts(self.concepts)

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        return {"caption": pa.schema([*KEYS["caption"], *ADDED])}

    def ended(self, rows: pa.Table) -> Mapping[str, int]:
        return {"not_counted": rows.num_rows}

    def assemble(self, work: Work) -> list[Record]:
        text = resolve("caption", work.columns)
        among = None if self.among is None else resolve(self.among, work.columns)
        columns = tuple(column for column in (text, among) if column is not None)
        inputs = _of(work.inputs, columns)
        tasks = part_tasks(inputs, {"columns": columns, "text": text, "among": among}, counted=True)
        matched = work.map("match", tasks, self.match, final=False)
        total = summed(work, matched)
        finals = [
            Task(task.part, {}, {"matches": (record,), "total": (total,)}, task.supersedes, task.rows,
                 {"seed": work.seed})
            for task, record in zip(tasks, matched, strict=True)
        ]  # fmt: skip
        return work.map("draw", finals, self.draw)

    def match(self, task: Task, attempt: Attempt) -> None:
        """The entries of one part's captions, and how often each of them counts."""
        rows = rows_of(task, attempt)
        if rows.caption is None:
            raise SluiceError(f"{attempt.node}: no input has captions; add the pool to `from`")
        matcher = matcher_of(self.concepts, self.lowercase)
        texts = rows.caption.column(qualified(task.hints["text"])).to_pylist()
        entries = [None if text is None else matcher.of(text) for text in texts]
        counted = taking_part(rows, task, attempt, task.hints["among"], "caption")
        keys = rows.keys("caption")
        attempt.write("matches", pa.table([*keys.columns, entries, counted], schema=MATCHES))
        found = [entry for row, one in enumerate(entries) if counted[row] for entry in one or ()]
        write_counts(attempt, np.array(found, np.int64))

    def draw(self, task: Task, attempt: Attempt) -> None:
        """What remains of one part."""
        matches = attempt.read(task.inputs["matches"][0], "matches")
        counts = read_counts(attempt, task.inputs["total"][0])
        names = read_concepts(self.concepts)
        keys = matches.select(KEYS["caption"].names)
        counted = np.asarray(matches.column("counted"))
        shown, chances = [], np.full(len(counted), np.nan)
        for row, entries in enumerate(matches.column("entries").to_pylist()):
            # Entries that no counted pair holds have no count; their pairs are not drawn, but shown.
            known = [(int(counts[entry]) if entry < len(counts) else 0, entry) for entry in entries or ()]
            shown.append(None if entries is None else [names[entry] for _, entry in sorted(known)[: self.shown]])
            if counted[row]:
                chances[row] = chance([count for count, _ in known], self.cap)
        kept = draws(task.hints["seed"], keys) < chances
        probability = pa.array(chances.astype(np.float32), mask=~counted)
        columns = [pa.array(shown, pa.list_(pa.string())), probability, pa.array(kept, mask=~counted)]
        attempt.write("caption", pa.table([*keys.columns, *columns], schema=pa.schema([*KEYS["caption"], *ADDED])))
        attempt.count(statuses(kept, counted))
        attempt.note(entries=int((counts > 0).sum()), entries_above_cap=int((counts > self.cap).sum()))


def chance(counts: Sequence[int], cap: int) -> float:
    """The probability that any entry lets a pair through; `counts`: of the entries that it holds."""
    return 1 - prod(1 - min(1.0, cap / count) for count in counts)


def _of(inputs: Mapping[str, Generation], columns: Sequence[Column]) -> dict[str, Generation]:
    """The nodes that the columns are of, in the order of `from`."""
    nodes = {column.node for column in columns}
    return {node: generation for node, generation in inputs.items() if node in nodes}
