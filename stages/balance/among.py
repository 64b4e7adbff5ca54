"""Which rows take part: what was never downloaded, or was dropped before, must not count as seen."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.attempt import Attempt
from pipeline.dag import resolve
from pipeline.errors import SluiceError
from pipeline.rows import PartRows, qualified
from pipeline.stage import Column, Task
from stages.kit.parts import counting

SUCCESS = "success"


def check_among(among: str | None, inputs: Sequence[Column], grain: str) -> None:
    """Raise `SluiceError` where the column that says who takes part says neither true nor a status."""
    if among is None:
        return
    column = resolve(among, inputs)
    if column.type not in (pa.bool_(), pa.string()) or (grain == "image" and column.grain != "image"):
        raise SluiceError(
            f"among: {among!r} is {column.type} of {column.grain}s; expected true or false, or a status, of {grain}s"
        )


def taking_part(
    rows: PartRows, task: Task, attempt: Attempt, column: Column | None, grain: str
) -> npt.NDArray[np.bool_]:
    """bool (rows of the grain,): those that still count and that `column` (a status, or true and false) lets in."""
    counts = counting(task, attempt, rows.image.column("uid"))
    if grain == "caption":
        counts = counts[rows.image_of]
    if column is None:
        return counts
    table = rows.caption if column.grain == "caption" and rows.caption is not None else rows.image
    values = table.column(qualified(column))
    let_in = values if column.type == pa.bool_() else pc.equal(values, SUCCESS)
    found: npt.NDArray[np.bool_] = np.asarray(pc.fill_null(let_in, False), bool)
    return counts & (found[rows.image_of] if grain == "caption" and table is rows.image else found)
