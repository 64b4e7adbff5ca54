"""A file is read in one pass, and of its slices each by itself; together they are what `json` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.conversations import json_slices
from stages.conversations.json_slices import NoJson, read, slices

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    entries=st.lists(VALUES, min_size=1, max_size=9),
    most=st.integers(1, 5),
    block=st.integers(1, 40),
    listed=st.booleans(),
    ascii=st.booleans(),
    indent=st.none() | st.just(1),
)
def test_slices_together_are_the_file(
    tmp_path_factory: Any, entries: list[Any], most: int, block: int, listed: bool, ascii: bool, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("json") / "mix.json"
    lines = [json.dumps(entry, ensure_ascii=ascii) for entry in entries]
    whole = json.dumps(entries, ensure_ascii=ascii, indent=indent)
    if not listed and lines[0].startswith("["):
        lines[0] = "{}"  # what begins with a bracket is a list
        entries = [{}, *entries[1:]]
    path.write_bytes((f" \n{whole}\n" if listed else "\n\n".join(lines)).encode())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_slices, "BLOCK", block)
        found = list(slices(str(path), most))
    assert [one.entries for one in found] == [min(most, len(entries) - at) for at in range(0, len(entries), most)]
    assert [entry for one in found for entry in read(str(path), one)] == entries


@pytest.mark.parametrize(
    "text",
    [
        "{]",
        "[1, ",
        "[1 2]",
        "[1,]",
        "[1] 2",
        "[,1]",
        "[",
        '["a',
        "[1]]",
        "[" * 100_000,
        '{"a": 1}\n{',
        "\xff",
        '["\xff"]',
    ],
)
def test_what_is_no_json_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "mix.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(NoJson):
        list(slices(str(tmp_path / "mix.json"), 2))


@pytest.mark.parametrize("text", ["", " \n", "[]", "[ \n ] \n"])
def test_nothing_is_in_no_slice(text: str, tmp_path: Path) -> None:
    (tmp_path / "mix.json").write_text(text)
    assert list(slices(str(tmp_path / "mix.json"), 2)) == []


def test_what_never_ends_is_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_slices, "LONGEST", 1000)
    monkeypatch.setattr(json_slices, "BLOCK", 100)
    (tmp_path / "mix.json").write_text('["' + "a" * 100_000)
    read_bytes = []
    more = json_slices._Text._more

    def counted(self: Any, size: int = 100) -> None:
        read_bytes.append(size)
        more(self, size)

    monkeypatch.setattr(json_slices._Text, "_more", counted)
    with pytest.raises(NoJson, match="in what begins at byte 1"):
        list(slices(str(tmp_path / "mix.json"), 2))
    assert sum(read_bytes) < 5000
