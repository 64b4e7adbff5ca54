"""FAISS on a GPU, as far as it can be seen without one: a stand-in that searches on the CPU and can do no more."""

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import pytest

from pipeline.errors import SluiceError
from pipeline.stage import Device
from stages.kit import gpu, neighbours
from stages.kit.neighbours import cosine_pairs, unit
from tests.stages.kit.test_neighbours import vectors_around

GPU = Device("cuda")


class OnGpu:
    """What FAISS gives for an index on a GPU: `add` and `search`, at most 2,048 neighbours, no search by radius."""

    def __init__(self, index: Any) -> None:
        self.index = index
        self.searches = 0

    def add(self, vectors_nd: np.ndarray) -> None:
        self.index.add(vectors_nd)

    def search(self, vectors_nd: np.ndarray, count: int) -> Any:
        assert count <= gpu.MOST
        self.searches += 1
        return self.index.search(vectors_nd, count)


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[OnGpu]]:
    """The indexes that went to the GPU, all of them to the worker's first."""
    found: list[OnGpu] = []

    def to_gpu(resources: object, number: int, index: Any) -> OnGpu:
        assert (resources, number) == ("resources", 0)
        found.append(OnGpu(index))
        return found[-1]

    gpu._resources.cache_clear()
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", lambda index, ngpu: index, raising=False)
    yield found
    gpu._resources.cache_clear()


@pytest.mark.parametrize("most", [4, 64])
def test_a_gpu_finds_the_pairs_that_a_cpu_finds_crowds_included(
    most: int, placed: list[OnGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "FLAT_ROWS", 300)
    rng = np.random.default_rng(1)
    crowd = unit((np.ones((150, 32)) + 0.01 * rng.normal(size=(150, 32))).astype(np.float32))
    vectors_nd = np.concatenate([vectors_around(rng, 20, 30, 32, 0.7), crowd])
    (first, second, _), cut_off = cosine_pairs(vectors_nd, 0.95, most)
    assert not placed
    (*found, _), cut = cosine_pairs(vectors_nd, 0.95, most, device=GPU)
    assert len(first) > 150
    assert np.array_equal(found, [first, second])
    assert cut == cut_off
    assert sum(index.searches for index in placed) > 20


def test_a_worker_without_a_gpu_leaves_those_of_the_machine_alone(placed: list[OnGpu]) -> None:
    index = neighbours.index_of(np.eye(3, dtype=np.float32), Device())
    assert isinstance(index, faiss.IndexFlatIP)
    assert gpu.fetched(index, Device()) is index
    assert not placed


def test_a_gpu_that_faiss_cannot_use_is_an_error_and_no_silent_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(SluiceError, match="install faiss-gpu"):
        neighbours.index_of(np.ones((1, 4), np.float32), GPU)
