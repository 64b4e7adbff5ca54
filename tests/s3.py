"""An S3 server on loopback for tests: moto behind faults that a test can order.

with serving() as s3:                      # a process of its own, so that Ray workers and commands reach it as well
    with s3.environment():
        Store(s3.bucket("laws"))           # plain s3://laws works, here and in child processes
    s3.order(Fault("slow_down", method="PUT", times=3))

moto looks whether a key exists and writes it in two steps, and its server is threaded: two exclusive puts can both
succeed (moto 5.2.5: in 1 of 200 races of 16). S3 does not do that, so here writes are served one at a time.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pytest

Kind = Literal["slow_down", "conflict", "unavailable", "lost_reply", "deaf", "terse"]
"""What goes wrong.

`slow_down`, `conflict`, `unavailable`: 503 SlowDown, 409 ConditionalRequestConflict, 500 InternalError, nothing done.
`lost_reply`: done, but answered with 500. `deaf`: If-None-Match is ignored, as by servers that do not know it.
`terse`: a 412 without the `Condition` that AWS adds, as from MinIO.
"""
ERRORS = {
    "slow_down": ("503 Slow Down", "SlowDown"),
    "conflict": ("409 Conflict", "ConditionalRequestConflict"),
    "unavailable": ("500 Internal Server Error", "InternalError"),
    "lost_reply": ("500 Internal Server Error", "InternalError"),
}
CONTROL = "/-/"


@dataclass(frozen=True)
class Fault:
    """The next `times` requests of `method` whose path contains `where` meet `kind`."""

    kind: Kind
    method: str = "PUT"
    where: str = ""
    times: int = 1_000_000


@dataclass(frozen=True)
class S3:
    """A running server."""

    url: str

    def bucket(self, name: str) -> str:
        """A new bucket's address."""
        self._ask("PUT", f"/{name}")
        return f"s3://{name}"

    def order(self, *faults: Fault) -> None:
        """Let these faults happen, and no others."""
        self._ask("PUT", f"{CONTROL}faults", json.dumps([asdict(fault) for fault in faults]).encode())

    def met(self) -> dict[str, int]:
        """How many requests met a fault since `order`, by kind: the proof that it landed."""
        found: dict[str, int] = json.loads(self._ask("GET", f"{CONTROL}met"))
        return found

    def variables(self) -> dict[str, str]:
        """What a process needs so that `s3://` means this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @contextmanager
    def environment(self) -> Iterator[None]:
        """This process' `s3://` is this server."""
        from s3fs import S3FileSystem

        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.variables().items():
                patch.setenv(name, value)
            S3FileSystem.clear_instance_cache()
            try:
                yield
            finally:
                S3FileSystem.clear_instance_cache()

    def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        request = urllib.request.Request(self.url + path, data=body, method=method)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return bytes(reply.read())


@contextmanager
def serving() -> Iterator[S3]:
    """A server in a process of its own, gone afterwards."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.s3"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline().decode().strip()
        assert line, "the S3 server did not start; `python -m tests.s3` says why"
        yield S3(line)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


# -- the server's side -------------------------------------------------------------------------------------------------

Environ = dict[str, Any]
Start = Callable[..., Any]


class Faulty:
    """WSGI: orders of tests, then faults, then moto."""

    def __init__(self, moto: Callable[[Environ, Start], Iterable[bytes]]) -> None:
        self._moto = moto
        self._writing = threading.Lock()
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._left: list[int] = []
        self._met: Counter[str] = Counter()

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        path = environ["PATH_INFO"]
        if path.startswith(CONTROL):
            return self._control(path.removeprefix(CONTROL), body, start)
        kind = self._meets(environ["REQUEST_METHOD"], path)
        if kind in ("slow_down", "conflict", "unavailable"):
            return _refuse(kind, start)
        if kind == "deaf":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        status, headers, answer = self._ask_moto(environ)
        if kind == "lost_reply":
            return _refuse(kind, start)
        if kind == "terse":
            answer = answer.replace(b"<Condition>If-None-Match</Condition>", b"")
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start(status, headers)
        return [answer]

    def _ask_moto(self, environ: Environ) -> tuple[str, list[tuple[str, str]], bytes]:
        said: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            said[:] = [status, headers]

        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            answer = b"".join(self._moto(environ, start))
        else:
            with self._writing:
                answer = b"".join(self._moto(environ, start))
        return said[0], said[1], answer

    def _meets(self, method: str, path: str) -> str:
        with self._lock:
            for place, fault in enumerate(self._faults):
                if self._left[place] and fault.method == method and fault.where in path:
                    self._left[place] -= 1
                    self._met[fault.kind] += 1
                    return fault.kind
        return ""

    def _control(self, what: str, body: bytes, start: Start) -> list[bytes]:
        with self._lock:
            if what == "faults":
                self._faults = [Fault(**fault) for fault in json.loads(body)]
                self._left = [fault.times for fault in self._faults]
                self._met.clear()
            answer = json.dumps(self._met).encode()
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        return [answer]


def _refuse(kind: str, start: Start) -> list[bytes]:
    status, code = ERRORS[kind]
    answer = f"<Error><Code>{code}</Code><Message>ordered by a test</Message></Error>".encode()
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(answer)))])
    return [answer]


def main() -> None:
    """Serve on a free port until the parent closes our standard input, or dies."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Handler(MotoRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            pass

    app = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
