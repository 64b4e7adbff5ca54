"""Our embeddings are transformers' own, for every class of dual encoder, and nothing is guessed on the way."""

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from models.towers.dual_encoder import Dtype, DualEncoder, embedding_width
from tests.models.towers import tiny

TEXTS = ["a red circle", "Two blue squares, and a cat sat on the mat", "", "一只猫", "so " * 90]
WIDTHS = {"clip": 16, "metaclip_2": 16, "siglip": 32, "siglip2": 32, "align": 16, "chinese_clip": 16}
FolderOf = Callable[[str], Path]


def pictures(count: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    sides = [(int(rng.integers(20, 70)), int(rng.integers(20, 70))) for _ in range(count)]
    return [rng.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides]


def load(folder: Path, dtype: Dtype = "float32") -> DualEncoder:
    return DualEncoder.load(folder, "cpu", dtype)


def unit(rows: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(rows, dim=-1).detach().numpy()


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_images_are_embedded_as_transformers_embeds_them(kind: str, folder_of: FolderOf) -> None:
    inputs = tiny.image_processor(kind)(images=pictures(), return_tensors="pt")
    expected = unit(AutoModel.from_pretrained(folder_of(kind)).eval().get_image_features(**inputs).pooler_output)
    found = load(folder_of(kind)).embed_images(pictures(), 3)
    assert found == pytest.approx(expected, abs=1e-5)
    assert np.abs(found @ found.T - 1).max() > 0.01  # so that the parity above says something


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_texts_are_embedded_as_transformers_embeds_them(kind: str, folder_of: FolderOf) -> None:
    words, model = AutoTokenizer.from_pretrained(folder_of(kind)), AutoModel.from_pretrained(folder_of(kind)).eval()
    length = {"clip": 77, "metaclip_2": 77, "chinese_clip": 52}.get(kind, 64)
    options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": length}
    inputs = words(TEXTS, return_tensors="pt", **options)
    encoder = load(folder_of(kind))
    found = encoder.embed_texts(TEXTS, 3)
    assert encoder.context == length
    assert found == pytest.approx(unit(model.get_text_features(**inputs).pooler_output), abs=1e-5)
    assert np.abs(found @ found.T - 1).max() > 0.01


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_width_is_known_from_the_config_alone(kind: str, folder_of: FolderOf, tmp_path: Path) -> None:
    shutil.copy(folder_of(kind) / "config.json", tmp_path)
    assert embedding_width(tmp_path) == WIDTHS[kind] == load(folder_of(kind)).width


def test_rows_are_of_length_one_and_independent_of_batches_threads_and_neighbours(folder_of: FolderOf) -> None:
    images = pictures(7)
    whole = load(folder_of("clip")).embed_images(images, 100)
    assert np.linalg.norm(whole, axis=1) == pytest.approx(np.ones(7), abs=1e-6)
    assert load(folder_of("clip")).embed_images(images, 2) == pytest.approx(whole, abs=1e-5)
    with ThreadPoolExecutor(3) as threads:
        assert load(folder_of("clip")).embed_images(images, 2, threads) == pytest.approx(whole, abs=1e-5)
    assert load(folder_of("clip")).embed_images(images[3:4], 3)[0] == pytest.approx(whole[3], abs=1e-5)
    assert load(folder_of("clip")).embed_texts(TEXTS[::-1], 3)[::-1] == pytest.approx(
        load(folder_of("clip")).embed_texts(TEXTS, 1), abs=1e-5
    )


def test_nothing_gives_nothing(folder_of: FolderOf) -> None:
    encoder = load(folder_of("clip"))
    assert encoder.embed_images([], 3).shape == encoder.embed_texts([], 3).shape == (0, 16)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_bits_say_nearly_the_same(dtype: Dtype, folder_of: FolderOf) -> None:
    whole, half = (load(folder_of("clip"), dtype=kind).embed_images(pictures(), 3) for kind in ("float32", dtype))
    assert (whole * half).sum(axis=1) == pytest.approx(np.ones(5), abs=5e-3)
    assert not np.array_equal(whole, half)


def test_numbers_that_float16_cannot_hold_are_an_error_and_not_nan(folder_of: FolderOf, tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("clip"), tmp_path / "large")
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert np.isfinite(load(folder, dtype="bfloat16").embed_images(pictures(), 3)).all()
    with pytest.raises(FloatingPointError, match="float16 cannot hold this model's numbers; take bfloat16 or float32"):
        load(folder, dtype="float16").embed_images(pictures(), 3)


@pytest.mark.fault(37)
def test_the_batch_halves_where_memory_runs_out_stays_so_and_says_it_once(
    folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = load(folder_of("clip"))
    whole = encoder.embed_images(pictures(6), 6)
    real, seen = encoder._model.get_image_features, []

    def scarce(pixel_values: torch.Tensor) -> Any:
        seen.append(len(pixel_values))
        if len(pixel_values) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(pixel_values=pixel_values)

    monkeypatch.setattr(encoder._model, "get_image_features", scarce)
    with caplog.at_level(logging.WARNING):
        found = [encoder.embed_images(pictures(6), 6) for _ in range(2)]
    assert seen == [6, 3, 3, 3, 3]
    assert [record.getMessage() for record in caplog.records] == ["out of memory with 6 rows at once; going on with 3"]
    assert found[0] == pytest.approx(whole, abs=1e-5)
    assert found[1] == pytest.approx(whole, abs=1e-5)


def test_a_model_without_two_towers_is_refused(tmp_path: Path) -> None:
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a 'bert', which has no text and vision tower"):
        embedding_width(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_thing"}))
    with pytest.raises(ValueError, match="holds no model that transformers knows"):
        load(tmp_path)


def test_weights_that_lack_a_tensor_are_refused_and_never_made_up(folder_of: FolderOf, tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("clip"), tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors, text_projection\.weight among them"):
        load(folder)


def test_pickled_weights_are_never_read(folder_of: FolderOf, tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("clip"), tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded: .*safetensors"):
        load(folder)


def test_code_that_comes_with_a_model_is_never_run(folder_of: FolderOf, tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("clip"), tmp_path / "code")
    said = json.loads((folder / "config.json").read_text())
    said |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="holds no model that transformers knows"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_the_scale_of_the_logits_is_the_models_own(folder_of: FolderOf) -> None:
    assert load(folder_of("clip")).logit_scale == pytest.approx(np.exp(2.6592), rel=1e-4)
    assert load(folder_of("align")).logit_scale == 1  # its temperature is 1
    assert load(folder_of("clip")).logit_bias is None
    assert load(folder_of("siglip")).logit_bias == 0
