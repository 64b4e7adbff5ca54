"""What becomes of image bytes: formats, modes, orientations, bombs and lies."""

import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from stages.download.decode import MEMORY_BYTES, Options, answer, sniff, webp_size
from stages.download.decoders import PROGRAM, DecoderPool
from stages.download.statuses import is_status
from tests.stages.download.decoding import options
from tests.stages.download.doubles import encoded, picture, pixels

OPTIONS = options()


def made(data: bytes, wanted: Options = OPTIONS) -> tuple[dict[str, object], np.ndarray]:
    facts, jpeg = answer(data, wanted)
    assert facts["status"] == "success", facts
    assert (facts["width"], facts["height"]) == Image.open(io.BytesIO(jpeg)).size
    return facts, pixels(jpeg)


def status(data: bytes) -> str:
    facts, jpeg = answer(data, OPTIONS)
    assert is_status(str(facts["status"]))
    assert bool(jpeg) == (facts["status"] == "success")
    return str(facts["status"])


def png(width: int, height: int, mode: int = 2) -> bytes:
    """A PNG of one colour that is tiny as a file, whatever it claims to hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("size", "stored"),
    [((1024, 768), (512, 384)), ((768, 1024), (384, 512)), ((512, 512), (512, 512)), ((40, 30), (40, 30)),
     ((5000, 3), (512, 1)), ((1, 1), (1, 1)), ((513, 512), (512, 511))],
)  # fmt: skip
def test_the_longest_side_is_bounded_and_nothing_is_enlarged(size: tuple[int, int], stored: tuple[int, int]) -> None:
    facts, _ = made(encoded(picture(*size)))
    assert (facts["width"], facts["height"]) == stored
    assert (facts["original_width"], facts["original_height"]) == size


def test_the_same_bytes_give_the_same_bytes() -> None:
    data = encoded(picture(900, 700))
    assert answer(data, OPTIONS) == answer(data, OPTIONS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_the_four_formats_are_read(kind: str) -> None:
    image = picture()
    facts, stored = made(encoded(image, kind))
    assert (facts["format"], facts["frames"]) == (kind, 1)
    assert np.abs(stored.astype(int) - np.asarray(image).astype(int)).mean() < 12


@pytest.mark.parametrize(
    "data",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        b'<?xml version="1.0"?>\n<!-- x --><!DOCTYPE svg><svg onload="alert(1)"/>',
        b'\xef\xbb\xbf  <svg viewBox="0 0 1 1"/>',
        encoded(picture(), "TIFF"),
        encoded(picture(), "BMP"),
        encoded(picture(), "ICO"),
        encoded(picture(), "PPM"),
        encoded(picture(), "JPEG2000"),
        encoded(picture(), "AVIF"),
        b"8BPS\0\1",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
    ],
)
@pytest.mark.fault(16)
def test_other_formats_are_refused_by_name(data: bytes) -> None:
    assert status(data) == "format_refused"


@pytest.mark.parametrize(
    "data",
    [b"<!DOCTYPE html><html><body><svg></svg></body></html>", b"x", b"\xff\xd8", b"PK\x03\x04zip", b"{}",
     b"<html>" + b"<!---->" * 10_000, bytes(5000), b"RIFF\0\0\0\0AVI LIST", b"GIF88a", b"%PDF-1.7", b"BMW cars"],
)  # fmt: skip
@pytest.mark.fault(14)
def test_what_is_no_image_says_so(data: bytes) -> None:
    assert status(data) == "not_an_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("kept", [0.6, 0.95])
@pytest.mark.fault(19)
def test_a_truncated_image_is_no_success(kind: str, kept: float) -> None:
    data = encoded(picture(400, 300), kind)
    assert status(data[: int(len(data) * kept)]) == "truncated_image"


def test_a_broken_image_is_a_decode_error() -> None:
    data = bytearray(encoded(picture(400, 300), "PNG"))
    data[60:70] = bytes(10)
    assert status(bytes(data)) == "decode_error"
    webp = encoded(picture(), "WEBP")
    assert status(webp[:12] + bytes(len(webp) - 12)) == "decode_error"


@pytest.mark.fault(17)
def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = png(20_000, 20_000)
    assert len(bomb) < 200
    facts, _ = answer(bomb, OPTIONS)
    assert facts["status"] == "too_many_pixels"
    assert (facts["original_width"], facts["original_height"]) == (20_000, 20_000)
    assert status(png(2**31 - 1, 2**31 - 1)) == "too_many_pixels"


@pytest.mark.parametrize("saved", [{}, {"lossless": True}, {"quality": 1, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}])
def test_a_webp_tells_its_size_before_its_reader_makes_a_canvas(saved: dict[str, object]) -> None:
    data = encoded(picture(321, 123), "WEBP", **saved)
    assert webp_size(data) == (321, 123)
    facts, _ = answer(data, options(max_pixels=321 * 123 - 1))
    assert facts["status"] == "too_many_pixels"
    assert answer(data, options(max_pixels=321 * 123))[0]["status"] == "success"


@pytest.mark.fault(18)
def test_a_bomb_just_under_the_limit_fits_into_the_decoders_memory() -> None:
    """49 megapixels with alpha from a PNG: the largest canvas that Pillow makes of what we let through."""
    flat = encoded(Image.new("RGBA", (7000, 7000), (255, 0, 0, 128)), "PNG", compress_level=1)
    with closing(DecoderPool(OPTIONS, 60, 1)) as pool:
        decoded = pool.decode(flat)
    assert decoded.status == "success", decoded.message
    assert MEMORY_BYTES == 1 << 30
    assert np.abs(pixels(decoded.image)[256, 256].astype(int) - (255, 127, 127)).max() <= 2


@pytest.mark.fault(20)
def test_cmyk_becomes_rgb() -> None:
    _, stored = made(encoded(Image.new("CMYK", (64, 48), (0, 255, 255, 0))))
    red, green, blue = stored.reshape(-1, 3).mean(axis=0)
    assert red > 230
    assert max(green, blue) < 40


@pytest.mark.fault(20)
def test_sixteen_bits_become_eight_without_clipping() -> None:
    ramp = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    _, stored = made(encoded(Image.fromarray(ramp), "PNG"))
    assert np.abs(stored[:, :, 0].astype(int) - (ramp >> 8)).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.fault(20)
def test_transparency_lies_over_white(mode: str) -> None:
    image = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 32, 48))
    _, stored = made(encoded(image.convert(mode) if mode != "P" else image.quantize(4), "PNG"))
    assert stored[:, :24].max() < 16
    assert stored[:, 40:].min() > 240


def test_half_transparent_black_is_grey() -> None:
    _, stored = made(encoded(Image.new("RGBA", (64, 48), (0, 0, 0, 128)), "PNG"))
    assert np.abs(stored.astype(int) - 127).max() <= 2


def test_palettes_greys_and_bitmaps_become_rgb() -> None:
    for mode in ("P", "L", "1"):
        facts, stored = made(encoded(picture().convert(mode), "PNG"))
        assert stored.shape == (48, 64, 3)
        assert facts["format"] == "PNG"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
@pytest.mark.fault(21)
def test_frame_zero_of_an_animation_is_kept_and_the_frames_are_counted(kind: str) -> None:
    frames = [Image.new("RGB", (64, 48), (255, 0, 0))] + [picture(seed=seed) for seed in range(29)]
    facts, stored = made(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert facts["frames"] == 30
    assert np.abs(stored.reshape(-1, 3).mean(axis=0) - (255, 0, 0)).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.fault(22)
def test_every_exif_orientation_ends_upright_and_without_exif(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (80, 40), "black")
    upright.paste((255, 0, 0), (0, 0, 40, 20))  # red top left, blue bottom left
    upright.paste((0, 0, 255), (0, 20, 40, 40))
    stored_as = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that the camera did: the inverse
    lying = upright.transpose(Image.Transpose(stored_as[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Kamera"
    facts, jpeg = answer(encoded(lying, kind, exif=exif), OPTIONS)
    assert (facts["original_width"], facts["original_height"]) == (80, 40)
    shown = pixels(jpeg)
    assert shown.shape == (40, 80, 3)
    assert np.abs(shown[10, 20].astype(int) - (255, 0, 0)).max() < 40
    assert np.abs(shown[30, 20].astype(int) - (0, 0, 255)).max() < 40
    assert shown[:, 60:].max() < 40
    assert json.loads(str(facts["exif"])) == {"Make": "Kamera", "Orientation": str(orientation)}
    with Image.open(io.BytesIO(jpeg)) as image:
        assert not image.getexif()
        assert b"Kamera" not in jpeg


def test_comments_profiles_and_resolutions_are_not_carried_along() -> None:
    data = encoded(picture(), comment=b"secret comment", dpi=(300, 300), icc_profile=b"secret profile")
    _, jpeg = answer(data, OPTIONS)
    assert b"secret" in data
    assert b"secret" not in jpeg


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_costs_no_image() -> None:
    data = encoded(picture(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    facts, _ = made(data)
    assert "exif" not in facts or facts["exif"] is None


@pytest.mark.fault(23)
def test_the_tail_of_a_polyglot_is_gone() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("payload.sh", "rm -rf /")
    both = encoded(picture()) + archive.getvalue()
    assert zipfile.is_zipfile(io.BytesIO(both))
    facts, jpeg = answer(both, OPTIONS)
    assert facts["status"] == "success"
    assert b"payload" not in jpeg
    assert not zipfile.is_zipfile(io.BytesIO(jpeg))


def test_sniffing_takes_linear_time() -> None:
    for head in (b"<!--" * 300, b"<!---->" * 200, b"<?xml" + b" " * 2000):
        assert status(head) in ("not_an_image", "format_refused")


def test_the_name_of_a_format_is_in_the_message() -> None:
    facts, _ = answer(b"II*\0" + bytes(20), OPTIONS)
    assert (facts["format"], facts["message"]) == ("TIFF", "TIFF; expected JPEG, PNG, WebP or GIF")
    assert sniff(b"\xff\xd8\xff\xe0") == "JPEG"


CONFINED = f"""
import ctypes, os, sys, tempfile
spare = tempfile.TemporaryFile()
def call(name, *arguments):
    number = {{"x86_64": {{"sigqueue": 129, "pidfd": 434, "openat2": 437, "chmod": 268, "unlink": 263}},
              "aarch64": {{"sigqueue": 138, "pidfd": 434, "openat2": 437, "chmod": 53, "unlink": 35}}}}[os.uname().machine][name]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
