"""A few decoder processes: fed through a socket, timed, killed and replaced.

Each is `decode.py` run by path, so that it imports neither this package nor what this package needs. It inherits no
secrets: its environment is what Python needs to start. What it answers is checked, for it may be in a stranger's hands.
"""

import functools
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.errors import SluiceError
from stages.download.addresses import redact_all
from stages.download.decode import FRAME, Options
from stages.download.perceptual_hash import perceptual_hash
from stages.download.statuses import IN_DECODING, SUCCESS
from stages.kit.endings import ending_of

log = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("decode.py")
INHERITED = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "LANG", "LC_ALL", "TMPDIR")
START_S = 60.0
"""Generous: on a machine that starts 64 workers at once, Python and Pillow take seconds to load."""
MAX_WORDS = 1 << 18
FACTS: dict[str, type] = {
    "format": str,
    "frames": int,
    "width": int,
    "height": int,
    "original_width": int,
    "original_height": int,
    "exif": str,
}
"""What a decoder may say of an image, by column; any of them may be missing."""
KEPT = ("jpg", "png", "webp")
"""The endings of what may be stored as it was fetched."""


@dataclass(frozen=True)
class Decoded:
    """How an image ended: `image`, its `ending` and `stored_sha256` when `status` is success, else `message`."""

    status: str
    sha256: str
    """Of the bytes as they were fetched."""
    message: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    image: bytes = b""
    """What is to be stored: the decoder's JPEG, or the bytes as they were fetched."""
    ending: str = "jpg"
    stored_sha256: str | None = None


class Decoder:
    """One process. Not for two threads at once; `kill` may come from any."""

    def __init__(self, options: Options, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._max_jpeg = 4 * options.max_pixels + 65_536
        self._ready = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `kill`
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - our own program, no shell
                [sys.executable, "-P", str(PROGRAM), json.dumps(vars(options))],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env={name: os.environ[name] for name in INHERITED if name in os.environ},
            )

    def wait_ready(self) -> None:
        """Wait until it has confined itself. Raises `SluiceError` with its last words when it does not start."""
        if self._ready:
            return
        try:
            words, _ = self._receive(time.monotonic() + START_S)
        except (OSError, EOFError, ValueError) as error:
            said = self._last_words() or f"{type(error).__name__} {error}"
            raise SluiceError(
                f"the image decoder did not start ({said}); does `{sys.executable} {PROGRAM}` find Pillow?"
            ) from None
        if words.get("missing"):
            _warn(str(words["missing"]))
        self._ready = True

    def exchange(self, data: bytes) -> tuple[dict[str, Any], bytes]:
        """What the process says of an image, and the JPEG that it made.

        Raises `TimeoutError` past the deadline, `EOFError` when the process dies and `ValueError` when it answers
        nonsense; after each of them it must be replaced.
        """
        deadline = time.monotonic() + self._timeout_s
        self._socket.settimeout(self._timeout_s)
        try:
            self._socket.sendall(FRAME.pack(0, len(data)))
            self._socket.sendall(data)
        except ConnectionError:
            raise EOFError("the decoder died") from None
        return self._receive(deadline)

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> str:
        """End it, whatever it does (SIGKILL ends a stopped process too); how it ended, in words."""
        self.process.kill()
        code = self.process.wait()
        words = self._last_words() if code > 0 else ""
        self._socket.close()
        self._errors.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code} {words}".strip()

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytes]:
        words_bytes, jpeg_bytes = FRAME.unpack(self._take(FRAME.size, deadline))
        if words_bytes > MAX_WORDS or jpeg_bytes > self._max_jpeg:
            raise ValueError(f"an answer of {words_bytes} + {jpeg_bytes} bytes")
        try:
            words = json.loads(self._take(words_bytes, deadline))
        except RecursionError:
            raise ValueError("an answer nested too deep") from None
        if not isinstance(words, dict):
            raise ValueError("an answer that is no object")
        return words, self._take(jpeg_bytes, deadline)

    def _take(self, size: int, deadline: float) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._socket.settimeout(left_s)
            try:
                count = self._socket.recv_into(view)
            except ConnectionError:
                count = 0
            if not count:
                raise EOFError("the decoder died")
            view = view[count:]
        return bytes(data)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return redact_all(lines[-1]) if lines else ""


