"""img2dataset's own output as a pool: nothing copied, every row accounted for, damaged tars refused."""

import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import SluiceError
from pipeline.records import Generation
from tests.stages.ingest.conftest import Ingest

STAGE = "stages.ingest.Img2DatasetFolder"


def jpeg(colour: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (40 + colour, 30), (colour, 90, 200)).save(sink, "JPEG")
    return sink.getvalue()


class _Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.strip("/")
        body = b"no image" if name == "junk" else b"" if name == "gone" else jpeg(int(name))
        self.send_response(404 if name == "gone" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def pictures() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What img2dataset 1.47 wrote of 22 rows: 17 pictures (three of them twice), one that is gone, one that is none."""
    pytest.importorskip("img2dataset")
    folder = tmp_path_factory.mktemp("img2dataset")
    with pictures() as base:
        rows = [(f"{base}/{n % 17}", f"caption {n}", n) for n in range(20)] + [
            (f"{base}/gone", "x", 20),
            (f"{base}/junk", "y", 21),
        ]
        urls, captions, numbers = zip(*rows, strict=True)
        pq.write_table(pa.table({"url": urls, "caption": captions, "n": numbers}), folder / "in.parquet")
        options = {
            "url_list": folder / "in.parquet",
            "input_format": "parquet",
            "url_col": "url",
            "caption_col": "caption",
            "output_format": "webdataset",
            "output_folder": folder / "out",
            "image_size": 32,
            "processes_count": 1,
            "thread_count": 2,
            "number_sample_per_shard": 8,
            "enable_wandb": False,
            "save_additional_columns": '["n"]',
        }
        command: list[str | Path] = [
            Path(sys.executable).parent / "img2dataset",
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}  # it would look for its newest version on the net
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
    return folder / "out"


def test_what_img2dataset_wrote_becomes_a_pool(real: Path, ingest: Ingest) -> None:
    generation = ingest(real / "*", stage=STAGE)
    assert [record.part for record in generation.records] == ["000-00000", "000-00001", "000-00002"]
    assert generation.statuses == {"success": 17, "merged": 3, "failed_to_download": 1, "failed_to_resize": 1}
    image = ingest.table(generation, "image")
    assert image.num_rows == 19
    assert image.column("n").type == pa.int64()
    pairs = ingest.pairs(generation)
    assert {caption for _, caption in pairs} == {f"caption {n}" for n in range(20)} | {"x", "y"}
    assert not list(Path(ingest.store.root).rglob("*.tar")), "the tars stay where they are"
    for record in generation.records:
        tar = record.file("tar")
        assert tar is not None
        assert tar.path.startswith(str(real))
        data = ingest.store.read_file(record, tar)
        with tarfile.open(fileobj=io.BytesIO(data)) as members:
            held = {name: members.extractfile(name).read() for name in members.getnames()}  # type: ignore[union-attr]
        for row in ingest.store.read_table(record, "image").to_pylist():
            if row["status"] == "success":
                bytes_ = data[row["offset"] : row["offset"] + row["nbytes"]]
                assert bytes_ == held[f"{row['key']}.jpg"]
                assert sha256(bytes_).hexdigest() == row["stored_sha256"]
                assert (row["width"], row["height"]) == (32, 32)
            else:
                assert row["offset"] is None
                assert row["error_message"]


# -- crafted -----------------------------------------------------------------------------------------------------------

Members = list[tuple[str, bytes | tarfile.TarInfo]]


def shard(folder: Path, number: int, rows: list[dict[str, Any]], members: Members | None = None) -> Path:
    """A shard as img2dataset lays it out; `members` instead of what its rows give."""
    folder.mkdir(exist_ok=True)
    columns = {"url": "u", "caption": None, "key": None, "status": "success", "error_message": None, "sha256": None}
    keyed = [{**columns, "key": f"{number:05d}{index:04d}", **row} for index, row in enumerate(rows)]
    strings = pa.schema([(name, pa.string()) for name in columns])
    pq.write_table(pa.Table.from_pylist(keyed, schema=strings), folder / f"{number:05d}.parquet")
    (folder / f"{number:05d}_stats.json").write_text("{}")
    if members is None:
        members = [
            (f"{row['key']}.{ending}", data)
            for index, row in enumerate(keyed)
            if row["status"] == "success"
            for ending, data in (("jpg", jpeg(index)), ("txt", b"text"), ("json", b"{}"))
        ]
    with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            info.size = 0 if isinstance(data, tarfile.TarInfo) else len(data)
            tar.addfile(info, None if isinstance(data, tarfile.TarInfo) else io.BytesIO(data))
    return folder


def special(kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def rows_by_url(ingest: Ingest, generation: Generation) -> dict[str, dict[str, Any]]:
    return {row["url"]: row for row in ingest.rows(generation, "image")}


def test_a_url_in_several_shards_counts_in_the_first_that_has_its_image(ingest: Ingest, tmp_path: Path) -> None:
    failed = {"status": "failed_to_download", "error_message": "404"}
    shard(tmp_path / "in", 0, [{"url": "a", "caption": "one", **failed}, {"url": "b", "caption": "b"}])
    shard(tmp_path / "in", 1, [{"url": "a", "caption": "two"}, {"url": "c", "caption": None}])
    shard(tmp_path / "in", 2, [{"url": "a", "caption": "three"}, {"url": "c", "caption": "sea"}, {"url": "c"}])
    generation = ingest(tmp_path / "in" / "*", stage=STAGE)
    assert generation.statuses == {"success": 3, "merged": 4}
    assert [record.rows["image"] for record in generation.records] == [1, 2, 0]
    captions = ingest.rows(generation, "caption")
    uid = rows_by_url(ingest, generation)["a"]["uid"]
    assert [row["caption"] for row in captions if row["uid"] == uid] == ["one", "two", "three"]
    assert ingest.pairs(generation) == {("a", "one"), ("a", "two"), ("a", "three"), ("b", "b"), ("c", "sea")}


@pytest.mark.fault(32)
def test_a_link_or_a_device_in_a_tar_is_refused_and_its_target_never_read(ingest: Ingest, tmp_path: Path) -> None:
    members: Members = [
        ("000000000.jpg", special(tarfile.SYMTYPE)),
        ("000000001.jpg", special(tarfile.LNKTYPE)),
        ("000000002.jpg", special(tarfile.CHRTYPE)),
        ("000000003.jpg", jpeg(3)),
    ]
    shard(tmp_path / "in", 0, [{"url": url} for url in "abcd"], members)
    generation = ingest(tmp_path / "in" / "*", stage=STAGE)
    assert generation.statuses == {"tar_member_refused": 3, "success": 1}
    rows = rows_by_url(ingest, generation)
    assert rows["a"]["error_message"] == "'000000000.jpg' is a symbolic link"
    assert rows["c"]["error_message"] == "'000000002.jpg' is a device"
    assert rows["a"]["offset"] is None


def test_bytes_that_no_decoder_may_see_are_refused(ingest: Ingest, tmp_path: Path) -> None:
    shard(tmp_path / "in", 0, [{"url": "a"}], [("000000000.jpg", b"<svg onload='alert(1)'/>")])
    assert ingest(tmp_path / "in" / "*", stage=STAGE).statuses == {"format_refused": 1}


@pytest.mark.fault(30, 31, 32)
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("000000000.jpg", b"1"), ("000000000.jpg", b"2")], r"key '000000000' has two members '000000000.jpg'"),
        (
            [("000000000.jpg", b"1"), ("000000001.jpg", b"2"), ("000000000.txt", b"3")],
            "'000000000' do not stand together",
        ),
        ([("000000000.jpg", b"1"), ("000000000.png", b"2"), ("000000001.jpg", b"2")], "'000000000' has two images"),
        ([("000000000.jpg", b"1")], "has no image for key '000000001', which .*parquet calls a success"),
        (
            [("000000000.jpg", b"1"), ("000000001.jpg", b"1"), ("../../x.jpg", b"")],
            r"has a member of key '../../x', of which",
        ),
        (
            [("000000000.jpg", b"1"), ("000000001.jpg", b"1"), ("evil", special(tarfile.SYMTYPE))],
            "tar_member_refused: 'evil'",
        ),
    ],
)
def test_a_tar_that_img2dataset_did_not_write_names_itself_and_the_key(
    ingest: Ingest, tmp_path: Path, members: Members, message: str
) -> None:
    shard(tmp_path / "in", 0, [{"url": "a"}, {"url": "b"}], members)
    with pytest.raises(SluiceError, match=r"in/00000\.tar.*" + message):
        ingest(tmp_path / "in" / "*", stage=STAGE)


def test_a_truncated_tar_is_named(ingest: Ingest, tmp_path: Path) -> None:
    shard(tmp_path / "in", 0, [{"url": "a"}, {"url": "b"}])
    path = tmp_path / "in" / "00000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(SluiceError, match=r"00000\.tar is no readable tar: unexpected end of data"):
        ingest(tmp_path / "in" / "*", stage=STAGE)


@pytest.mark.parametrize("missing", ["tar", "parquet"])
def test_half_a_shard_is_told_before_anything_runs(ingest: Ingest, tmp_path: Path, missing: str) -> None:
    shard(tmp_path / "in", 0, [{"url": "a"}])
    (tmp_path / "in" / f"00000.{missing}").unlink()
    with pytest.raises(SluiceError, match=rf"has no \.{missing} beside it"):
        ingest(tmp_path / "in" / "*", stage=STAGE)
    assert not ingest.executor.calls


def test_a_tar_that_changes_during_the_run_stops_it(ingest: Ingest, tmp_path: Path) -> None:
    shard(tmp_path / "in", 0, [{"url": "a"}])
    path = tmp_path / "in" / "00000.tar"
    ingest.before_work = lambda: path.write_bytes(path.read_bytes() + bytes(10_240))
    with pytest.raises(SluiceError, match=r"00000\.tar changed while it was read"):
        ingest(tmp_path / "in" / "*", stage=STAGE)


def test_a_folder_that_moved_is_adopted_again_with_the_same_content(
    ingest: Ingest, tmp_path: Path, ingest_in: Callable[[str], Ingest]
) -> None:
    shard(tmp_path / "in", 0, [{"url": "a"}, {"url": "b"}])
    before = ingest(tmp_path / "in" / "*", stage=STAGE)
    (tmp_path / "in").rename(tmp_path / "moved")
    after = ingest(tmp_path / "moved" / "*", stage=STAGE)
    assert after.content_hash == before.content_hash
    tar = after.records[0].file("tar")
    assert tar is not None
    assert tar.path == str(tmp_path / "moved" / "00000.tar")


def test_the_output_is_what_it_was(ingest: Ingest, tmp_path: Path) -> None:
    """Golden: a change here needs a new `revision`."""
    gif = b"GIF89a" + bytes(20)
    shard(tmp_path / "in", 0, [{"url": "a", "caption": "x\0"}], [("000000000.jpg", gif)])
    shard(tmp_path / "in", 1, [{"url": "a", "caption": "y"}], [("000010000.jpg", gif)])
    assert ingest(tmp_path / "in" / "*", stage=STAGE).content_hash == "9ab1aa530cde47014d047953e16721d0"