sys.path.insert(0, {str(PROGRAM.parent)!r})
import decode
missing = decode.confine()
assert not missing or "Landlock" in missing, missing
"""  # noqa: E501


def confined(attempt: str) -> subprocess.CompletedProcess[str]:
    """How `attempt` ends in a process that has confined itself."""
    program = [sys.executable, "-c", CONFINED + attempt]
    return subprocess.run(program, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        ("import socket; socket.socket()", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("os.fork()", "PermissionError"),
        ("os.kill(os.getppid(), 0)", "PermissionError: [Errno 1]"),
        ("call('sigqueue', os.getppid(), 0, None)", "PermissionError: [Errno 1]"),
        ("call('pidfd', os.getppid(), 0)", "PermissionError: [Errno 1]"),
        ("import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())", "PermissionError: [Errno 1]"),
        ("import resource; resource.prlimit(os.getppid(), resource.RLIMIT_CORE)", "PermissionError: [Errno 1]"),
        ("os.open('/dev/null', os.O_WRONLY)", "PermissionError: [Errno 1]"),
        ("os.open('/dev/null', os.O_RDWR)", "PermissionError: [Errno 1]"),
        ("os.open('/tmp/by-a-decoder', os.O_RDONLY | os.O_CREAT)", "PermissionError: [Errno 1]"),
        ("os.open('/dev/null', os.O_RDONLY | os.O_TRUNC)", "PermissionError: [Errno 1]"),
        ("call('openat2', -100, b'/dev/null', bytes(24), 24)", "PermissionError: [Errno 1]"),
        ("call('chmod', -100, b'/no/such/file', 0o777)", "PermissionError: [Errno 1]"),
        ("call('unlink', -100, b'/no/such/file', 0)", "PermissionError: [Errno 1]"),
        ("bytearray(2 << 30)", "MemoryError"),
        ("spare.write(bytes(4 << 20)); spare.flush()", "OSError: [Errno 27]"),
    ],
)
def test_a_confined_decoder_has_no_network_no_programs_no_signals_and_nothing_to_write_to(
    attempt: str, error: str
) -> None:
    ended = confined(attempt)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(error), ended.stderr


@pytest.mark.parametrize(
    "attempt", ["open(f'/proc/{os.getppid()}/environ')", "open('/etc/passwd')", "os.listdir('/')", "os.listdir('.')"]
)
def test_a_confined_decoder_reads_no_secrets(attempt: str) -> None:
    missing = confined("print(missing)").stdout.strip()
    if missing:
        pytest.skip(missing)
    ended = confined(attempt)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("PermissionError: [Errno 13]"), ended.stderr


def test_what_python_and_pillow_import_late_is_still_found() -> None:
    late = "import bz2, decimal, fractions, lzma, xml.dom.minidom; from PIL import Image, ImageCms, TiffImagePlugin"
    ended = confined(f"{late}; Image.init(); print(len(Image.OPEN) > 20, decimal.Decimal(2).sqrt() > 1)")
    assert ended.stdout == "True True\n", ended.stderr


def test_the_program_imports_nothing_but_the_standard_library_and_pillow() -> None:
    program = f"import runpy, sys; runpy.run_path({str(PROGRAM)!r}); print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name.partition(".")[0] for name in ended.stdout.split()}
    assert "PIL" in loaded
    assert not loaded & {"numpy", "pyarrow", "aiohttp", "pydantic", "stages", "pipeline", "ray"}
