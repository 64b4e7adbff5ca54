"""A file is read in one pass, and of its slices each by itself; together they are what `json` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import SluiceError
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
@example(entries=[1.5, -2e30], most=1, block=1, listed=True, ascii=True, indent=None)
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


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_a_number_is_not_cut_where_a_block_ends(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_slices, "BLOCK", block)
    text = "[1.5, 2, -3e2, 4E-1, 12345, 0, true,null\n,6.25]"
    (tmp_path / "mix.json").write_text(text)
    found = list(slices(str(tmp_path / "mix.json"), 1))
    assert [read(str(tmp_path / "mix.json"), one)[0] for one in found] == json.loads(text)


@pytest.mark.parametrize("text", ["[1.]", "[1x, 2]", "[1.5.2]", "[truefalse]", "[1e, 2]"])
@pytest.mark.parametrize("block", [1, 2, 40])
def test_what_only_begins_as_a_number_is_none(
    text: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_slices, "BLOCK", block)
    (tmp_path / "mix.json").write_text(text)
    with pytest.raises(NoJson, match="where a comma or ] was expected"):
        list(slices(str(tmp_path / "mix.json"), 2))


@pytest.mark.parametrize("head", ["", "\n", '{"a": 1}\n'])
def test_a_line_that_never_ends_is_not_read_for_ever(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_slices, "LONGEST", 1000)
    monkeypatch.setattr(json_slices, "BLOCK", 100)
    (tmp_path / "mix.json").write_text(head + '"' + "a" * 997 + '"\n')
    assert sum(one.entries for one in slices(str(tmp_path / "mix.json"), 2)) == 1 + bool(head.strip())
    (tmp_path / "mix.json").write_text(head + '"' + "a" * 100_000 + '"')
    with pytest.raises(NoJson, match=f"a line of more than 1,000 bytes at byte {len(head)}"):
        list(slices(str(tmp_path / "mix.json"), 2))


class Fetched(AbstractBufferedFile):  # type: ignore[misc]
    """A remote file, of which every byte that is fetched is counted."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        Remote.fetched += end - start
        return Path(self.path).read_bytes()[start:end]


class Remote(AbstractFileSystem):  # type: ignore[misc]
    protocol = "remote-json"
    root_marker = "/"
    fetched = 0

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": Path(path).stat().st_size, "type": "file"}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Fetched:
        return Fetched(self, path, mode, block_size=1000)


@pytest.mark.parametrize("lines", [False, True])
def test_of_a_remote_file_every_byte_is_fetched_once(
    lines: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_slices, "BLOCK", 500)
    fsspec.register_implementation("remote-json", Remote, clobber=True)
    monkeypatch.setattr(Remote, "fetched", 0)
    path, entries = tmp_path / "mix.json", [{"id": number} for number in range(2000)]
    path.write_text("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries))
    found = list(slices(f"remote-json://{path}", 300))
    assert sum(one.entries for one in found) == 2000
    assert Remote.fetched == path.stat().st_size
    assert [entry for one in found for entry in read(f"remote-json://{path}", one)] == entries


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("change", [b'{"a":2}', b"[1,2] ,", b""])
def test_a_slice_that_holds_other_bytes_now_is_not_read(lines: bool, change: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mix.json"
    entries = [{"a": 1}] * 6
    path.write_text("\n\n".join(map(json.dumps, entries)) if lines else json.dumps(entries))
    first, second = slices(str(path), 3)
    path.write_bytes(path.read_bytes()[: second.first + 5] + change)
    assert read(str(path), first) == entries[:3]
    with pytest.raises(SluiceError, match=r"mix\.json changed while the run went on; run again$"):
        read(str(path), second)


def test_what_never_ends_is_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_slices, "LONGEST", 1000)
    monkeypatch.setattr(json_slices, "BLOCK", 100)
    (tmp_path / "mix.json").write_text('["' + "a" * 100_000)
    read_bytes = []
    more = json_slices._Text._more

    def counted(self: Any, size: int) -> None:
        read_bytes.append(size)
        more(self, size)

    monkeypatch.setattr(json_slices._Text, "_more", counted)
    with pytest.raises(NoJson, match="in what begins at byte 1"):
        list(slices(str(tmp_path / "mix.json"), 2))
    assert sum(read_bytes) < 5000
