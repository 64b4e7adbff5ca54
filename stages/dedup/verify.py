"""The phases that look at candidates: where the second image lies is sent to the part of the first one."""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.stage import OBSERVED, Device, Task
from stages.dedup.edges import CANDIDATES, ENDS, JUDGED, strength, together
from stages.dedup.grouping import pick
from stages.dedup.parts import Layout, live
from stages.dedup.uids import texts
from stages.kit.exchange import Scatter, gather
from stages.kit.pixels import Sight, agreement, sight

READERS = 8
"""Concurrent range reads; a store far away is slow to answer, not slow to send."""
AT_ONCE = 64
"""Edges whose images are in memory together."""
REMEMBERED_BYTES = 128 << 20
"""Decoded images that are kept for later edges, 0.4 MiB each: edges come in the order of their smaller uid, so that a
hub is decoded once."""
PLACED = pa.schema(
    [
        *CANDIDATES,
        ("stored_sha256", pa.string()),
        pa.field("tar", pa.string(), metadata=OBSERVED),
        pa.field("offset", pa.int64(), metadata=OBSERVED),
        pa.field("nbytes", pa.int64(), metadata=OBSERVED),
    ]
)
"""A candidate with the place of the bytes of its second image."""


def locate(task: Task, attempt: Attempt) -> None:
    """The edges whose larger uid is in these parts, with the place of its bytes; sent to the part of the other one."""
    layout = Layout(**task.payload["layout"])
    rows = together(gather(attempt, task.inputs["edges"], layout.group_bits, task.payload["number"]))
    scatter = Scatter(attempt)
    for number, places in _places(task, attempt).items():
        mine = rows.filter(pc.equal(rows.column("part_b"), number))
        mine = mine.set_column(0, CANDIDATES.field(0), [layout.places(mine.column("part_a").to_numpy())])
        scatter.add(_beside(mine, "b", places))
    scatter.close()
    attempt.note(bits=0)


def look(task: Task, attempt: Attempt) -> None:
    """The edges whose smaller uid is in these parts, each with what its pixels say."""
    layout = Layout(**task.payload["layout"])
    tables = gather(attempt, task.inputs["edges"], layout.group_bits, task.payload["number"])
    rows = pa.concat_tables([PLACED.empty_table(), *tables]).sort_by([(name, "ascending") for name, _ in ENDS])
    device: Device = task.hints.get("device", Device())
    scatter, picked = Scatter(attempt), []
    for number, places in _places(task, attempt).items():
        mine = rows.filter(pc.equal(rows.column("part_a"), number))
        own = _beside(mine.select(CANDIDATES.names), "a", places)
        judged = _judged(attempt, mine, own, device)
        scatter.add(judged)
        counts = judged.filter(judged.column("verified"))
        picked.append(counts.append_column("strength", pa.array(strength(counts))))
    scatter.close()
    found = pa.concat_tables(picked)
    pick(attempt, found)
    attempt.note(bits=0, looked=rows.num_rows, verified=found.num_rows)


def _places(task: Task, attempt: Attempt) -> dict[int, pa.Table]:
    """By the number of a part: uid and place of its images."""
    pool = task.hints["pool"]
    found = {}
    for part in live(task, attempt, pool, ()):
        file = part.record.file("tar")
        if file is None:
            raise SluiceError(f"{part.record.node} part {part.record.part} has no tar; run its download again")
        tar = pa.array([attempt.store.place(part.record, file)] * part.table.num_rows, pa.string())
        columns = [part.table.column(f"{pool}.{name}") for name in ("stored_sha256", "offset", "nbytes")]
        names = ["uid", "stored_sha256", "tar", "offset", "nbytes"]
        found[part.number] = pa.table([part.table.column("uid"), columns[0], tar, *columns[1:]], names=names)
    return found


def _beside(rows: pa.Table, end: str, places: pa.Table) -> pa.Table:
    """Edges with the place of one of their ends."""
    uids = texts(rows.column(end).to_numpy(), rows.column(f"{end}_tail").to_numpy())
    found = places.take(pc.index_in(uids, value_set=places.column("uid").combine_chunks()))
    columns = [found.column(field.name) for field in list(PLACED)[len(CANDIDATES) :]]
    return pa.table([*rows.columns, *columns], schema=PLACED)


def _judged(attempt: Attempt, others: pa.Table, own: pa.Table, device: Device) -> pa.Table:
    """What the pixels say; images with the same bytes are not looked at."""
    same = np.asarray(pc.fill_null(others.column("same_bytes"), False))
    verified, agree = same.copy(), np.full(len(same), np.nan, np.float32)
    columns = list(PLACED.names[len(CANDIDATES) :])
    look_at = np.flatnonzero(~same)
    cv2.setNumThreads(1)  # pairs are compared side by side
    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(device.threads) as threads:
        sights = _Sights(attempt, readers)
        for start in range(0, len(look_at), AT_ONCE):
            chosen = look_at[start : start + AT_ONCE]
            pairs = [table.take(chosen).select(columns).to_pylist() for table in (own, others)]
            verdicts = list(threads.map(agreement, *map(sights.of, pairs)))
            for row, verdict in zip(chosen, verdicts, strict=True):
                agree[row], verified[row] = verdict.agreement, verdict.copy
    rows = others.select(CANDIDATES.names)
    pixels = pa.array(agree, mask=np.isnan(agree))
    return pa.table([*rows.columns, pixels, pa.array(verified)], schema=JUDGED)


class _Sights:
    """Decoded images; those that were asked for last are remembered, up to `REMEMBERED_BYTES`."""

    def __init__(self, attempt: Attempt, readers: ThreadPoolExecutor) -> None:
        self._attempt, self._readers = attempt, readers
        self._known: OrderedDict[tuple[str, int], Sight] = OrderedDict()
        self._bytes = 0

    def of(self, places: Sequence[dict[str, Any]]) -> list[Sight]:
        """The image at each place. Raises `SluiceError` naming the tar of a damaged one."""
        wanted = {(place["tar"], place["offset"]): place for place in places}
        missing = [key for key in wanted if key not in self._known]
        fresh = zip(missing, self._readers.map(self._read, [wanted[key] for key in missing]), strict=True)
        for key, seen in fresh:
            self._known[key] = seen
            self._bytes += seen.nbytes
        for key in wanted:
            self._known.move_to_end(key)
        found = [self._known[place["tar"], place["offset"]] for place in places]
        while self._bytes > REMEMBERED_BYTES:
            self._bytes -= self._known.popitem(last=False)[1].nbytes
        return found

    def _read(self, place: dict[str, Any]) -> Sight:
        store = self._attempt.store
        data = store.get_range(place["tar"], place["offset"], place["offset"] + place["nbytes"])
        if sha256(data).hexdigest() != place["stored_sha256"]:
            raise SluiceError(
                f"{store.url(place['tar'])} is corrupt at byte {place['offset']}; `sluice verify {store.root} --repair`"
            )
        return sight(data)
