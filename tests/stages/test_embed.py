"""Embeddings of images and captions: what they are, what identifies them, and what users are told."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from huggingface_hub import constants

from models.towers.dual_encoder import DualEncoder
from pipeline import Dag, run
from pipeline.driver import Result
from pipeline.errors import SluiceError
from pipeline.identity import find_resources, generation_key, node_identity
from pipeline.rows import RowBatch
from pipeline.stage import Device, NodeRef, PartStage
from pipeline.store import Store
from stages.embed import ImageEmbeddings, TextEmbeddings
from stages.kit.encoders import DTYPES
from tests.inline import Inline
from tests.models.towers import tiny
from tests.stages.fake_batch import FakeBatch
from tests.stages.gallery import WORDS, picture

GALLERY = """
dag: gallery
nodes:
  urls: {{steps: [tests.stages.gallery.Links]}}
  pool: {{from: urls, steps: [tests.stages.gallery.Gallery]}}
  scores:
    from: pool
    workers: {{batch_rows: {batch_rows}}}
    steps:
      - stages.embed.ImageEmbeddings: {{weights: {weights}}}
      - stages.embed.TextEmbeddings: {{weights: {weights}}}
      - stages.score.ClipScore
  kept:
    from: [pool, scores]
    steps:
      - stages.select.Select:
          rules:
            - downloaded: status = 'success'
            - best: percent_rank() OVER (ORDER BY clip_score DESC, uid, caption_id) <= 0.3
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("clip", tmp_path_factory.mktemp("clip"))


def images(stage: ImageEmbeddings, pictures: list[np.ndarray | None], threads: int = 1) -> pa.ChunkedArray:
    return stage.open(Device(threads=threads))(FakeBatch(pictures=pictures))["image_embedding"]


def texts(stage: TextEmbeddings, captions: list[str | None]) -> pa.ChunkedArray:
    return stage.open(Device())(FakeBatch(pa.table({"caption": pa.array(captions, pa.string())})))["text_embedding"]


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    return RowBatch(pa.table({"x": column}), None).matrix("x")


def key(stage: PartStage) -> str:
    return generation_key(node_identity([stage], 0), find_resources([stage]), {}, {})


def test_the_golden_embeddings_hold_or_the_revision_is_raised(weights: Path) -> None:
    assert ImageEmbeddings.revision == TextEmbeddings.revision == 1
    image = matrix(images(ImageEmbeddings(weights=str(weights)), [picture(1)]))[0]
    text = matrix(texts(TextEmbeddings(weights=str(weights)), [WORDS[0]]))[0]
    assert image[:4] == pytest.approx(GOLDEN_IMAGE, abs=2e-3)
    assert text[:4] == pytest.approx(GOLDEN_TEXT, abs=2e-3)


GOLDEN_IMAGE = [0.2969, 0.0145, 0.3562, -0.6118]
GOLDEN_TEXT = [-0.0060, -0.0186, 0.0808, 0.2900]


def test_embeddings_are_float16_lists_of_the_models_width_and_of_length_one(weights: Path) -> None:
    stage = ImageEmbeddings(weights=str(weights))
    column = images(stage, [picture(1), picture(2)])
    assert column.type == stage.gives().field("image_embedding").type == pa.list_(pa.float16(), 16)
    assert np.linalg.norm(matrix(column), axis=1) == pytest.approx([1, 1], abs=1e-3)
    assert texts(TextEmbeddings(weights=str(weights)), ["x"]).type == pa.list_(pa.float16(), 16)


def test_what_was_not_downloaded_and_captions_that_are_null_have_no_embedding(weights: Path) -> None:
    found = images(ImageEmbeddings(weights=str(weights)), [None, picture(1), None])
    assert found.is_valid().to_pylist() == [False, True, False]
    assert found[1] == images(ImageEmbeddings(weights=str(weights)), [picture(1)])[0]
    assert images(ImageEmbeddings(weights=str(weights)), [None, None]).null_count == 2
    found = texts(TextEmbeddings(weights=str(weights)), ["", None, "a red circle"])
    assert found.is_valid().to_pylist() == [True, False, True]
    assert len(images(ImageEmbeddings(weights=str(weights)), [])) == 0


