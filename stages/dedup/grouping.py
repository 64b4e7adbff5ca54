"""From edges to groups, and from groups to an image table for every part: the phases that both stages here end with."""

from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.attempt import Attempt
from pipeline.records import ABOUT, Record
from pipeline.stage import Task
from stages.dedup.parts import REPLACING, Layout, counting
from stages.dedup.stars import numbered, smallest, stars, to_centre
from stages.dedup.uids import Halves, texts
from stages.kit.exchange import PLACE, Scatter, gather

PICKED = pa.schema(
    [(f"{end}{half}", pa.uint64()) for end in "ab" for half in ("", "_tail")]
    + [("part_a", pa.int64()), ("part_b", pa.int64()), ("strength", pa.float32())]
)
"""An edge that counts: both uids in halves, the numbers of their parts, and how much alike they are."""
MEMBERS = pa.schema(
    [PLACE, ("uid", pa.uint64()), ("tail", pa.uint64()), ("group", pa.uint64()), ("group_tail", pa.uint64()),
     ("similarity", pa.float32())]
)  # fmt: skip
"""An image with an edge, on its way back to its part."""
IMAGE = pa.schema([("uid", pa.string()), ("duplicate_group", pa.string()), ("similarity", pa.float32())])
"""`duplicate_group` is the smallest uid of the group, its own where there is no copy. `similarity`: how much the image
is like the centre of its group, 0 to 1; null where there is no copy."""


def group(task: Task, attempt: Attempt) -> None:
    """All picked edges to groups, in one process: at most 250 bytes an edge, and nothing of images without one.

    Ten million edges take 2.4 GiB and seconds; a billion need a machine with 256 GB.
    """
    tables = [attempt.read(record, "picked") for record in task.inputs["picked"]]
    picked = pa.concat_tables([PICKED.empty_table(), *tables])
    layout = Layout(**task.payload["layout"])
    uids, groups, like, parts = members(picked)
    scatter = Scatter(attempt)
    columns = [layout.places(parts), *uids, *groups, like]
    scatter.add(pa.table([pa.array(column) for column in columns], schema=MEMBERS))
    scatter.close()
    sizes = np.unique(groups[0], return_counts=True)[1]
    about = {"edges": picked.num_rows, "copies": len(like), "groups": len(sizes), "largest": int(sizes.max(initial=0))}
    attempt.note(bits=0, **{ABOUT: about})


def members(
    picked: pa.Table,
) -> tuple[Halves, Halves, npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Every image with an edge that leads to a group: uid, group, similarity to its centre, number of its part."""
    a, b = ((picked.column(end).to_numpy(), picked.column(f"{end}_tail").to_numpy()) for end in "ab")
    strength = picked.column("strength").to_numpy()
    first, second, uids = numbered(a, b)
    count = len(uids[0])
    centre = stars(first, second, strength, count)
    like = to_centre(first, second, strength, centre)
    parts = np.zeros(count, np.int64)
    parts[first], parts[second] = picked.column("part_a").to_numpy(), picked.column("part_b").to_numpy()
    least = smallest(centre)
    shared = np.bincount(centre, minlength=count)[centre] > 1
    groups = uids[0][least[shared]], uids[1][least[shared]]
    return (uids[0][shared], uids[1][shared]), groups, like[shared], parts[shared]


def image_table(task: Task, attempt: Attempt, pool: str) -> pa.Table:
    """The rows of one part with their groups. A row that a later part took over stands alone."""
    (record,) = task.inputs[pool]
    keys = attempt.read(record, "image", ["uid"]).column("uid").combine_chunks()
    found = gather(attempt, task.inputs["groups"], task.payload["bits"], task.payload["number"])
    rows = pa.concat_tables([MEMBERS.empty_table(), *found])
    uids = texts(*(rows.column(name).to_numpy() for name in ("uid", "tail")))
    groups = texts(*(rows.column(name).to_numpy() for name in ("group", "group_tail")))
    counts = pa.array(counting(keys, record, task.inputs[REPLACING], attempt))
    place = pc.if_else(counts, pc.index_in(keys, value_set=uids), None)
    of_row = pc.coalesce(groups.take(place), keys)
    like = rows.column("similarity").combine_chunks().take(place)
    copies = int(pc.sum(pc.not_equal(of_row, keys)).as_py() or 0)
    attempt.count({"copy": copies, "kept": len(keys) - copies})
    return pa.table([keys, of_row, like], schema=IMAGE)


def pick(attempt: Attempt, rows: pa.Table) -> None:
    """Write the edges that count for groups."""
    attempt.write("picked", rows.select(PICKED.names).cast(PICKED))


def group_task(picked: list[Record], layout: Layout) -> Task:
    rows = sum(record.rows["picked"] for record in picked)
    return Task("all", {"layout": asdict(layout)}, {"picked": tuple(picked)}, rows=rows)
