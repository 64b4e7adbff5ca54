"""What the contrast with other pairs takes off a score, against the formula written out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.records import Generation
from pipeline.store import Store
from stages.kit.vectors import vectors
from stages.neg_clip_loss import NegClipLoss, draw
from tests.pools import InlineWork, write_node

SEED = (3,)


def unit(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found.astype(np.float32)


def pairs(count: int, width: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images, and texts that are near them."""
    rng = np.random.default_rng(seed)
    images_nd = unit(rng.normal(size=(count, width)))
    return images_nd, unit(images_nd + 0.3 * rng.normal(size=(count, width)))


def plain(images_nd: np.ndarray, texts_nd: np.ndarray, temperature: float) -> np.ndarray:
    """−τ times the symmetric loss of every pair in one batch, as the paper has it."""
    logits_nn = images_nd.astype(np.float64) @ texts_nd.T.astype(np.float64) / temperature
    own = np.diagonal(logits_nn)
    to_texts, to_images = (np.log(np.exp(logits_nn).sum(axis)) for axis in (1, 0))
    found: np.ndarray = temperature * (own - (to_texts + to_images) / 2)
    return found


def test_in_a_batch_of_all_pairs_it_is_the_papers_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.neg_clip_loss.BLOCK", 7)
    images_nd, texts_nd = pairs(40)
    for temperature in (0.01, 0.1, 1.0):
        found = NegClipLoss(temperature=temperature, batch=40).of(images_nd, texts_nd, np.arange(40), SEED)
        assert found == pytest.approx(plain(images_nd, texts_nd, temperature), abs=1e-5)


def test_pairs_that_all_look_the_same_lose_log_n() -> None:
    same = np.repeat(unit(np.ones((1, 4))), 16, axis=0)
    found = NegClipLoss(temperature=0.5, batch=16).of(same, same, np.arange(16), SEED)
    assert found == pytest.approx(np.full(16, -0.5 * np.log(16)))


def test_pairs_that_nobody_could_confuse_lose_nothing() -> None:
    found = NegClipLoss(batch=8).of(np.eye(8, dtype=np.float32), np.eye(8, dtype=np.float32), np.arange(8), SEED)
    assert found == pytest.approx(np.zeros(8), abs=1e-9)


def test_a_caption_that_fits_everything_scores_below_one_that_fits_its_image_alone() -> None:
    images_nd = np.eye(8, dtype=np.float32)
    texts_nd = np.eye(8, dtype=np.float32)
    texts_nd[0] = unit(np.ones((1, 8)))[0]
    found = NegClipLoss(temperature=0.1, batch=8).of(images_nd, texts_nd, np.arange(8), SEED)
    assert found[0] < found[1:].min() - 0.1


def test_a_small_part_is_scored_as_if_it_were_a_sample_of_a_large_batch() -> None:
    same = np.repeat(unit(np.ones((1, 4))), 16, axis=0)
    small = NegClipLoss(temperature=0.5, batch=1000).of(same, same, np.arange(16), SEED)
    assert small == pytest.approx(np.full(16, -0.5 * np.log(1000)))
    images_nd, texts_nd = pairs(2000)
    whole = NegClipLoss(temperature=0.2, batch=2000).of(images_nd, texts_nd, np.arange(2000), SEED)[:500]
    quarter = NegClipLoss(temperature=0.2, batch=2000).of(images_nd[:500], texts_nd[:500], np.arange(500), SEED)
    assert np.corrcoef(whole, quarter)[0, 1] > 0.98
    assert np.abs(whole - quarter).mean() < 0.02


