"""The table and the key are written as they are worked out: more pages, no more memory."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.miniweb import Plan, table

BASE = "http://127.0.0.1:18080"


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ROWS", 50)


def peak(folder: Path, pages: int) -> int:
    """Bytes of Python objects at the most while `pages` pages are written."""
    tracemalloc.start()
    try:
        table.write(Plan(pages, mix="captions"), BASE, folder / "urls.parquet", folder / "key.parquet")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.miniweb.plan.jpeg", lambda scene: b"")  # some need a digest, and so an image
    peak(tmp_path, 50)  # imports are made once
    assert peak(tmp_path, 300) < 1.5 * peak(tmp_path, 100)
    assert pq.ParquetFile(tmp_path / "key.parquet").metadata.num_row_groups == 2


def test_workers_write_the_same_files(tmp_path: Path) -> None:
    plan = Plan(1200, mix="captions")
    table.write(plan, BASE, tmp_path / "a.parquet", tmp_path / "b.parquet")
    with ThreadPoolExecutor(3) as workers:
        table.write(plan, BASE, tmp_path / "c.parquet", tmp_path / "d.parquet", workers)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "c.parquet").read_bytes()
    assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "d.parquet").read_bytes()


def test_a_table_that_could_not_be_finished_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(plan: Plan, base: str, start: int, boxes: bool) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(table, "_group", fails)
    with pytest.raises(OSError, match="no space left"):
        table.write(Plan(200), BASE, tmp_path / "urls.parquet", None)
    assert list(tmp_path.iterdir()) == []
