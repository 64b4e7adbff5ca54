"""Files of texts as shards that trainings take: a plain corpus for a language model.

    corpus:
      steps: [{stages.ingest.TextFiles: {files: "s3://raw/books/*.txt.gz"}}]
    llama:
      from: corpus
      steps: [{stages.train.Train: {recipe: llama}}]

Every file becomes a shard of its own, `<root>/corpus/data/<key>/00000000.tar` and so on, and `<key>` says what is in
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

import fsspec
import pyarrow as pa
from pydantic import Field

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.identity import expand, fingerprint
from pipeline.records import Record, digest
from pipeline.stage import Column, Files, Job, Promise, Task, Work
from stages.kit.tar import TarWriter

PLAIN, LINES = (".txt", ".md", ".text"), (".jsonl", ".ndjson")
INDEX = pa.schema(
    [
        ("uid", pa.string()),
        ("key", pa.string()),
        ("shard", pa.string()),
        ("image_offset", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_nbytes", pa.int64()),
    ]
)
"""Where every sample is. The text stands where a reader of shards looks for the image: first."""
BREAKS = tuple(re.compile(kind) for kind in (r"\n\s*\n", r"(?<=[.!?])\s", r"\s"))
"""Where a text may be cut: best between paragraphs, then between sentences, else between words."""


class TextFiles(Job):
    """One sample per text, `{key}.txt` and `{key}.json` (which document of the file, and which piece of it).

    A plain file is one text; a line of JSON Lines is one. Longer ones are cut, so that each sample is one small read,
    and long documents come as often as their length says. What is not UTF-8 is replaced by U+FFFD.
    """

    promise: ClassVar[Promise] = "pure"

    files: Files
    """Paths or globs on any fsspec store; .txt, .md, .jsonl or .ndjson, each also compressed (.gz, .bz2, .xz, .zst)."""
    text: str = "text"
    """The key of a JSON line that has the text."""
    longest: int = Field(default=10_000, ge=100)
    """Characters of a sample."""

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` where no file matches, or one is of no kind that is read."""
        for path in expand(self.files):
            kind_of(path)

    def assemble(self, work: Work) -> list[Record]:
        files = work.resources["files"]
        key = digest([[found for _, found in files], self.text, self.longest])[:12]
        tasks = [
            Task(f"{number:08d}", {"file": found, "key": key}, hints={"path": path})
            for number, (path, found) in enumerate(files)
        ]
        return work.map("write", tasks, self.pack)

    def pack(self, task: Task, attempt: Attempt) -> None:
        """One file as one shard."""
        path, shard = task.hints["path"], f"{task.part}.tar"
        place = f"data/{task.payload['key']}/{shard}"
        rows: list[tuple[str, str, str, int, int, int]] = []
        with attempt.create_final("shard", place) as stream:
            tar = TarWriter(stream)
            for document, text in enumerate(documents(path, self.text)):
                for piece, part in enumerate(pieces(text, self.longest)):
                    key = f"{task.part}{len(rows):010d}"
                    about = json.dumps({"uid": key, "document": document, "piece": piece}).encode()
                    begin, end = tar.add([(f"{key}.txt", part.encode()), (f"{key}.json", about)])
                    rows.append((key, key, shard, begin, end, len(about)))
            tar.finish()
        if fingerprint(path) != task.payload["file"]:
            raise SluiceError(f"{path} changed while it was read; run again when nobody writes to it")
        columns = zip(*rows, strict=True) if rows else ((),) * len(INDEX)
        attempt.write("samples", pa.table([list(column) for column in columns], schema=INDEX))
        attempt.count({"written": len(rows)})
        attempt.note(samples=len(rows), path=place)


def kind_of(path: str) -> str:
    """`text` or `lines`. Raises `SluiceError` for other files."""
    name = path.lower()
    for ending in (".gz", ".bz2", ".xz", ".zst"):
        name = name.removesuffix(ending)
    if name.endswith(PLAIN):
        return "text"
    if name.endswith(LINES):
        return "lines"
    raise SluiceError(f"{path} is no text; expected {', '.join((*PLAIN, *LINES))}, or such a file compressed")


def documents(path: str, field: str) -> Iterator[str]:
    """The texts of a file. Raises `SluiceError` for a line that is no JSON, or says no text."""
    with fsspec.open(path, "rt", encoding="utf-8", errors="replace", compression="infer") as stream:
        if kind_of(path) == "text":
            yield stream.read()
            return
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except ValueError as error:
                raise SluiceError(f"{path} line {number} is no JSON: {error}") from None
            text = found.get(field) if isinstance(found, dict) else None
            if not isinstance(text, str):
                keys = ", ".join(sorted(found)) if isinstance(found, dict) else type(found).__name__
                raise SluiceError(f"{path} line {number} has no text {field!r}; it has {keys}: set `text`")
            yield text.encode("utf-8", "replace").decode("utf-8")  # JSON can say half a surrogate pair


def pieces(text: str, longest: int) -> Iterator[str]:
    """A text in pieces of at most so many characters, each cut where a paragraph, a sentence or a word ends, where
    one does in its second half; pieces of white space alone are left out."""
    start = 0
    while start < len(text):
        end = min(start + longest, len(text))
        if end < len(text):
            end = _cut(text, start + longest // 2, end)
        if part := text[start:end].strip():
            yield part
        start = end


def _cut(text: str, low: int, high: int) -> int:
    """The last place in between at which the best kind of break ends."""
    for kind in BREAKS:
        ends = [found.end() for found in kind.finditer(text, low, high)]
        if ends:
            return ends[-1]
    return high
