"""Sets of files: listed by name, known by content, read once."""

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline import sets
from pipeline.errors import SluiceError
from pipeline.identity import find_resources, generation_key, node_identity
from pipeline.records import Record
from pipeline.sets import list_set, read_set
from pipeline.ship import _check_reach
from pipeline.stage import Job, Sets, Work
from pipeline.store import Store


class Compared(Job):
    """A stage with such a parameter."""

    promise = "pure"

    sets: Sets | None = None

    def assemble(self, work: Work) -> list[Record]:
        return []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "coco"
    (root / "images").mkdir(parents=True)
    for name in ("b.jpg", "images/a.jpg", "images/.DS_Store", ".git"):
        (root / name).write_text(name)
    return root


def key(folder: Path, name: str = "coco") -> str:
    stage = Compared(sets={name: str(folder)})
    return generation_key(node_identity([stage], 0), find_resources([stage]), {}, {})


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are opened from now on."""
    opened: list[str] = []
    really = fsspec.open

    def watch(path: str, mode: str) -> Any:
        opened.append(path)
        return really(path, mode)

    monkeypatch.setattr(fsspec, "open", watch)
    return opened


def test_a_folder_holds_what_is_below_it_by_name_but_for_hidden_files(folder: Path) -> None:
    assert [file.name for file in list_set(str(folder), "sets")] == ["b.jpg", "images/a.jpg"]
    assert [file.name for file in list_set(f"{folder}/*/*.jpg", "sets")] == ["images/a.jpg"]
    (only,) = read_set(f"{folder}/b.jpg", "sets")
    assert (only.name, only.path) == ("b.jpg", str(folder / "b.jpg"))
    assert [file.name for file in list_set(f"file://{folder}", "sets")] == ["b.jpg", "images/a.jpg"]


def test_a_set_is_known_by_its_name_and_by_the_names_and_content_of_its_files(folder: Path, tmp_path: Path) -> None:
    first = key(folder)
    assert "coco" not in str(node_identity([Compared(sets={"coco": str(folder)})], 0))
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    assert key(moved) == first, "where it lies is no part of it"
    assert key(moved, "flickr") != first
    (moved / "b.jpg").rename(moved / "c.jpg")
    renamed = key(moved)
    (moved / "c.jpg").write_text("B.jpg")
    changed = key(moved)
    (moved / "d.jpg").write_text("d")
    assert len({first, renamed, changed, key(moved)}) == 4


def test_what_did_not_change_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long_ago = (1_000_000_000, 1_000_000_000)
    for path in (folder / "b.jpg", folder / "images" / "a.jpg"):
        os.utime(path, long_ago)
    monkeypatch.setattr(sets, "SETTLED_NS", -1)
    first = read_set(str(folder), "sets")
    (folder / "b.jpg").write_text("other")
    opened = watched(monkeypatch)
    second = read_set(str(folder), "sets")
    assert opened == [str(folder / "b.jpg")]
    assert [file.digest for file in first][1:] == [file.digest for file in second][1:]
    assert first[0].digest != second[0].digest


def test_a_file_that_changed_a_moment_ago_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_set(str(folder), "sets")
    opened = watched(monkeypatch)
    read_set(str(folder), "sets")
    assert len(opened) == 2


def test_a_set_on_any_store(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/val/x/1.jpg", b"one")
    try:
        (found,) = read_set("memory://val", "sets")
        assert (found.name, found.path) == ("x/1.jpg", "memory:///val/x/1.jpg")
        assert len(found.digest) == 64
    finally:
        memory.rm("/val", recursive=True)


@pytest.mark.parametrize("where", ["nowhere", "*.jpg", "nothing://x"])
def test_a_set_without_files_is_refused_by_name(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SluiceError, match=r"sets: .*(check the path|name a folder)"):
        list_set(where, "sets")


def test_a_set_that_workers_cannot_reach_is_refused(tmp_path: Path) -> None:
    _check_reach("sets", [("/data/coco", "x")], Store(str(tmp_path)))
    _check_reach("sets", [("s3://data/coco", "x")], Store("memory://root"))
    with pytest.raises(SluiceError, match="is on this machine and the root is not; put it on a store, too"):
        _check_reach("sets", [("/data/coco", "x")], Store("memory://root"))


def test_a_set_that_is_not_given_is_no_resource() -> None:
    assert find_resources([Compared()]) == {}
