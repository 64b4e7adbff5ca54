"""Members and samples are found in any tar, and no bytes at all stop a reader with anything but a fault."""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models.data.tars import NotATar, Scanned, key_of, members_of, scan
from tests.models.data.tars_made import tar_of

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
LONG = "a-folder-with-a-name/" * 6
keys = st.sampled_from(["a", "b", "c", "d/a", "kl\u00e4r", "写真", LONG + "long", "0" * 91])
endings = st.sampled_from(["jpg", "txt", "json", "seg.png", "JPG2", ""])
members = st.lists(st.tuples(keys, endings, st.binary(max_size=1500)), max_size=12)


def scanned(tar: bytes) -> Scanned:
    return scan(lambda place, nbytes: tar[place : place + nbytes], len(tar))


def read(tar: bytes) -> list[tuple[str, dict[str, bytes]]]:
    return [members_of(tar[start : start + nbytes]) for start, nbytes in scanned(tar).spans_n2.tolist()]


def grouped(listed: list[tuple[str, bytes]]) -> list[tuple[str, dict[str, bytes]]]:
    """The rule, said plainly: consecutive members of one key are a sample."""
    found: list[tuple[str, dict[str, bytes]]] = []
    for name, data in listed:
        named = key_of(name)
        if named is not None:
            if not found or found[-1][0] != named[0]:
                found.append((named[0], {}))
            found[-1][1][named[1]] = data
    return found


@given(members, st.sampled_from(FORMATS))
@example([(LONG + "x", "jpg", b"1"), (LONG + "x", "txt", b"")], tarfile.GNU_FORMAT)
@example([(LONG + "x", "jpg", b"1"), ("写真", "txt", b"2" * 600)], tarfile.PAX_FORMAT)
def test_every_form_of_tar_gives_the_samples_that_were_put_in(listed: list[tuple[str, str, bytes]], form: int) -> None:
    named, seen = [], set[tuple[str, str]]()
    previous = None
    for key, ending, data in listed:
        seen = seen if key == previous else set()
        previous = key
        if (key, ending.lower()) not in seen:  # one of each in a sample
            named.append((f"{key}.{ending}" if ending else f"{key}.", data))
            seen.add((key, ending.lower()))
    tar = tar_of(named, form)
    assert scanned(tar).fault is None
    assert read(tar) == grouped(named)


@given(members, st.sampled_from(FORMATS), st.integers(0, 1 << 30), st.binary(min_size=1, max_size=12))
def test_damaged_bytes_give_a_fault_or_other_samples_but_never_stop_the_reader(
    listed: list[tuple[str, str, bytes]], form: int, place: int, damage: bytes
) -> None:
    tar = bytearray(tar_of([(f"{key}.{ending}", data) for key, ending, data in listed], form))
    place %= len(tar)
    tar[place : place + len(damage)] = damage
    for start, nbytes in scanned(bytes(tar)).spans_n2.tolist():
        assert nbytes >= 0
        assert start + nbytes <= len(tar)
        with suppress(NotATar):
            members_of(bytes(tar[start : start + nbytes]))
    with suppress(NotATar):
        members_of(bytes(tar))


@given(st.integers(0, 20 * 512))
def test_a_tar_that_was_cut_off_keeps_the_samples_before_the_cut(cut: int) -> None:
    whole = tar_of([(f"{n}.{ending}", b"x" * 300 * n) for n in range(4) for ending in ("jpg", "txt")])
    tar = whole[:cut]
    found = scanned(tar)
    assert read(tar) == read(whole)[: len(found.spans_n2)]
    ends = [start + nbytes for start, nbytes in scanned(whole).spans_n2.tolist()]
    complete = sum(end <= cut for end in ends)
    assert complete - 1 <= len(found.spans_n2) <= complete
    assert (found.fault is None) == (cut >= ends[-1] + -ends[-1] % 512 + 512)


def test_the_sample_before_the_damage_is_left_out_for_it_may_lack_members() -> None:
    tar = bytearray(tar_of([("a.jpg", b"1"), ("b.jpg", b"2"), ("b.txt", b"3"), ("c.jpg", b"4")]))
    tar[4 * 512 + 10] ^= 1  # the header of b.txt
    found = scanned(bytes(tar))
    assert [start for start, _ in found.spans_n2] == [0]
    assert found.fault is not None
    assert "no header of a tar at byte 2048" in found.fault


