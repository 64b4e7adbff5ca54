"""The tar's format: golden bytes, offsets that hold, and readers other than ours."""

import io
import json
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.errors import SluiceError
from stages.download.archive import SampleWriter

KEYS = [f"{number:032x}" for number in range(3)]


def written(keys: list[str] = KEYS) -> tuple[bytes, list[int]]:
    stream = io.BytesIO()
    archive = SampleWriter(stream)
    offsets = [
        archive.write(key, bytes([7]) * 700, "jpg", f"caption of {key} ü", {"key": key, "width": 3}) for key in keys
    ]
    archive.finish()
    return stream.getvalue(), offsets


def test_the_bytes_are_golden() -> None:
    """A change here changes every pool: raise `Download.revision` with it."""
    data, _ = written()
    assert sha256(data).hexdigest() == "85bb86b12c75adf055beb710ef02dca57d81f3332b6584c54977a8755f60b205"


def test_members_are_plain_files_with_deterministic_headers_in_img2datasets_order() -> None:
    data, offsets = written()
    assert len(data) % tarfile.RECORDSIZE == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [
            f"{key}.{kind}" for key in KEYS for kind in ("jpg", "json", "txt")
        ]
        for member in members:
            assert member.isreg()
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert (member.uname, member.gname, member.pax_headers) == ("", "", {})
        assert [member.offset_data for member in members if member.name.endswith(".jpg")] == offsets
    assert all(data[offset : offset + 700] == bytes([7]) * 700 for offset in offsets)


def test_an_archive_without_samples_is_a_valid_one() -> None:
    data, _ = written([])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getmembers() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the file open
def test_webdataset_reads_it(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    (tmp_path / "part.tar").write_bytes(written()[0])
    samples = list(wds.WebDataset(str(tmp_path / "part.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == KEYS
    assert samples[0]["jpg"] == bytes([7]) * 700
    assert samples[0]["txt"].decode() == f"caption of {KEYS[0]} ü"
    assert json.loads(samples[0]["json"]) == {"key": KEYS[0], "width": 3}


@pytest.mark.parametrize("key", ["../../x", "a.b", "", "a/b", "a\0b", "ü"])
def test_a_key_that_would_be_a_path_or_an_extension_is_refused(key: str) -> None:
    with pytest.raises(SluiceError, match="cannot name a sample"):
        SampleWriter(io.BytesIO()).write(key, b"", "jpg", "", {})
