"""A batch made by hand, for testing one stage alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.stage import Prepare


@dataclass
class FakeBatch:
    """What a stage sees of some rows."""

    table: pa.Table = field(default_factory=lambda: pa.table({}))
    pictures: Sequence[np.ndarray | None] = ()

    def matrix(self, column: str) -> np.ndarray:
        rows = self.table[column].to_pylist()
        width = max(len(row) for row in rows if row is not None)
        return np.array([[np.nan] * width if row is None else row for row in rows], np.float32)

    def images(self, prepare: Prepare | None = None) -> list[np.ndarray | None]:
        return [prepare(one) if prepare and one is not None else one for one in self.pictures]

    def pixels(self, side: int) -> np.ndarray:
        raise NotImplementedError("no stage under test looks at squares")
