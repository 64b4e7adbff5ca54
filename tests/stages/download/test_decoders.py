"""The processes that decode: what a crash, a hang and a lie cost (one image), and that they are replaced."""

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.errors import SluiceError
from stages.download import decoders
from stages.download.decode import MEMORY_BYTES
from stages.download.decoders import DecoderPool
from tests.stages.download.decoding import options
from tests.stages.download.doubles import encoded, picture
from tests.stages.download.test_decode import png

JPEG = encoded(picture())


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    running = DecoderPool(options(), timeout_s=2.0, count=1)
    running.wait_ready()
    yield running
    running.close()


@pytest.mark.fault(24)
def test_a_segfault_costs_one_image_and_the_process_is_replaced(pool: DecoderPool) -> None:
    (pid,) = pool.pids()
    os.kill(pid, signal.SIGSTOP)  # so that the image is surely in its hands when it dies
    decoded = pool.submit(JPEG)
    time.sleep(0.5)
    os.kill(pid, signal.SIGSEGV)
    os.kill(pid, signal.SIGCONT)
    assert decoded.result(10).status == "decoder_crash"
    assert "SIGSEGV" in (decoded.result().message or "")
    assert pool.decode(JPEG).status == "success"
    assert pool.pids() != [pid]


@pytest.mark.fault(25)
def test_a_hang_ends_at_the_deadline_and_the_process_is_replaced(pool: DecoderPool) -> None:
    (pid,) = pool.pids()
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    assert pool.decode(JPEG).status == "decode_timeout"
    assert 1.9 < time.monotonic() - started < 10
    assert pool.decode(JPEG).status == "success"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.fault(25)
def test_a_hang_in_the_middle_of_a_large_body_ends_too(pool: DecoderPool) -> None:
    """More than a socket's buffer holds, so that the parent hangs in sending."""
    os.kill(pool.pids()[0], signal.SIGSTOP)
    assert pool.decode(bytes(8_000_000)).status == "decode_timeout"


def test_a_process_that_dies_between_two_images_costs_none(pool: DecoderPool) -> None:
    (pid,) = pool.pids()
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert pool.decode(JPEG).status == "success"


def test_spent_cpu_time_is_a_timeout(pool: DecoderPool) -> None:
    (pid,) = pool.pids()
    os.kill(pid, signal.SIGSTOP)
    decoded = pool.submit(JPEG)
    time.sleep(0.5)
    os.kill(pid, signal.SIGXCPU)
    os.kill(pid, signal.SIGCONT)
    assert decoded.result(10).status == "decode_timeout"


LIAR = """
import json, struct, sys, os
requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(0), "wb")
def give(words, image=b"", lengths=None):
    answers.write(struct.pack("!II", *(lengths or (len(words), len(image)))) + words + image)
    answers.flush()
give(b'{"missing": ""}')
while head := requests.read(8):
    body = requests.read(struct.unpack("!II", head)[1])
    exec(body)
"""


@pytest.mark.parametrize(
    "lie",
    [
        b"give(b'', lengths=(2**32 - 1, 0))",
        b"give(b'{}', lengths=(2, 2**32 - 1))",
        b"give(b'[]')",
        b"give(b'not json')",
        b"give(b'[' * 100000)",
        b"give(b'{}')",
        b"""give(b'{"status": "lost"}')""",
        b"""give(b'{"status": ["success"]}')""",
        b"""give(b'{"status": "success"}', b'no jpeg')""",
        b"""give(b'{"status": "success", "width": "wide"}', bytes.fromhex("ffd8ffffd9"))""",
        b"""give(b'{"status": "success", "width": -1}', bytes.fromhex("ffd8ffffd9"))""",
        b"""give(b'{"status": "success", "width": true}', bytes.fromhex("ffd8ffffd9"))""",
        b"""give(b'{"status": "success"}', bytes.fromhex("ffd8ffffd9"))""",
        b"""give(json.dumps({"status": "oom", "message": "\\ud800"}).encode())""",
        b"""give(json.dumps({"status": "decode_error", "exif": "\\udfff"}).encode())""",
        b"""give(json.dumps({"status": "success", "format": "\\ud800", "gray": "00" * 1024}).encode(),
                 bytes.fromhex("ffd8ffffd9"))""",
        b"""give(b'{"status": "success", "gray": "00"}', bytes.fromhex("ffd8ffffd9"))""",
        b"""give(json.dumps({"status": "success", "gray": "00" * 1024}).encode())""",
        b"raise SystemExit(3)",
    ],
)
def test_what_a_captured_decoder_says_is_not_believed(
    lie: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "liar.py").write_text(LIAR)
    monkeypatch.setattr(decoders, "PROGRAM", tmp_path / "liar.py")
    with closing(DecoderPool(options(), timeout_s=5.0, count=1)) as pool:
        decoded = pool.decode(lie)
    assert decoded.status == "decoder_crash"
    assert decoded.message
    assert not decoded.image


def test_a_captured_decoder_cannot_pass_on_what_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "liar.py").write_text(LIAR)
    monkeypatch.setattr(decoders, "PROGRAM", tmp_path / "liar.py")
    with closing(DecoderPool(options(passthrough=True), timeout_s=5.0, count=1)) as pool:
        decoded = pool.decode(b"""give(json.dumps({"status": "success", "gray": "00" * 1024}).encode())""")
    assert (decoded.status, decoded.image) == ("decoder_crash", b"")


def test_a_decoder_that_does_not_start_is_an_error_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module")
    monkeypatch.setattr(decoders, "PROGRAM", tmp_path / "broken.py")
    broken = closing(DecoderPool(options(), timeout_s=1.0, count=1))
    with broken as pool, pytest.raises(SluiceError, match="No module named 'no_such_module'") as error:
        pool.wait_ready()
    assert "\n" not in str(error.value)


def test_secrets_of_the_environment_do_not_reach_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with closing(DecoderPool(options(), timeout_s=1.0, count=1)) as pool:
        pool.wait_ready()
        environment = Path(f"/proc/{pool.pids()[0]}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"secret" not in environment


def test_many_threads_share_a_few_decoders() -> None:
    images = [encoded(picture(seed=seed)) for seed in range(40)]
    with closing(DecoderPool(options(side=64, quality=90), timeout_s=10.0, count=2)) as pool:
        with ThreadPoolExecutor(8) as threads:
            first = [one.stored_sha256 for one in threads.map(pool.decode, images)]
        second = [one.result().stored_sha256 for one in map(pool.submit, images)]
    assert first == second
    assert len(set(first)) == 40


@pytest.mark.fault(37)
def test_an_image_that_needs_more_memory_than_there_is_ends_as_oom_and_the_next_one_is_decoded() -> None:
    """400 megapixels with alpha, let through by a limit that is too high for a decoder's 1 GiB."""
    sky = png(20_000, 20_000, mode=6)
    wanted = options(resize="no", max_pixels=500_000_000)
    with closing(DecoderPool(wanted, timeout_s=60.0, count=1)) as pool:
        pool.wait_ready()
        (pid,) = pool.pids()
        decoded = pool.decode(sky)
        assert (decoded.status, decoded.facts) == ("oom", {"format": "PNG"})
        assert 0.7 * MEMORY_BYTES < peak_bytes(pid) <= MEMORY_BYTES  # it came close, and the limit held
        assert pool.decode(JPEG).status == "success"
        assert pool.pids() == [pid]


def peak_bytes(pid: int) -> int:
    """The most address space that a process has had."""
    return 1024 * int(re.findall(r"VmPeak:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0])
