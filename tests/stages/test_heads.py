"""Heads are read as they were saved, and compute what their layers say."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from pipeline.errors import SluiceError
from pipeline.identity import find_resources, generation_key, node_identity
from pipeline.rows import RowBatch
from pipeline.stage import Column, Device
from stages.heads import Aesthetic, Head, Safety
from stages.kit.vectors import vector_type, vectors

EMBEDDINGS = [Column("image_embedding", "scores", "image", vector_type(8))]


def apply(head: Head, rows_nd: np.ndarray, present: list[bool] | None = None) -> list[float | None]:
    here = np.array(present if present is not None else [True] * len(rows_nd), bool)
    head.check(EMBEDDINGS)
    batch = RowBatch(pa.table({"image_embedding": vectors(rows_nd, here)}), None)
    found: list[float | None] = head.open(Device())(batch)[head.adds.names[0]].to_pylist()
    return found


def laion(folder: Path, widths: tuple[int, ...] = (8, 6, 5, 4, 3, 1)) -> tuple[torch.nn.Module, str]:
    """LAION's aesthetic predictor, version 2, at a small size: linear layers and dropout in one `layers`."""
    torch.manual_seed(0)
    steps: list[torch.nn.Module] = []
    for inputs, outputs in pairwise(widths):
        steps += [torch.nn.Linear(inputs, outputs), torch.nn.Dropout(0.2)]
    module = torch.nn.Module()
    module.layers = torch.nn.Sequential(*steps[:-1])
    path = str(folder / "head.safetensors")
    save_torch(module.state_dict(), path)
    return module.layers.eval(), path


def rows(count: int = 5) -> np.ndarray:
    drawn = np.random.default_rng(2).normal(size=(count, 8)).astype(np.float16).astype(np.float32)
    assert drawn.dtype == np.float32
    return drawn


def test_laions_aesthetic_predictor_is_computed_as_torch_computes_it(tmp_path: Path) -> None:
    module, path = laion(tmp_path)
    expected = module(torch.from_numpy(rows())).detach().numpy()[:, 0]
    assert apply(Aesthetic(file=path), rows()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_with_relu_between_and_a_probability_at_the_end(tmp_path: Path) -> None:
    module, path = laion(tmp_path)
    values = torch.from_numpy(rows())
    linear = [step for step in module.children() if isinstance(step, torch.nn.Linear)]
    for place, step in enumerate(linear):
        values = step(values)
        values = values.relu() if place + 1 < len(linear) else values.sigmoid()
    assert apply(Safety(file=path), rows()) == pytest.approx(values.detach().numpy()[:, 0].tolist(), abs=1e-5)


def test_ten_layers_and_more_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    module, path = laion(tmp_path, (8, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7, 1))
    expected = module(torch.from_numpy(rows())).detach().numpy()[:, 0]
    assert apply(Aesthetic(file=path), rows()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_golden_numbers_hold_or_the_revision_is_raised(tmp_path: Path) -> None:
    """The mean of the embedding plus one half; no bias where none was saved."""
    assert Aesthetic.revision == Safety.revision == 1
    ones = np.full((1, 8), 1 / 8, np.float32)
    with_bias = saved(tmp_path / "a", {"weight": ones, "bias": np.array([0.5], np.float32)})
    assert apply(Aesthetic(file=with_bias), np.eye(8, dtype=np.float32)[:1]) == [0.625]
    assert apply(Aesthetic(file=saved(tmp_path / "b", {"weight": ones})), np.eye(8, dtype=np.float32)[:1]) == [0.125]
    assert apply(Safety(file=with_bias), np.zeros((1, 8), np.float32)) == [pytest.approx(1 / (1 + np.exp(-0.5)))]


def test_an_image_that_was_not_downloaded_has_no_score(tmp_path: Path) -> None:
    _, path = laion(tmp_path)
    found = apply(Safety(file=path), rows(1), [False, True, False])
    assert [value is None for value in found] == [True, False, True]
    assert apply(Safety(file=path), np.zeros((0, 8), np.float32), [False]) == [None]


def test_no_number_overflows(tmp_path: Path) -> None:
    path = saved(tmp_path / "large", {"weight": np.full((1, 8), 1e4, np.float32)})
    assert apply(Safety(file=path), np.array([[1.0] * 8, [-1.0] * 8], np.float32)) == [1, 0]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": (1, 9)}, "is for embeddings of width 9, those of image_embedding have 8; use the model"),
        ({"0.weight": (4, 8), "1.weight": (1, 5)}, "1.weight takes 5 numbers and 0.weight gives 4; transpose it?"),
        ({"0.weight": (4, 8), "0.bias": (3,)}, "0.bias has the shape (3,); 0.weight has 4 outputs"),
        ({"weight": (2, 8)}, "the last layer gives 2 numbers; a head gives one"),
        ({"weight": (1, 8), "norm": (8,)}, "norm of shape (8,) belongs to no linear layer; fold it into one"),
        ({}, "the last layer gives 0 numbers; a head gives one"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line_before_work_starts(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    path = saved(tmp_path / "head", {name: np.zeros(shape, np.float32) for name, shape in tensors.items()})
    with pytest.raises(SluiceError, match=f"^file .*{re.escape(message)}[^\n]*$"):
        Aesthetic(file=path).check(EMBEDDINGS)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickle of torch", b"\x05\0\0\0\0\0\0\0[1,2]"])
def test_what_is_no_safetensors_file_is_never_opened_otherwise(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "head.safetensors").write_bytes(content)
    head = Aesthetic(file=str(tmp_path / "head.safetensors"))
    with pytest.raises(SluiceError, match="is no safetensors file"):
        head.check(EMBEDDINGS)
    with pytest.raises(SluiceError, match="is no safetensors file"):
        head.open(Device())


def test_another_head_is_other_work(tmp_path: Path) -> None:
    first = key(Aesthetic(file=saved(tmp_path / "a", {"weight": np.zeros((1, 8), np.float32)})))
    assert key(Aesthetic(file=saved(tmp_path / "b", {"weight": np.zeros((1, 8), np.float32)}))) == first
    assert key(Aesthetic(file=saved(tmp_path / "b", {"weight": np.ones((1, 8), np.float32)}))) != first


def saved(folder: Path, tensors: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "head.safetensors")
    return str(folder / "head.safetensors")


def key(stage: Head) -> str:
    return generation_key(node_identity([stage], 0), find_resources([stage]), {}, {})