def test_threads_and_batches_change_nothing_but_the_last_bits(weights: Path) -> None:
    pictures: list[np.ndarray | None] = [picture(number) if number % 3 else None for number in range(20)]
    alone = images(ImageEmbeddings(weights=str(weights)), pictures)
    together = images(ImageEmbeddings(weights=str(weights), batch=3), pictures, threads=3)
    assert alone.is_valid().equals(together.is_valid())
    assert matrix(alone) == pytest.approx(matrix(together), abs=2e-3, nan_ok=True)


def test_images_come_resized_and_models_that_resize_alike_share_the_work(weights: Path, tmp_path: Path) -> None:
    """What `prepares` names is what `open` asks for, by value: the engine does it once, ahead, for both models."""
    stages = [ImageEmbeddings(weights=str(folder)) for folder in (weights, tiny.save("clip", tmp_path, seed=1))]
    prepare, same = (stage.prepares(Device()) for stage in stages)
    assert prepare == same
    assert hash(prepare) == hash(same)
    assert prepare is not same
    pictures = [picture(1), None, picture(2)]
    ahead = RowBatch(pa.table({"uid": list("abc")}), None, {same: FakeBatch(pictures=pictures).images(same)})
    for stage in stages:
        found = stage.open(Device())(ahead)["image_embedding"]
        assert found.equals(images(stage, pictures))


def test_other_weights_or_another_dtype_are_other_work_and_an_effort_is_not(weights: Path, tmp_path: Path) -> None:
    other = tiny.save("clip", tmp_path / "other", seed=1)
    moved = shutil.copytree(weights, tmp_path / "moved")
    for kind in (ImageEmbeddings, TextEmbeddings):
        same = key(kind(weights=str(weights)))
        assert key(kind(weights=str(moved), batch=1)) == same
        assert len({same, key(kind(weights=str(other))), key(kind(weights=str(weights), dtype="bfloat16"))}) == 3


def test_the_dtype_has_a_default_per_class_of_device() -> None:
    assert DTYPES == {"cpu": "float32", "cuda": "float16"}


def test_the_width_of_another_nodes_model_must_be_said_and_be_true(weights: Path) -> None:
    later = NodeRef(node="clip")
    with pytest.raises(SluiceError, match="node 'clip' has not trained yet; say how wide its embeddings are: width"):
        ImageEmbeddings(weights=later).gives()
    assert ImageEmbeddings(weights=later, width=16).gives().field(0).type.list_size == 16
    files = tuple(f"{path.parent}/{path.name}" for path in sorted(weights.iterdir()))
    trained = NodeRef(node="clip", files=files)
    assert images(ImageEmbeddings(weights=trained, width=16), [picture(3)]) == images(
        ImageEmbeddings(weights=str(weights)), [picture(3)]
    )
    with pytest.raises(SluiceError, match="width = 12: the embeddings of node 'clip' have 16; say that, or nothing"):
        ImageEmbeddings(weights=trained, width=12).open(Device())


def test_a_checkpoint_is_found_behind_the_names_that_attempts_give(weights: Path, tmp_path: Path) -> None:
    named = [shutil.copy(path, tmp_path / f"last-0123abcd.{path.name}") for path in sorted(weights.iterdir())]
    stage = TextEmbeddings(weights=NodeRef(node="clip", files=tuple(map(str, named))), width=16)
    assert texts(stage, ["a red circle"]) == texts(TextEmbeddings(weights=str(weights)), ["a red circle"])


