"""The columns in which captions lie that a model wrote, until `Captions` makes pairs of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import SluiceError

if TYPE_CHECKING:
    from models.captioners.decoding import Written

WRITTEN = pa.schema(
    [
        ("written", pa.list_(pa.string())),
        ("written_score", pa.list_(pa.float32())),
        ("written_source", pa.string()),
        ("written_model", pa.string()),
        ("written_checkpoint", pa.string()),
    ]
)
"""The candidates of an image in their order, the mean logarithm of their tokens' probabilities, and who wrote them:
the source that their captions have, the model's class or name, the hash of its weights. Null where no image is."""

WEB = "web"
"""The source of captions that no model wrote."""


def check_source(source: str) -> None:
    """Raise `SluiceError` for a name that rules would take for the web's."""
    if source == WEB:
        raise SluiceError(
            f"source = {source!r}: rules take that for the web's own captions; give another name in `source`"
        )


def table(found: Sequence[Sequence[Written] | None], source: str, model: str, checkpoint: str | None) -> pa.Table:
    """A row for every image."""
    texts = [None if captions is None else [one.text for one in captions] for captions in found]
    scores = [None if captions is None else [one.score for one in captions] for captions in found]
    said = [[None if captions is None else value for captions in found] for value in (source, model, checkpoint)]
    return pa.table([texts, scores, *said], schema=WRITTEN)
