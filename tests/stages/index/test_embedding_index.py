"""Indexes of embeddings: files that other programs read, that grow with the pool, and that mend when they break."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SluiceError
from pipeline.records import ABOUT, Generation
from pipeline.stage import Column, Device
from pipeline.store import Store
from stages.index import EmbeddingIndex
from stages.index.lookup import Neighbour, index_of, nearest, opened
from stages.kit import gpu
from stages.kit.neighbours import unit
from stages.kit.vectors import vectors
from tests.pools import InlineWork, seal_node, write_node, write_run
from tests.toys import uid_of

WIDTH = 16
Matrix = npt.NDArray[np.float32]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def clustered(seed: int, rows: int) -> Matrix:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, WIDTH)).repeat(-(-rows // 20), 0)[:rows]
    return (
        unit((centres + 0.4 * rng.normal(size=(rows, WIDTH))).astype(np.float32)).astype(np.float16).astype(np.float32)
    )


def pool(
    store: Store,
    matrix_nd: Matrix,
    parts: int,
    missing: Sequence[int] = (),
    again: Mapping[str, Sequence[int]] | None = None,
) -> Generation:
    """The node `scores`: row n has the uid of n and lies in part n % parts; `again`: retried parts with these rows."""
    rows = {f"000-{part:05d}": list(range(part, len(matrix_nd), parts)) for part in range(parts)}
    supersedes = {name: (name.partition(".")[0],) for name in again or {}}
    tables = {}
    for name, numbers in {**rows, **(again or {})}.items():
        turned = -1 if name in supersedes else 1
        present = np.array([number not in missing for number in numbers])
        column = vectors(turned * matrix_nd[np.array(numbers, int)[present]], present)
        tables[name] = {"image": pa.table({"uid": [uid_of(number) for number in numbers], "image_embedding": column})}
    return write_node(store, "scores", tables, supersedes=supersedes)


def build(store: Store, scores: Generation, **what: Any) -> tuple[Generation, InlineWork]:
    stage = EmbeddingIndex(**what)
    work = InlineWork(store, "index", stage, [scores])
    stage.check(work.columns)
    return seal_node(store, "index", stage.assemble(work), ["scores"]), work


def brute(matrix_nd: Matrix, query_d: Matrix, count: int) -> list[str]:
    return [uid_of(int(row)) for row in np.argsort(-(matrix_nd @ query_d))[:count]]


def uids(found: Sequence[Neighbour]) -> list[str]:
    return [one.uid for one in found]


@pytest.mark.parametrize("what", [{"kind": "flat"}, {"kind": "ivf"}, {"kind": "ivf", "rows_per_file": 120}])
def test_the_nearest_are_those_of_brute_force(store: Store, what: dict[str, Any]) -> None:
    matrix_nd = clustered(1, 400)
    index, _ = build(store, pool(store, matrix_nd, 8), **what)
    assert len(index.records) == (4 if "rows_per_file" in what else 1)
    assert sum(record.statuses["indexed"] for record in index.records) == 400
    for query in (matrix_nd[5], clustered(2, 30)[29] * 7):
        found = nearest(store, index, query, 10, probes=20)
        assert uids(found) == brute(matrix_nd, query, 10)
        cosines = np.sort(matrix_nd @ query / np.linalg.norm(query))[::-1][:10]
        assert [one.cosine for one in found] == pytest.approx(cosines, abs=2e-3)
    (itself,) = nearest(store, index, matrix_nd[5], 1)
    assert itself.uid == uid_of(5)
    assert itself.cosine == pytest.approx(1, abs=2e-3)


def test_few_cells_are_searched_and_most_neighbours_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.index.lookup.LEAST_PROBES", 8)
    matrix_nd = clustered(3, 4000)
    index, _ = build(store, pool(store, matrix_nd, 4), kind="ivf")
    about = index.records[0].notes[ABOUT]
    assert about == {"embedding": "scores.image_embedding", "kind": "ivf", "cells": 63}

    def hits(probes: int | None) -> int:
        found = ((nearest(store, index, query, 10, probes), query) for query in clustered(4, 50))
        return sum(len(set(uids(near)) & set(brute(matrix_nd, query, 10))) for near, query in found)

    assert hits(None) >= 0.95 * 500
    assert hits(None) > hits(1)


def test_many_images_are_searched_by_cells_of_themselves(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = pool(store, clustered(5, 60), 3)
    assert build(store, scores)[0].records[0].notes[ABOUT]["kind"] == "flat"
    monkeypatch.setattr("stages.index.embedding_index.FLAT_ROWS", 59)
    assert build(store, scores, rows_per_file=20)[0].records[0].notes[ABOUT] == {
        "embedding": "scores.image_embedding",
        "kind": "ivf",
        "cells": 7,
    }


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_other_programs_read_the_files(store: Store, kind: str) -> None:
    matrix_nd = clustered(6, 90)
    index, _ = build(store, pool(store, matrix_nd, 3), kind=kind, rows_per_file=30)
    for number, file in enumerate(sorted(Path(store.path, "index", "data").glob("0*.index.faiss"))):
        one = faiss.read_index(str(file))
        ids = pq.read_table(str(file).replace(".index.faiss", ".ids.parquet"))
        assert one.ntotal == ids.num_rows == 30
        _, rows = one.search(matrix_nd[number::3], 1)
        assert ids["uid"].take(rows[:, 0]).to_pylist() == [uid_of(n) for n in range(number, 90, 3)]
        assert ids["row"].to_pylist() == list(range(30))
    assert len(index.records) == 3


def test_images_without_an_embedding_and_rows_that_were_replaced_are_not_found(store: Store) -> None:
    matrix_nd = clustered(7, 40)
    matrix_nd[3] = 0
    index, _ = build(store, pool(store, matrix_nd, 2, missing=[5], again={"000-00001.r1": [7]}), kind="flat")
    found = nearest(store, index, matrix_nd[7], 100)
    assert len(found) == 38
    assert {uid_of(3), uid_of(5)}.isdisjoint(uids(found))
    assert uids(found).count(uid_of(7)) == 1
    assert found[-1].uid == uid_of(7)
    assert found[-1].cosine == pytest.approx(-1, abs=2e-3), "the newer row counts"


def test_later_parts_add_files_and_change_none(store: Store) -> None:
    matrix_nd = clustered(8, 80)
    scores = pool(store, matrix_nd, 4)
    first, _ = build(store, scores.model_copy(update={"records": scores.records[:2]}), kind="flat", rows_per_file=40)
    second, work = build(store, scores, kind="flat", rows_per_file=40)
    assert work.done == [("files", "00001")]
    assert second.records[0] == first.records[0]
    assert uids(nearest(store, second, matrix_nd[79], 5)) == brute(matrix_nd, matrix_nd[79], 5)
    _, again = build(store, scores, kind="flat", rows_per_file=40)
    assert again.done == []


def test_other_embeddings_of_the_same_images_have_another_content(tmp_path: Path) -> None:
    hashes = set()
    for seed in (9, 10):
        store = Store(str(tmp_path / str(seed)))
        index, _ = build(store, pool(store, clustered(seed, 20), 1))
        hashes.add(index.records[0].content_hash)
    assert len(hashes) == 2


def test_a_damaged_file_is_named_and_never_searched(store: Store) -> None:
    index, _ = build(store, pool(store, clustered(11, 20), 1))
    (file,) = Path(store.path, "index", "data").glob("*.index.faiss")
    whole = file.read_bytes()
    for damaged in (whole[:-100], whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]):
        file.write_bytes(damaged)
        with pytest.raises(SluiceError, match=rf"{file.name}.*verify .* --repair"):
            nearest(store, index, clustered(11, 20)[0], 3)


def test_a_store_elsewhere_is_read_as_a_whole() -> None:
    store = Store("memory://index-elsewhere")
    matrix_nd = clustered(12, 30)
    index, _ = build(store, pool(store, matrix_nd, 2), kind="ivf")
    assert uids(nearest(store, index, matrix_nd[4], 3, probes=9)) == brute(matrix_nd, matrix_nd[4], 3)


def test_a_query_of_another_width_is_refused(store: Store) -> None:
    index, _ = build(store, pool(store, clustered(13, 20), 1))
    with pytest.raises(SluiceError, match="index has vectors of 16 numbers, the query has 4"):
        nearest(store, index, np.ones(4, np.float32), 3)


def test_nothing_to_index_is_an_empty_index(store: Store) -> None:
    index, _ = build(store, pool(store, clustered(14, 6), 2, missing=range(6)), kind="ivf")
    assert nearest(store, index, np.ones(WIDTH, np.float32), 3) == []


def test_what_is_no_embedding_is_refused_before_work_starts() -> None:
    columns = [
        Column("image_embedding", "scores", "image", pa.list_(pa.float16(), 4)),
        Column("text_embedding", "scores", "caption", pa.list_(pa.float16(), 4)),
        Column("uneven", "scores", "image", pa.list_(pa.float32())),
    ]
    EmbeddingIndex().check(columns)
    for name, said in (("text_embedding", "of captions"), ("uneven", "list<.*> of images; expected"), ("x", "no node")):
        with pytest.raises(SluiceError, match=said):
            EmbeddingIndex(embedding=name).check(columns)


def test_the_index_that_is_meant_is_the_only_one_or_the_one_that_is_named(store: Store) -> None:
    scores = pool(store, clustered(15, 20), 1)
    index, _ = build(store, scores)
    run = write_run(store, ["scores", "index"])
    assert index_of(store, run, {"scores": scores, "index": index}, None) is index
    assert index_of(store, run, {"index": index, "other": index}, "other") is index
    for generations, node, said in (
        ({"scores": scores}, None, "run 0001 has no index; add `index: {from: scores"),
        ({"index": index, "other": index}, None, r"run 0001 has 2 indexes \(index, other\); name one with --node"),
        ({"scores": scores, "index": index}, "scores", "'scores' is no index of run 0001; there are: index"),
        ({"index": index}, "indx", "'indx' is no node of run 0001; did you mean 'index'"),
    ):
        with pytest.raises(SluiceError, match=said):
            index_of(store, run, generations, node)


def test_a_worker_with_a_gpu_fills_the_cells_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[str] = []

    def to_gpu(resources: object, number: int, index: Any) -> Any:
        moves.append(f"to {number}")
        return index

    def to_cpu(index: Any) -> Any:
        moves.append("back")
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", to_cpu, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", lambda index, ngpu: index, raising=False)
    monkeypatch.setattr(gpu, "_resources", lambda: None)
    monkeypatch.setattr("stages.index.embedding_index.Device", lambda: Device("cuda"))  # of every task
    matrix_nd = clustered(16, 100)
    index, _ = build(store, pool(store, matrix_nd, 2), kind="ivf")
    assert moves[-2:] == ["to 0", "back"]
    assert uids(nearest(store, index, matrix_nd[4], 3, probes=10)) == brute(matrix_nd, matrix_nd[4], 3)


def test_the_golden_files_hold_or_the_revision_is_raised(store: Store) -> None:
    assert EmbeddingIndex.revision == 1
    index, _ = build(store, pool(store, np.eye(3, WIDTH, dtype=np.float32), 1))
    (record,) = index.records
    one = opened(store, record)
    assert (type(one).__name__, one.d, one.ntotal, one.metric_type) == (
        "IndexScalarQuantizer", WIDTH, 3, faiss.METRIC_INNER_PRODUCT,
    )  # fmt: skip
    assert one.reconstruct(1).tolist() == [0, 1, *[0] * 14]
    ids = store.read_table(record, "ids").to_pydict()
    assert ids == {"uid": [uid_of(n) for n in range(3)], "row": [0, 1, 2], "vectors": [GOLDEN] * 3}


GOLDEN = "d3186e472c46085577e2ba1ce383dcec"
