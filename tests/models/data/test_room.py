"""What is to be written to a batch later is written in its order, and does not pile up."""

from __future__ import annotations

from functools import partial

import torch

from models.data.collate import WAITING, Room


def room() -> Room:
    return Room({"pixels": torch.zeros(3, dtype=torch.uint8)})


def write(into: Room, at: int, value: int) -> None:
    into["pixels"][at] = value


def test_writes_wait_until_all_is_finished() -> None:
    into = room()
    into.later(10, partial(write, into, 0, 7))
    assert into["pixels"].tolist() == [0, 0, 0]
    into.finish()
    assert into["pixels"].tolist() == [7, 0, 0]
    write(into, 0, 1)
    into.finish()
    assert into["pixels"].tolist() == [1, 0, 0], "written once"


def test_the_last_write_to_a_row_holds() -> None:
    into = room()
    for value in (1, 2, 3):  # as where a sample is taken instead of one that was found damaged after its image
        into.later(10, partial(write, into, 1, value))
    into.finish()
    assert into["pixels"].tolist() == [0, 3, 0]


def test_no_more_waits_than_some_megabytes() -> None:
    into = room()
    into.later(WAITING // 2, partial(write, into, 0, 1))
    assert into["pixels"].tolist() == [0, 0, 0]
    into.later(WAITING // 2, partial(write, into, 1, 2))
    assert into["pixels"].tolist() == [1, 2, 0]
    into.later(WAITING // 2, partial(write, into, 2, 3))
    assert into["pixels"].tolist() == [1, 2, 0], "what was written waits no more"
