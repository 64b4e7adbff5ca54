"""What a score of embeddings means, in vectors whose cosines are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SluiceError
from pipeline.identity import find_resources, generation_key, node_identity
from pipeline.rows import RowBatch
from pipeline.stage import Column, Device
from stages.kit.vectors import vector_type, vectors
from stages.score import ClipScore, NormSim

EAST, NORTH, DIAGONAL = [1.0, 0.0], [0.0, 1.0], [0.5**0.5, 0.5**0.5]
WEST = [-1.0, 0.0]


def column(*rows: list[float] | None) -> pa.Array:
    present = np.array([row is not None for row in rows], bool)
    return vectors(np.array([row for row in rows if row is not None], np.float32).reshape(-1, 2), present)


def clip_scores(images: pa.Array, texts: pa.Array) -> list[float | None]:
    table = pa.table({"image_embedding": images, "text_embedding": texts})
    found: list[float | None] = ClipScore().open(Device())(RowBatch(table, None))["clip_score"].to_pylist()
    return found


def norm_sims(images: pa.Array, **parameters: Any) -> list[float | None]:
    batch = RowBatch(pa.table({"image_embedding": images}), None)
    found: list[float | None] = NormSim(**parameters).open(Device())(batch)["norm_sim"].to_pylist()
    return found


def test_the_golden_scores_hold_or_the_revision_is_raised(tmp_path: Path) -> None:
    assert ClipScore.revision == NormSim.revision == 1
    assert clip_scores(column([0.6, 0.8]), column([0.8, 0.6])) == [pytest.approx(0.96, abs=1e-3)]
    target = saved(tmp_path, [EAST, DIAGONAL])
    assert norm_sims(column([0.6, 0.8]), target=target) == [pytest.approx(0.98995, abs=1e-3)]
    assert norm_sims(column([0.6, 0.8]), target=target, norm="2") == [pytest.approx(1.15758, abs=1e-3)]


def test_a_caption_equal_to_its_image_scores_one_and_its_opposite_minus_one() -> None:
    found = clip_scores(column(EAST, EAST, EAST, DIAGONAL), column(EAST, WEST, NORTH, EAST))
    assert found == [1, -1, 0, pytest.approx(0.5**0.5, abs=1e-3)]


def test_rounding_to_float16_takes_no_score_out_of_its_bounds() -> None:
    rows_nd = unit(np.random.default_rng(1).normal(size=(200, 512)))
    both = vectors(rows_nd, np.ones(200, bool))
    assert np.abs(np.square(RowBatch(pa.table({"x": both}), None).matrix("x")).sum(1) - 1).max() > 1e-5
    found = clip_scores(both, both)
    assert found == pytest.approx([1] * 200, abs=1e-6)
    assert max(value for value in found if value is not None) <= 1


def test_a_failed_download_scores_null_not_zero() -> None:
    assert clip_scores(column(None, EAST, None, EAST), column(EAST, None, None, EAST)) == [None, None, None, 1]
    assert clip_scores(column(None, None), column(EAST, NORTH)) == [None, None]
    assert clip_scores(column(), column()) == []


def test_norm_sim_is_the_nearest_image_of_the_task_or_the_root_of_all_squares(tmp_path: Path) -> None:
    target = saved(tmp_path, [EAST, NORTH, EAST])
    images = column(EAST, NORTH, DIAGONAL, WEST, None)
    near = pytest.approx(0.5**0.5, abs=1e-3)
    assert norm_sims(images, target=target) == [1, 1, near, 1, None]  # a norm has no sign
    squares = [2**0.5, 1, 1.5**0.5, 2**0.5]
    assert norm_sims(images, target=target, norm="2")[:4] == [pytest.approx(value, abs=1e-3) for value in squares]
    assert norm_sims(images, target=target, norm="2")[4] is None


def test_norm_sim_agrees_with_the_formula_over_a_target_of_many_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.score.BLOCK", 7)
    rng = np.random.default_rng(5)
    target_md, images_nd = (unit(rng.normal(size=(count, 8))) for count in (40, 9))
    np.save(tmp_path / "target.npy", target_md)
    batch = RowBatch(pa.table({"image_embedding": vectors(images_nd, np.ones(9, bool))}), None)
    for norm, order in (("inf", np.inf), ("2", 2)):
        stage = NormSim.model_validate({"target": str(tmp_path / "target.npy"), "norm": norm})
        found = stage.open(Device())(batch)["norm_sim"].to_numpy()
        expected = np.linalg.norm(images_nd @ target_md.T, ord=order, axis=1)
        assert found == pytest.approx(expected, abs=2e-3)


def test_a_target_may_be_a_table_of_this_house(tmp_path: Path) -> None:
    table = pa.table({"uid": ["a", "b", "c"], "image_embedding": column(NORTH, None, NORTH)})
    pq.write_table(table, tmp_path / "target.parquet")
    assert norm_sims(column(EAST, NORTH), target=str(tmp_path / "target.parquet")) == [0, 1]


def test_a_target_of_another_model_is_refused_before_work_starts(tmp_path: Path) -> None:
    inputs = [Column("image_embedding", "scores", "image", vector_type(3))]
    message = r"target .*target\.\w+ is for embeddings of width 2, those of image_embedding have 3; use the model"
    with pytest.raises(SluiceError, match=message):
        NormSim(target=saved(tmp_path, [EAST])).check(inputs)
    pq.write_table(pa.table({"image_embedding": column(NORTH)}), tmp_path / "target.parquet")
    with pytest.raises(SluiceError, match=message):
        NormSim(target=str(tmp_path / "target.parquet")).check(inputs)
    NormSim(target=saved(tmp_path, [[1, 0, 0]])).check(inputs)


@pytest.mark.parametrize("name", ["target.npy", "target.parquet"])
def test_a_file_without_embeddings_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not at all what it is called" * 10)
    with pytest.raises(SluiceError, match=r"^target .* holds no embeddings \([^\n]*\); give \.npy, or Parquet"):
        NormSim(target=str(tmp_path / name)).check([Column("image_embedding", "scores", "image", vector_type(2))])
    with pytest.raises(SluiceError, match=r"^target .* holds no embeddings \([^\n]*\); give \.npy, or Parquet"):
        NormSim(target=str(tmp_path / name)).open(Device())


def test_an_empty_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match=r"has the shape \(0, 2\); expected \(images, width\), one image or more"):
        NormSim(target=saved(tmp_path, [])).open(Device())


def test_another_target_is_other_work(tmp_path: Path) -> None:
    first = key(NormSim(target=saved(tmp_path, [EAST])))
    assert key(NormSim(target=saved(tmp_path, [EAST]))) == first
    assert key(NormSim(target=saved(tmp_path, [NORTH]))) != first


def saved(folder: Path, rows: list[list[float]]) -> str:
    np.save(folder / "target.npy", np.array(rows, np.float16).reshape(len(rows), -1 if rows else 2))
    return str(folder / "target.npy")


def unit(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found.astype(np.float32)


def key(stage: NormSim) -> str:
    return generation_key(node_identity([stage], 0), find_resources([stage]), {}, {})
