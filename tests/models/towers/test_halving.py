"""A shortage of memory costs speed and no row."""

import weakref

import pytest
import torch

from models.towers.halving import Halving


class Scarce:
    """Takes `most` rows at once, and notes what it was asked for."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error = most, error
        self.asked: list[int] = []

    def __call__(self, start: int, end: int) -> list[int]:
        self.asked.append(end - start)
        if end - start > self.most:
            raise self.error
        return list(range(start, end))


SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory: you tried …"),
]


@pytest.mark.fault(37)
@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_every_row_is_done_once_in_order_and_the_size_stays_small(error: Exception) -> None:
    work = Scarce(3, error)
    halving = Halving(16, work)
    assert [row for batch in halving(20) for row in batch] == list(range(20))
    assert halving.rows == 2
    assert work.asked[:4] == [16, 8, 4, 2]
    assert max(work.asked[4:]) == 2


def test_a_short_last_batch_halves_from_its_own_size() -> None:
    work = Scarce(2, MemoryError())
    assert [row for batch in Halving(64, work)(5) for row in batch] == list(range(5))
    assert work.asked == [5, 3, 2, 2, 1]


@pytest.mark.fault(37)
def test_one_row_that_is_too_many_is_an_error_with_a_remedy() -> None:
    with pytest.raises(MemoryError, match="a batch of one row; take a smaller model"):
        list(Halving(4, Scarce(0, MemoryError()))(4))


def test_memory_that_the_machine_really_refuses_is_noticed() -> None:
    def work(start: int, end: int) -> torch.Tensor:
        return torch.empty((end - start) * 2**44, dtype=torch.uint8)[:1]  # 16 TiB a row: no machine has them

    with pytest.raises(MemoryError, match="a batch of one row"):
        list(Halving(2, work)(2))


def test_another_error_is_not_taken_for_a_shortage() -> None:
    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(Halving(4, Scarce(0, RuntimeError("shape mismatch")))(4))


def test_a_batch_that_nobody_holds_is_gone_before_the_next_is_made() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def work(start: int, end: int) -> torch.Tensor:
        assert all(one() is None for one in made)
        rows = torch.zeros(end - start)
        made.append(weakref.ref(rows))
        return rows

    for batch in Halving(2, work)(6):
        assert len(batch) == 2
        del batch
    assert len(made) == 3
