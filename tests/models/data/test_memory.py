"""Memory that batches leave behind."""

import gc

import torch

from models.data.memory import Recycled


def test_memory_is_taken_again_when_the_last_view_is_gone() -> None:
    memory = Recycled()
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
    assert memory.empty(2, 3, 5).data_ptr() != place, "of another size"


def test_it_outlives_who_gave_it() -> None:
    held = Recycled().empty(1000).fill_(5)
    gc.collect()
    assert torch.equal(held, torch.full((1000,), 5, dtype=torch.uint8))