def test_weights_may_lie_on_any_store(weights: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(f"{weights}/", "/models/clip/", recursive=True)
    stage = ImageEmbeddings(weights="memory://models/clip")
    assert images(stage, [picture(3)]) == images(ImageEmbeddings(weights=str(weights)), [picture(3)])


def test_a_model_of_the_hub_needs_no_network_where_its_cache_has_it(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "fedcba9876" * 4
    cached = tmp_path / "models--org--cached-clip"
    shutil.copytree(weights, cached / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    stage = TextEmbeddings(weights=f"org/cached-clip@{commit}")
    assert texts(stage, ["a red circle"]) == texts(TextEmbeddings(weights=str(weights)), ["a red circle"])
    with pytest.raises(SluiceError, match=r"'org/absent' is neither a folder nor a model that the hub gives"):
        TextEmbeddings(weights="org/absent").gives()


def test_what_is_no_dual_encoder_is_refused_before_work_starts(weights: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(weights, tmp_path / "bert")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(SluiceError, match=r"weights: .* holds a 'bert', which has no text and vision tower"):
        dag(folder).check()


def test_the_whole_way_from_urls_to_the_best_pairs(weights: Path, tmp_path: Path) -> None:
    """Two parts, failed downloads, images with two captions; the score is the cosine that transformers would give."""
    store = Store(str(tmp_path / "root"))
    result = run(dag(weights), store.root, executor=Inline(store))
    pairs = rows_of(store, result, "scores", "caption")
    pool = rows_of(store, result, "pool", "caption")
    numbers = dict(
        zip(*(rows_of(store, result, "pool", "image")[name].to_pylist() for name in ("uid", "n")), strict=True)
    )
    encoder = DualEncoder.load(weights, "cpu", "float32")
    assert pairs.num_rows == pool.num_rows == 29
    for pair, source in zip(pairs.to_pylist(), pool.to_pylist(), strict=True):
        number = numbers[pair["uid"]]
        if number % 7 == 0:
            assert pair["clip_score"] is None
            continue
        image = encoder.embed_images([picture(number)], 1)[0]
        text = encoder.embed_texts([source["caption"]], 1)[0]
        assert pair["clip_score"] == pytest.approx(float(image @ text), abs=2e-3)
    kept = rows_of(store, result, "kept", "caption")
    scored = sorted((-row["clip_score"], *ids(row)) for row in pairs.to_pylist() if row["clip_score"] is not None)
    best = {tuple(names) for place, (_, *names) in enumerate(scored) if place / (len(scored) - 1) <= 0.3}
    assert {ids(row) for row in kept.to_pylist() if row["kept"]} == best
    assert len(best) == 7  # of 24


def test_where_it_runs_changes_no_key_and_new_weights_redo_the_scores_alone(weights: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    folder = shutil.copytree(weights, tmp_path / "model")
    first = run(dag(folder), store.root, executor=Inline(store))
    again = Inline(store)
    second = run(dag(folder, batch_rows=5), store.root, executor=again)
    assert again.calls == {}
    assert second.generations["scores"].key == first.generations["scores"].key
    shutil.copytree(tiny.save("clip", tmp_path / "new", seed=1), folder, dirs_exist_ok=True)
    other = Inline(store)
    run(dag(folder), store.root, executor=other)
    assert set(other.calls) == {"scores", "kept"}


def test_the_checkpoint_of_another_node_is_a_model_like_any_other(weights: Path, tmp_path: Path) -> None:
    text = """
    dag: bootstrapped
    nodes:
      urls: {{steps: [tests.stages.gallery.Links]}}
      pool: {{from: urls, steps: [tests.stages.gallery.Gallery]}}
      clip: {{from: pool, steps: [{{tests.stages.gallery.Trained: {{folder: {folder}}}}}]}}
      scores:
        from: pool
        steps:
          - stages.embed.ImageEmbeddings: {{weights: {{node: clip}}, width: 16}}
          - stages.embed.TextEmbeddings: {{weights: {{node: clip}}, width: 16}}
          - stages.score.ClipScore
    """
    store = Store(str(tmp_path / "root"))
    first = run(Dag.parse(text.format(folder=weights)), store.root, executor=Inline(store))
    other = Store(str(tmp_path / "other"))
    straight = run(dag(weights), other.root, until="scores", executor=Inline(other))
    assert rows_of(store, first, "scores", "caption").equals(rows_of(other, straight, "scores", "caption"))
    better = tiny.save("clip", tmp_path / "better", seed=1)
    again = Inline(store)
    run(Dag.parse(text.format(folder=better)), store.root, executor=again)
    assert set(again.calls) == {"clip", "scores"}


def test_a_dag_with_weights_that_are_not_there_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match=r"^scores: ImageEmbeddings: weights: no folder '/no/where/at/all'[^\n]*$"):
        dag(Path("/no/where/at/all")).check()


def dag(weights: Path, batch_rows: int = 256) -> Dag:
    return Dag.parse(GALLERY.format(weights=weights, batch_rows=batch_rows))


def ids(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["uid"], row["caption_id"]


def rows_of(store: Store, result: Result, node: str, grain: str) -> pa.Table:
    return pa.concat_tables([store.read_table(record, grain) for record in result.generations[node].records])
