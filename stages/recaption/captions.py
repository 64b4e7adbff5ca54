"""Captions that models wrote, told beside those of the web: the pairs that later nodes score and select from.

    captions:
      from: [pool, written]        # and further nodes that wrote captions
      steps: [stages.recaption.Captions]
    scores:
      from: [captions, pool]       # what tells more captions stands first
      steps: [{stages.match.ItmScore: {weights: {node: filter}}}]

Which captions are used is a matter of rules, over `source`, scores and what other stages measure:

    append    no rule
    replace   synthetic: source <> 'web' OR NOT bool_or(source <> 'web') OVER (PARTITION BY uid)
    ratio     mixed: count(DISTINCT source = 'web') OVER (PARTITION BY uid) < 2 OR (draw < 0.7) = (source <> 'web')
    common    not_common: source = 'web' OR count(*) OVER (PARTITION BY caption_id) <= 20

`replace` and `ratio` stand last: an image of which no written caption is left keeps the web's, and under `ratio` one of
which none of the web's is left keeps the written ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.records import Record
from pipeline.rows import PartRows
from pipeline.stage import KEYS, Column, Promise, TableStage, Task, Work
from stages.kit.parts import part_tasks, rows_of
from stages.recaption.written import WRITTEN

TOLD = pa.schema(
    [
        *KEYS["caption"],
        ("caption", pa.string()),
        ("source", pa.string()),
        ("model", pa.string()),
        ("checkpoint", pa.string()),
        ("candidate", pa.int32()),
        ("caption_score", pa.float32()),
        ("times", pa.int32()),
        ("draw", pa.float32()),
    ]
)
"""`source` is `web`, or who wrote the caption; `model`, `checkpoint`, `candidate` (counted from 0) and `caption_score`
say more of that one and are null for the web's. `times`: how often models wrote it, so that a caption of the web that a
model wrote as well stands once, with 1. `draw`: in [0, 1), one number for all captions of an image, for rules that mix.
"""
EARLIER = ("model", "checkpoint", "candidate", "caption_score", "times")
"""What a node says that told more captions already."""


class Captions(TableStage):
    """Every caption of the first node in `from`, and behind those of each image the ones that the other nodes wrote.

    None is left out: one that an image has already counts there, in `times`.
    """

    promise: ClassVar[Promise] = "pure"

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` where nobody told captions, or nobody wrote any."""
        names = {(column.grain, column.name) for column in inputs}
        if ("caption", "caption") not in names or ("caption", "source") not in names:
            raise SluiceError("no node in `from` tells captions; name the pool first in `from`")
        if ("image", WRITTEN.names[0]) not in names:
            raise SluiceError("no node in `from` wrote captions; add one such as stages.recaption.Recaption")

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        return {"caption": TOLD}

    def ended(self, rows: pa.Table) -> Mapping[str, int]:
        return Counter(rows.column("source").to_pylist())

    def assemble(self, work: Work) -> list[Record]:
        first = next(iter(work.inputs))
        told = ("caption", "source", *EARLIER)
        columns = [c for c in work.columns if c.grain == "caption" and c.node == first and c.name in told]
        columns += [c for c in work.columns if c.grain == "image" and c.name in WRITTEN.names]
        return work.map("parts", part_tasks(work.inputs, {"columns": tuple(columns)}), self.tell)

    def tell(self, task: Task, attempt: Attempt) -> None:
        """The captions of one part."""
        rows = rows_of(task, attempt)
        first, *others = task.inputs
        writers = [node for node in others if f"{node}.{WRITTEN.names[0]}" in rows.image.column_names]
        found, repeated = _told(rows, first, writers)
        attempt.write("caption", found)
        attempt.count(Counter(found.column("source").to_pylist()))
        attempt.note(repeated=repeated)


def _told(rows: PartRows, first: str, writers: Sequence[str]) -> tuple[pa.Table, int]:
    """The captions of a part, grouped by image in its order, and how often one was written that was there."""
    assert rows.caption is not None
    known = [name for name in TOLD.names if f"{first}.{name}" in rows.caption.column_names]
    images: list[dict[str, dict[str, Any]]] = [{} for _ in range(rows.image.num_rows)]
    plain = rows.caption.select(["uid", "caption_id", *(f"{first}.{name}" for name in known)])
    for image, row in zip(rows.image_of.tolist(), plain.to_pylist(), strict=True):
        own = {name: row[f"{first}.{name}"] for name in known}
        images[image][row["caption_id"]] = {"times": 0, **own}
    repeated = 0
    for node in writers:
        for image, row in enumerate(rows.image.select([f"{node}.{name}" for name in WRITTEN.names]).to_pylist()):
            texts, scores, source, model, checkpoint = (row[f"{node}.{name}"] for name in WRITTEN.names)
            for candidate, (text, score) in enumerate(zip(texts or (), scores or (), strict=True)):
                entry = images[image].setdefault(
                    caption_id_of(text),
                    {
                        "caption": text or None,
                        "source": source,
                        "model": model,
                        "checkpoint": checkpoint,
                        "candidate": candidate,
                        "caption_score": score,
                        "times": 0,
                    },
                )
                entry["times"] += 1
                repeated += entry["times"] > 1 or entry["source"] != source
    table = []
    for uid, captions in zip(rows.uids.to_pylist(), images, strict=True):
        draw = drawn(uid)
        table += [{"uid": uid, "caption_id": key, "draw": draw, **said} for key, said in captions.items()]
    return pa.Table.from_pylist(table, schema=TOLD), repeated


def caption_id_of(text: str) -> str:
    """32 hex of BLAKE2b-128 over the text, as a pool knows its captions."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


def drawn(uid: str) -> float:
    """A number in [0, 1) of an image: of 24 bits, which float32 holds exactly."""
    return int.from_bytes(blake2b(uid.encode(), digest_size=3, person=b"draw").digest(), "little") / (1 << 24)
