"""Words over pictures: where they are asked for they are in the table, the key, the evaluation set and the images."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.miniweb.__main__ import main
from infra.miniweb.render import paint
from infra.miniweb.scenes import WORDS
from tests.infra.test_render import CALM


def told(folder: Path, *options: str) -> tuple[list[str | None], list[str]]:
    """Words of the key and captions of the table, of pages that have a caption of their own."""
    made = ["--pages", "40", "--mix", "clean", "--port", "0", "--processes", "0", "--key", str(folder / "key.parquet")]
    assert main([str(folder), *made, *options, "--", "true"]) == 0
    key = pq.read_table(folder / "key.parquet")
    assert key["page_id"].to_pylist() == list(range(40))
    return key["written"].to_pylist(), pq.read_table(folder / "urls.parquet")["alt"].to_pylist()


def test_a_web_has_words_where_they_are_asked_for_and_key_and_captions_tell_them(tmp_path: Path) -> None:
    words, captions = told(tmp_path, "--words", "1", "--evaluation", str(tmp_path / "evaluation"))
    assert set(words) <= set(WORDS)
    assert len(set(words)) > 6
    assert all(f'"{word}"' in caption for word, caption in zip(words, captions, strict=True))
    lines = (tmp_path / "evaluation" / "metadata.jsonl").read_text().splitlines()
    for entry in map(json.loads, lines):
        assert all(f'"{entry["written"]}"' in caption for caption in entry["captions"])
    plain, captions = told(tmp_path)
    assert set(plain) == {None}
    assert not any('"' in caption for caption in captions)


@pytest.mark.parametrize("share", ["25", "-0.1", "nan", "inf", "some", ""])
def test_what_is_no_share_is_told(tmp_path: Path, share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path), f"--words={share}"])
    assert f"argument --words: {share!r} is no share; expected 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("sides", [(400, 80), (300, 200), (64, 200)])
def test_no_word_is_cut_off(word: str, sides: Sequence[int]) -> None:
    plain = replace(CALM, width=sides[0], height=sides[1])
    images = (np.asarray(paint(scene).convert("L"), np.int16) for scene in (plain, replace(plain, written=word)))
    changed = np.abs(np.subtract(*images)) > 40
    edges = changed[0], changed[-1], changed[:, 0], changed[:, -1]
    assert changed.mean() > 0.02
    assert not any(edge.any() for edge in edges)
