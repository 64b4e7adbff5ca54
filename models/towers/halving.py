"""Batches that halve where memory runs out, and stay so: half the speed is better than none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
log = logging.getLogger(__name__)


class Halving(Generic[T]):
    """Calls `work(start, end)` on consecutive rows, at most `rows` at once; `rows` falls by half at every shortage."""

    def __init__(self, rows: int, work: Callable[[int, int], T]) -> None:
        self.rows = rows
        self._work = work

    def __call__(self, count: int) -> Iterator[T]:
        """What `work` gives, batch by batch, for `count` rows. Raises `MemoryError` where one row is too many."""
        start = 0
        while start < count:
            end = min(start + self.rows, count)
            if (done := self._tried(start, end)) is not None:
                yield done
                start = end
                del done  # before the next is made: it may be half of what there is room for
            elif end - start == 1:
                raise MemoryError("out of memory with a batch of one row; take a smaller model or a device with more")
            else:
                self.rows = (end - start + 1) // 2
                log.warning("out of memory with %d rows at once; going on with %d", end - start, self.rows)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    def _tried(self, start: int, end: int) -> T | None:
        """None where memory ran out. The error, which holds on to the tensors of its frames, is gone on return."""
        try:
            return self._work(start, end)
        except (torch.OutOfMemoryError, MemoryError):
            return None
        except RuntimeError as error:
            if "allocate memory" in str(error):  # the CPU's allocator has no class of its own
                return None
            raise
