"""What a user may choose about an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FILL_IN = "FILL IN"
"""What only the owner of the data can say, and has not said."""


@dataclass(frozen=True)
class Options:
    """Every format takes what concerns it."""

    rows_per_file: int = 1_000_000
    """Pairs (or images) in a Parquet or NumPy file."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Name in the export -> `column` or `node.column`, such as `clip_l14_similarity_score` -> `clip_score`."""
    copy_shards: bool = False
    """`hf`: copy the shards, pixels included, instead of a table that names them."""
    name: str | None = None
    """Of the data set; by default the DAG's and the node's."""
    license: str = FILL_IN
    """An SPDX id or a URL. Nothing of the web pages' licences is known here: it is the owner's to say."""
    creator: str = FILL_IN
    url: str = FILL_IN
    """The data set's page."""
    published: str = FILL_IN
    """The date of publication, as 2026-11-21."""
