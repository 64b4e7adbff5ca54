"""What a user may choose about an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from urllib.parse import urlsplit

from pipeline.errors import SluiceError

FILL_IN = "FILL IN"
"""What only the owner of the data can say, and has not said."""
RESERVED = ("uid", "caption_id")
"""The keys of every export's rows."""
TAKERS = {
    "copy_shards": ("hf",),
    "name": ("hf", "croissant"),
    "license": ("hf", "croissant"),
    "creator": ("croissant",),
    "url": ("croissant",),
    "published": ("croissant",),
}
"""The formats in which an option says something."""


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

    def check(self, form: str) -> None:
        """Raises `SluiceError` for what the format has no place for, and for what is no date, URL or free name."""
        for name, forms in TAKERS.items():
            if form not in forms and getattr(self, name) not in (None, False, FILL_IN):
                option = "--" + name.replace("_", "-")
                raise SluiceError(
                    f"{option} means nothing to --format {form}, only to {', '.join(forms)}; leave it out"
                )
        for label in self.columns:
            if label.lower() in (*RESERVED, *(["image_path"] if form == "clip-retrieval" else [])):
                raise SluiceError(f"--column {label}=…: the export has a {label} of its own; give another name")
        if self.url != FILL_IN and not _is_url(self.url):
            raise SluiceError(f"--url {self.url!r} is no URL; write it as https://example.org/data")
        if self.published != FILL_IN and not _is_date(self.published):
            raise SluiceError(f"--published {self.published!r} is no date; write it as 2026-11-21")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not any(c.isspace() for c in text)


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