@pytest.mark.parametrize("how", ["a hole", "two tars"])
def test_what_stands_behind_zeros_is_a_fault(how: str) -> None:
    """A page that was never written, or what `cat` made of two tars: what follows is not read, and not kept secret."""
    tar = bytearray(tar_of([(f"{name}.{ending}", b"1" * 700) for name in "abcd" for ending in ("jpg", "txt")]))
    if how == "a hole":
        tar[3 * 1536 : 3 * 1536 + 512] = bytes(512)  # the header of b.txt
    else:
        tar = tar + tar
    found = scanned(bytes(tar))
    assert len(found.spans_n2) == (1 if how == "a hole" else 3)
    assert found.fault is not None
    assert "there is more" in found.fault


def test_links_and_devices_are_left_out_and_told() -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, kind in (("a.jpg", tarfile.REGTYPE), ("a.txt", tarfile.SYMTYPE), ("b", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            archive.addfile(info)
    found = scanned(sink.getvalue())
    assert read(sink.getvalue()) == [("a", {"jpg": b""})]
    assert found.fault is not None
    assert "'a.txt' is a link or a device" in found.fault


def test_a_size_beyond_the_file_is_a_fault_and_asks_for_no_memory() -> None:
    header = bytearray(tar_of([("a.jpg", b"")])[:512])
    header[124:136] = b"77777777777\0"
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    asked: list[int] = []

    def read_at(place: int, nbytes: int) -> bytes:
        asked.append(nbytes)
        return bytes(header[place : place + nbytes])

    found = scan(read_at, 512)
    assert found.fault is not None
    assert "within a member" in found.fault
    assert max(asked) == 512


def test_an_extended_header_without_end_is_a_fault() -> None:
    tar = tar_of([("x" * 200 + ".jpg", b"1")], tarfile.GNU_FORMAT)
    huge = bytearray(tar)
    huge[124:136] = b"00040000000\0"
    huge[148:156] = b"%06o\0 " % (sum(huge[:512]) - sum(huge[148:156]) + 8 * 32)
    found = scanned(bytes(huge) + bytes(1 << 16))
    assert found.fault is not None
    assert "an extended header of 8388608 bytes at byte 0" in found.fault


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("a.jpg", ("a", "jpg")),
        ("d.e/a.JPG", ("d.e/a", "jpg")),
        ("a.seg.png", ("a", "seg.png")),
        ("./a.txt", ("./a", "txt")),
        ("README", None),
        (".hidden", None),
        ("d/._a.jpg", None),
        ("__meta__.json", None),
    ],
)
def test_keys_and_endings_are_those_of_webdataset(name: str, named: tuple[str, str] | None) -> None:
    assert key_of(name) == named


def test_a_member_twice_or_of_another_sample_is_refused() -> None:
    with pytest.raises(NotATar, match=r"two members 'a\.jpg'"):
        members_of(tar_of([("a.jpg", b""), ("a.jpg", b"")])[:1024])
    with pytest.raises(NotATar, match="members of 'a' and 'b'"):
        members_of(tar_of([("a.jpg", b""), ("b.jpg", b"")])[:1024])


def test_spans_are_int64_even_where_there_are_none() -> None:
    found = scanned(tar_of([]))
    assert found.spans_n2.shape == (0, 2)
    assert found.spans_n2.dtype == np.int64


@pytest.mark.parametrize("place", [124, 134, 148])
def test_a_digit_that_is_not_octal_is_a_fault_of_the_tar_and_not_of_the_reader(place: int) -> None:
    """One flipped bit makes an 8 of a 0: in the first and last digit of a size, and in the sum of a header."""
    tar = bytearray(tar_of([("a.jpg", b"1"), ("a.txt", b"2"), ("b.jpg", b"3")]))
    second = 3 * 1024
    tar[second + place] |= 8
    found = scanned(bytes(tar))
    assert found.fault is not None
    with suppress(NotATar):
        members_of(bytes(tar[second : second + 1024]))


def test_an_extended_size_of_thousands_of_digits_is_a_fault() -> None:
    record = b"5010 size=" + b"9" * 4999 + b"\n"
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("pax")
        info.type, info.size = tarfile.XHDTYPE, len(record)
        tar.addfile(info, io.BytesIO(record))
        tar.addfile(tarfile.TarInfo("a.jpg"))
    assert "a size of '9999" in str(scanned(sink.getvalue()).fault)
