"""Memory that batches leave behind."""

import gc

import numpy as np
import pytest
import torch

from models.data.memory import Recycled


def test_memory_is_taken_again_when_the_last_view_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, fresh, empty = Recycled(), list[int](), np.empty

    def counted(size: int, dtype: type[np.uint8]) -> np.ndarray:
        fresh.append(size)
        return empty(size, dtype)

    monkeypatch.setattr("models.data.memory.np.empty", counted)
    first = memory.empty(2, 3, 4)
    place, view = first.data_ptr(), first[1, 0]
    first.fill_(7)
    del first
    gc.collect()
    second = memory.empty(4, 6)
    assert second.data_ptr() != place, "a view is still held"
    second.zero_()
    assert view.tolist() == [7] * 4
    del view
    assert memory.empty(2, 3, 4).data_ptr() == place
    assert fresh == [24, 24], "an allocator may give the same place again, too"
    assert memory.empty(2, 3, 5).data_ptr() != place, "of another size"


def test_it_outlives_who_gave_it() -> None:
    held = Recycled().empty(1000).fill_(5)
    gc.collect()
    assert torch.equal(held, torch.full((1000,), 5, dtype=torch.uint8))