class DecoderPool:
    """`count` decoders and a thread for each. A decoder that died, hung or answered nonsense is replaced."""

    def __init__(self, options: Options, timeout_s: float, count: int) -> None:
        self._options = options
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._closed = False
        self._decoders = [Decoder(options, timeout_s) for _ in range(count)]
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(count):
            self._idle.put(place)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="sluice-decode")

    def wait_ready(self) -> None:
        """Wait until all have started. Raises `SluiceError` when one does not."""
        for decoder in self._decoders:
            decoder.wait_ready()

    def pids(self) -> list[int]:
        return [decoder.process.pid for decoder in self._decoders]

    def submit(self, data: bytes) -> "Future[Decoded]":
        """Decode in a thread of the pool; the deadline starts when a decoder is free."""
        return self._threads.submit(self.decode, data)

    def decode(self, data: bytes) -> Decoded:
        """One image through a free decoder. Raises `SluiceError` only when a decoder cannot be started."""
        place = self._idle.get()
        try:
            return self._decode(place, data)
        finally:
            self._idle.put(place)

    def close(self) -> None:
        """Kill the decoders, whatever they do, and end the threads."""
        with self._lock:
            self._closed = True
            for decoder in self._decoders:
                decoder.process.kill()
        self._threads.shutdown(cancel_futures=True)
        for decoder in self._decoders:
            decoder.kill()

    def _decode(self, place: int, data: bytes) -> Decoded:
        if not self._decoders[place].alive():  # it died between two images: neither of them is to blame
            self._replace(place)
        decoder = self._decoders[place]
        decoder.wait_ready()
        digest = sha256(data).hexdigest()
        try:
            return _checked(*decoder.exchange(data), data, digest, self._options.passthrough)
        except TimeoutError:
            self._replace(place)
            return Decoded("decode_timeout", digest, f"not decoded within decode_timeout_s = {self._timeout_s:g}")
        except EOFError:
            ended = self._replace(place)
            status = "decode_timeout" if ended == "SIGXCPU" else "decoder_crash"
            return Decoded(status, digest, f"the decoder ended with {ended}")
        except ValueError as error:
            self._replace(place)
            return Decoded("decoder_crash", digest, f"the decoder gave {redact_all(str(error))}")

    def _replace(self, place: int) -> str:
        with self._lock:
            if self._closed:
                return "closing"
            ended = self._decoders[place].kill()
            log.warning("image decoder %d ended with %s and is replaced", self._decoders[place].process.pid, ended)
            self._decoders[place] = Decoder(self._options, self._timeout_s)
        return ended


def _checked(words: dict[str, Any], jpeg: bytes, data: bytes, digest: str, passthrough: bool) -> Decoded:
    status = words.get("status")
    facts = {name: words[name] for name in FACTS if words.get(name) is not None}
    if any(type(value) is not FACTS[name] for name, value in facts.items()):
        raise ValueError("facts of the wrong type")
    if any(isinstance(value, int) and not 0 <= value < 1 << 31 for value in facts.values()):
        raise ValueError("facts out of range")
    message = str(words.get("message"))
    for text in (message, *(value for value in facts.values() if isinstance(value, str))):
        text.encode()  # half a surrogate pair, which JSON can say and a table cannot hold, is a `ValueError`
    if status == SUCCESS:
        facts["phash"] = perceptual_hash(bytes.fromhex(str(words.get("gray"))))
        if jpeg.startswith(b"\xff\xd8\xff") and jpeg.endswith(b"\xff\xd9"):
            return Decoded(SUCCESS, digest, None, facts, jpeg, "jpg", sha256(jpeg).hexdigest())
        ending = ending_of(data[:16])
        if passthrough and not jpeg and ending in KEPT:
            return Decoded(SUCCESS, digest, None, facts, data, ending, digest)
    if isinstance(status, str) and status in IN_DECODING:
        return Decoded(status, digest, redact_all(message), facts)
    raise ValueError(f"status {str(status)[:40]!r}")


@functools.cache
def _warn(missing: str) -> None:
    """Say once per process what the decoders could not give up."""
    log.warning("%s", missing)
