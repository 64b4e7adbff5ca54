"""Files of texts as shards: nothing of a text is lost, and a training reads what was written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.shards import Samples
from models.data.texts import text_of
from pipeline.errors import SluiceError
from stages.ingest.text_files import pieces
from tests.stages.ingest.conftest import Ingest

STAGE = "stages.ingest.TextFiles"
BOOK = "\n\n".join(" ".join(f"Word{place} of paragraph {number}." for place in range(8)) for number in range(12))


def test_files_of_all_kinds_become_shards_that_a_training_reads(ingest: Ingest, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text(BOOK)
    lines = [json.dumps({"text": f"line {number} \u00e9"}) for number in range(3)]
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n\n".join(lines).encode()))
    (folder / "c.md").write_bytes(b"half \xff a word")
    generation = ingest(f"{folder}/*", STAGE, longest=300)
    samples = Samples.open(ingest.store.url("urls"))
    assert not samples.faults
    texts = [text_of(sample, Random(0)) for sample in samples]
    assert "".join("".join(texts[:-4]).split()) == "".join(BOOK.split())
    assert max(map(len, texts)) <= 300
    assert texts[-4:] == ["line 0 \u00e9", "line 1 \u00e9", "line 2 \u00e9", "half \ufffd a word"]
    assert len({sample.key for sample in samples}) == len(samples) == sum(r.rows["samples"] for r in generation.records)
    said = json.loads(samples[1].members["json"])
    assert (said["document"], said["piece"]) == (0, 1)
    before = len(ingest.executor.calls)
    assert ingest(f"{folder}/*", STAGE, longest=300).content_hash == generation.content_hash
    assert len(ingest.executor.calls) == before, "what is committed is not read again"


def test_texts_are_cut_between_paragraphs_where_they_can_be() -> None:
    found = list(pieces(BOOK, 500))
    assert all(part.endswith(".") and part.startswith("Word0 of") for part in found)
    assert list(pieces("One. Two three four. Five", 22)) == ["One. Two three four.", "Five"]
    assert list(pieces("x" * 25, 10)) == ["x" * 10, "x" * 10, "x" * 5]


@given(text=st.text(st.sampled_from("ab .\n"), max_size=200), longest=st.integers(4, 50))
def test_pieces_lose_nothing_but_white_space(text: str, longest: int) -> None:
    found = list(pieces(text, longest))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(0 < len(part) <= longest for part in found)


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.jsonl", b'{"body": "x"}', r"line 1 has no text 'text'; it has body: set `text`"),
        ("a.jsonl", b'{"text": "x"}\n{broken', "line 2 is no JSON"),
        ("a.jsonl", b"[1]", "line 1 has no text 'text'; it has list"),
        ("a.pdf", b"x", "is no text; expected .txt"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_one_line(
    ingest: Ingest, tmp_path: Path, name: str, data: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SluiceError, match=told):
        ingest(tmp_path / name, STAGE)