def test_captions_of_one_image_are_no_contrast_to_each_other() -> None:
    images_nd, texts_nd = pairs(10)
    once = NegClipLoss(batch=20).of(images_nd, texts_nd, np.arange(10), SEED)
    twice = NegClipLoss(batch=20).of(np.repeat(images_nd, 2, 0), np.repeat(texts_nd, 2, 0), np.arange(20) // 2, SEED)
    assert twice[::2] == pytest.approx(once, abs=1e-5)  # the same nine others, scaled to the nineteen of a batch
    alone = NegClipLoss(batch=10).of(images_nd[:2], texts_nd[:2], np.zeros(2, np.int64), SEED)
    assert np.isnan(alone).all()


def test_more_random_batches_come_nearer_to_the_mean() -> None:
    images_nd, texts_nd = pairs(600)
    one, many, other = (
        NegClipLoss(temperature=0.1, batch=100, batches=count).of(images_nd, texts_nd, np.arange(600), seed)
        for count, seed in ((1, (1,)), (30, (1,)), (30, (2,)))
    )
    assert np.abs(many - other).mean() < 0.5 * np.abs(one - other).mean()


def test_every_pair_is_drawn_as_often_as_asked_and_no_batch_holds_a_pair_twice() -> None:
    batches = draw(25, 10, 4, SEED)
    assert [len(set(rows)) for rows in batches] == [10] * 12
    assert np.bincount(np.concatenate(batches)).min() == 4
    assert len({tuple(rows) for rows in batches}) == 12
    assert [rows.tolist() for rows in draw(5, 10, 4, SEED)] == [list(range(5))]
    assert draw(0, 10, 4, SEED) == []
    assert [rows.tolist() for rows in draw(25, 10, 4, SEED)] == [rows.tolist() for rows in batches]
    assert draw(25, 10, 4, (4,))[0].tolist() != batches[0].tolist()


def write(store: Store) -> dict[str, Generation]:
    """Two parts; image `b` has two captions, `c` was not downloaded; the embeddings lie in two nodes."""
    images_nd, texts_nd = pairs(7)

    def image(uids: str, rows: list[int]) -> pa.Table:
        present = np.array([uid != "c" for uid in uids])
        return pa.table({"uid": list(uids), "image_embedding": vectors(images_nd[rows][present], present)})

    def caption(uids: str, rows: list[int]) -> pa.Table:
        ids = [f"{row:x}" for row in rows]
        embeddings = vectors(texts_nd[rows], np.ones(len(rows), bool))
        return pa.table({"uid": list(uids), "caption_id": ids, "text_embedding": embeddings})

    parts: Mapping[str, Any] = {
        "000-0": (image("abc", [0, 1, 2]), caption("abbc", [0, 1, 2, 3])),
        "000-1": (image("de", [4, 5]), caption("de", [4, 5])),
    }
    return {
        "images": write_node(store, "images", {part: {"image": tables[0]} for part, tables in parts.items()}),
        "texts": write_node(
            store, "texts", {part: {"caption": tables[1]} for part, tables in parts.items()}, ["images"]
        ),
    }


def test_the_golden_table_holds_or_the_revision_is_raised(tmp_path: Path) -> None:
    """Part by part, from embeddings of two nodes, with nulls where there is no image."""
    assert NegClipLoss.revision == 1
    store = Store(str(tmp_path))
    made = write(store)
    stage = NegClipLoss(temperature=0.1, batch=100)
    for inputs in ([made["images"], made["texts"]], [made["texts"], made["images"]]):
        work = InlineWork(store, f"negative_{inputs[0].node}", stage, inputs)
        tables = [store.read_table(record, "caption") for record in stage.assemble(work)]
        assert tables[0].schema == stage.outputs(work.columns)["caption"]
        found = [row for table in tables for row in table.to_pylist()]
        assert [f"{row['uid']}{row['caption_id']}" for row in found] == ["a0", "b1", "b2", "c3", "d4", "e5"]
        assert found[3]["neg_clip_loss"] is None
        assert [row["neg_clip_loss"] for row in found if row["uid"] != "c"] == pytest.approx(GOLDEN, abs=2e-3)


GOLDEN = [-0.00864, -0.00140, -0.74078, 0, -0.00008]
