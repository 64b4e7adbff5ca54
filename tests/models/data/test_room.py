"""What is to be decoded later for a batch is decoded and written once, some at a time; damage is told with its row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from models.data.collate import DECODED, ENCODED, Decoded, Room
from models.data.shards import Damaged


def room() -> Room:
    return Room({"pixels": torch.zeros(3, dtype=torch.uint8)})


def image(into: Room, at: int, value: int, nbytes: int = 10, done: list[str] | None = None) -> Callable[[], Decoded]:
    told = done if done is not None else []

    def write() -> None:
        told.append(f"written {value}")
        into["pixels"][at] = value

    def decode() -> Decoded:
        told.append(f"decoded {value}")
        return Decoded(nbytes, write)

    return decode


def damaged() -> Decoded:
    raise Damaged("undecodable image", "key", "no image at all")


def test_images_wait_until_all_is_finished() -> None:
    into = room()
    into.later(0, 10, image(into, 0, 7))
    assert into["pixels"].tolist() == [0, 0, 0]
    assert into.finish() == []
    assert into["pixels"].tolist() == [7, 0, 0]
    into["pixels"][0] = 1
    into.finish()
    assert into["pixels"].tolist() == [1, 0, 0], "written once"


def test_all_are_decoded_before_the_first_is_written() -> None:
    into, done = room(), list[str]()
    for value in (1, 2, 3):
        into.later(value - 1, 10, image(into, value - 1, value, done=done))
    into.finish()
    assert [told.split()[0] for told in done] == ["decoded"] * 3 + ["written"] * 3
    assert into["pixels"].tolist() == [1, 2, 3]


def test_no_more_pixels_wait_than_some_megabytes() -> None:
    into, done = room(), list[str]()
    for value in range(5):
        into.later(0, 10, image(into, 0, value, nbytes=DECODED // 2, done=done))
    into.finish()
    assert "".join(told[0] for told in done) == "ddwwddwwdw"


def test_it_is_full_with_a_megabyte_to_be_decoded() -> None:
    into = room()
    into.later(0, ENCODED - 1, image(into, 0, 1))
    assert not into.full
    into.later(1, 1, image(into, 1, 2))
    assert into.full
    into.finish()
    assert not into.full


def test_what_is_damaged_is_told_of_its_row_and_keeps_nothing_from_being_written() -> None:
    into = room()
    into.later(0, 10, image(into, 0, 7))
    into.later(1, 10, damaged)
    into.later(2, 10, image(into, 2, 9))
    ((at, told),) = into.finish()
    assert (at, told.reason) == (1, "undecodable image")
    assert into["pixels"].tolist() == [7, 0, 9]
    assert into.finish() == [], "told once"


def test_any_other_error_is_raised() -> None:
    into = room()

    def broken() -> Decoded:
        raise MemoryError("none left")

    into.later(0, 10, broken)
    with pytest.raises(MemoryError):
        into.finish()
