"""Bytes that are stored as they came: which, under which ending, and that they were decoded all the same."""

import io
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256

import pytest
from PIL import Image

from infra.miniweb import Scripted
from stages.download.decode import answer
from stages.download.decoders import DecoderPool
from stages.download.worker import Worker
from tests.stages.download.conftest import opened
from tests.stages.download.decoding import options
from tests.stages.download.doubles import encoded, part_of, picture, pixels

KEEPING = options(resize="no", passthrough=True)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def named() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "Kamera"
    return exif


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    with closing(DecoderPool(KEEPING, 15, 1)) as running:
        yield running


@pytest.mark.parametrize(
    ("data", "ending"),
    [
        (encoded(picture(640, 480)), "jpg"),
        (encoded(picture(640, 480), progressive=True), "jpg"),
        (encoded(picture().convert("L")), "jpg"),
        (encoded(picture(), exif=named(), comment=b"kept"), "jpg"),
        (encoded(picture(), "PNG"), "png"),
        (encoded(picture().quantize(16), "PNG"), "png"),
        (encoded(picture(), "WEBP"), "webp"),
    ],
)
def test_what_every_reader_shows_as_we_would_is_stored_as_it_came(pool: DecoderPool, data: bytes, ending: str) -> None:
    decoded = pool.decode(data)
    assert (decoded.status, decoded.image, decoded.ending) == ("success", data, ending)
    assert decoded.sha256 == decoded.stored_sha256 == sha256(data).hexdigest()
    size = Image.open(io.BytesIO(data)).size
    assert (decoded.facts["width"], decoded.facts["height"]) == size
    assert (decoded.facts["original_width"], decoded.facts["original_height"]) == size


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(), exif=turned()),
        encoded(picture(), "PNG", exif=turned()),
        encoded(picture().convert("CMYK")),
        encoded(picture().convert("RGBA"), "PNG"),
        encoded(picture().convert("I;16"), "PNG"),
        encoded(picture(), "GIF"),
        encoded(picture(), "WEBP", save_all=True, append_images=[picture(seed=1)]),
        encoded(picture(), "PNG", save_all=True, append_images=[picture(seed=1)]),
    ],
)
def test_what_some_readers_would_show_otherwise_becomes_a_jpeg(pool: DecoderPool, data: bytes) -> None:
    decoded = pool.decode(data)
    assert (decoded.status, decoded.ending) == ("success", "jpg")
    assert decoded.image != data
    assert pixels(decoded.image).shape == (decoded.facts["height"], decoded.facts["width"], 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_image_is_never_passed_through(pool: DecoderPool, kind: str) -> None:
    data = encoded(picture(400, 300), kind)
    decoded = pool.decode(data[: int(len(data) * 0.7)])
    assert (decoded.status, decoded.image) == ("truncated_image", b"")


def test_what_fits_is_stored_as_it_came_and_the_rest_is_resized() -> None:
    small, large = encoded(picture(300, 200)), encoded(picture(600, 400))
    for mode, exact in (("keep_ratio_largest", (300, 200)), ("border", (300, 300)), ("center_crop", (300, 300))):
        wanted = options(resize=mode, side=300, passthrough=True, resize_only_if_bigger=mode == "keep_ratio_largest")
        fits = small if exact == (300, 200) else encoded(picture(*exact))
        facts, made = answer(fits, wanted)
        assert (facts["status"], made) == ("success", b"")
        facts, made = answer(large, wanted)
        assert pixels(made).shape == (exact[1], exact[0], 3)
        assert (facts["width"], facts["height"]) == exact


def test_the_tail_of_a_polyglot_is_kept_with_the_rest_of_its_bytes(pool: DecoderPool) -> None:
    """As the parameter's description says; without `passthrough` it is gone."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("payload.sh", "x")
    data = encoded(picture()) + archive.getvalue()
    assert pool.decode(data).image == data


def test_the_tar_names_members_by_what_they_are(server: Scripted) -> None:
    kinds = {"jpg": encoded(picture(90, 60)), "png": encoded(picture(), "PNG"), "webp": encoded(picture(), "WEBP")}
    urls = [server.serve(f"/kept/{name}", data) for name, data in kinds.items()]
    part = part_of(urls)
    worker = opened(server, threads=1, resize="no", passthrough=True)
    assert isinstance(worker, Worker)
    rows = worker(part).to_pylist()
    worker.close()
    with tarfile.open(fileobj=io.BytesIO(part.bytes("tar"))) as tar:
        names = tar.getnames()
    assert [name.partition(".")[2] for name in names] == [end for kind in kinds for end in (kind, "json", "txt")]
    for row, data in zip(rows, kinds.values(), strict=True):
        assert part.bytes("tar")[row["offset"] :][: row["nbytes"]] == data
        assert 0 <= row["phash"] < 1 << 64
