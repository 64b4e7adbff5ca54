"""The tar writer against the standard library's."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.kit.tar import TarWriter, header_of


def by_tarfile(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1), st.integers(0, 8**11 - 1))
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    assert header_of(name, size) == by_tarfile(name, size)


@pytest.mark.parametrize(
    ("name", "size"),
    [("a" * 100, 1), ("a" * 101, 1), ("a" * 300, 1), ("ü.txt", 1), ("f/" * 60, 1), ("a", 8**11 - 1), ("a", 8**11)],
)
def test_names_and_sizes_that_do_not_fit_get_extended_headers(name: str, size: int) -> None:
    assert header_of(name, size) == by_tarfile(name, size)


@given(st.lists(st.lists(st.binary(max_size=1100), max_size=4), max_size=4))
def test_the_archive_is_the_one_that_tarfile_writes(samples: list[list[bytes]]) -> None:
    ours, theirs = io.BytesIO(), io.BytesIO()
    writer = TarWriter(ours)
    places: list[int] = []
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, sample in enumerate(samples):
            members = [(f"{number}.{place}", data) for place, data in enumerate(sample)]
            places += writer.add(members)
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    writer.finish()
    assert ours.getvalue() == theirs.getvalue()
    assert writer.offset == len(ours.getvalue())
    flat = [data for sample in samples for data in sample]
    assert [ours.getvalue()[at : at + len(data)] for at, data in zip(places, flat, strict=True)] == flat
