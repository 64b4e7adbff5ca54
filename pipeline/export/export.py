"""One export, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.errors import SluiceError, did_you_mean
from pipeline.export import clip_retrieval, croissant, datacomp, hf
from pipeline.export.facts import Facts
from pipeline.export.options import Options
from pipeline.export.selection import Selection
from pipeline.export.target import Target
from pipeline.records import File

Write = Callable[[Selection, Target, Options], list[str]]
"""Writes the files of a format; returns remarks for the user, a line each."""
FORMATS: Mapping[str, Write] = {
    "datacomp": datacomp.write,
    "clip-retrieval": clip_retrieval.write,
    "hf": hf.write,
    "croissant": croissant.write,
}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    files: list[File]
    remarks: list[str]


def export(
    root: str, node: str, form: str, out: str, run: str | None = None, options: Options | None = None
) -> Exported:
    """Write the pairs that `node` kept in a format to a folder, or to any fsspec store.

    What is interrupted is finished by the same call, which writes the same bytes again; nothing is overwritten.
    Raises `SluiceError` for an unknown node or format, and where other files lie in the way.
    """
    if form not in FORMATS:
        raise SluiceError(f"--format {form!r} is none{did_you_mean(form, FORMATS)}")
    options = options or Options()
    options.check(form)
    with Selection(root, node, run) as selection, Target(out) as target:
        target.begin({"format": form, **Facts.of(selection).identity()})
        remarks = FORMATS[form](selection, target, options)
        return Exported(target.finish(), remarks)
