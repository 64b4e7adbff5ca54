"""SQL from anybody over a catalogue file, in a process of its own that is killed when it takes too much.

    with open_catalogue("demo.duckdb") as console:
        console.ask("SELECT status, count(*) FROM samples GROUP BY ALL")

The file is opened read-only; DuckDB sees no other file and no network, loads no extension, spills nothing to disk, and
its settings are locked. That does not bound what a statement takes: DuckDB 2.0 folds `repeat('x', 2000000000)` in 4 GB
and 50 s, past its memory limit and deaf to `interrupt()`. So the process has a limit on its address space, may write no
file, and is killed when the time is over.
"""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import duckdb
import pyarrow as pa

from pipeline.catalogue_file import FACTS
from pipeline.errors import SluiceError

MEMORY_MB = 1024
"""What DuckDB may hold; the process may map so much beside it (interpreter, libraries, the answer):"""
BESIDE_MB = 3072
TIMEOUT_S = 30.0
ROWS = 10_000
START_S = 60.0
"""For the interpreter and its libraries, on a loaded machine."""
ANSWER, REFUSAL = b"A", b"R"
HEAD = struct.Struct(">cQ")
"""What comes before an answer: its kind and its length (bytes)."""
LENGTH = struct.Struct(">Q")


def open_catalogue(path: str, memory_mb: int = MEMORY_MB, timeout_s: float = TIMEOUT_S, rows: int = ROWS) -> Console:
    """The file, for SQL from anybody. An answer has at most `rows` rows and takes at most `timeout_s` seconds.

    Raises `SluiceError` for a file that is not there, or is no catalogue.
    """
    if not Path(path).is_file():
        raise SluiceError(f"{path} is no file; `sluice catalog ROOT --out FILE.duckdb` writes one")
    return Console(path, memory_mb, timeout_s, rows)


class Console:
    """Asks a catalogue, one query at a time."""

    def __init__(self, path: str, memory_mb: int, timeout_s: float, rows: int) -> None:
        self._arguments = [os.path.abspath(path), str(memory_mb), str(rows)]
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def ask(self, query: str) -> pa.Table:
        """The first rows of the answer to one statement.

        Raises `SluiceError` with what DuckDB says, and for a query that takes too long or too much.
        """
        if self._process is None:
            self._start()
        data = query.encode(errors="replace")
        kind, answer = self._exchange(LENGTH.pack(len(data)) + data, self._timeout_s)
        if kind == REFUSAL:
            raise SluiceError(answer.decode())
        with pa.ipc.open_stream(answer) as stream:
            return stream.read_all()

    def _start(self) -> None:
        command = [sys.executable, "-m", "pipeline.console", *self._arguments]
        self._process = subprocess.Popen(  # noqa: S603 - our own program, no shell
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
        )
        kind, said = self._exchange(b"", START_S)
        if kind == REFUSAL:
            self.close()
            raise SluiceError(said.decode())

    def _exchange(self, data: bytes, timeout_s: float) -> tuple[bytes, bytes]:
        """Send, and wait for the answer; a process that gives none is no more."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout_s, end)
        timer.start()
        try:
            process.stdin.write(data)
            process.stdin.flush()
            head = process.stdout.read(HEAD.size)
            kind, length = HEAD.unpack(head) if len(head) == HEAD.size else (b"", 0)
            answer = process.stdout.read(length)
        except BrokenPipeError:
            kind, answer = b"", b""
        finally:
            timer.cancel()
        if kind and len(answer) == length:
            return kind, answer
        self.close()
        if late.is_set():
            raise SluiceError(f"the query took longer than {timeout_s:g} s; ask for less")
        raise SluiceError("the query took more memory than it may; ask for less")


def _environment() -> dict[str, str]:
    """No secrets: what the process does not know it cannot tell."""
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PATH": os.environ.get("PATH", "")}


# -- in the process ----------------------------------------------------------------------------------------------------


def main() -> None:
    """Answer queries from standard input until it is closed."""
    path, memory_mb, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    try:
        connection = _opened(path, memory_mb)
    except duckdb.Error as error:
        _send(answers, REFUSAL, f"{path} is no catalogue of sluice's: {_first_line(error)}".encode())
        return
    _confine(memory_mb)
    _send(answers, ANSWER, b"")
    while head := sys.stdin.buffer.read(LENGTH.size):
        query = sys.stdin.buffer.read(LENGTH.unpack(head)[0]).decode()
        try:
            _send(answers, ANSWER, _answer(connection, query, rows))
        except (duckdb.Error, pa.ArrowException, MemoryError, SluiceError) as error:
            _send(answers, REFUSAL, _first_line(error).encode())


def _opened(path: str, memory_mb: int) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(
        path,
        read_only=True,
        config={
            "enable_external_access": "false",
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
            "allow_community_extensions": "false",
            "python_enable_replacements": "false",
            "memory_limit": f"{memory_mb}MB",
            "temp_directory": "",
            "threads": "2",
        },
    )
    connection.execute("SET enable_progress_bar = false")
    connection.execute("SET lock_configuration = true")
    connection.execute(f"SELECT run FROM {FACTS}").fetchall()  # noqa: S608 - ours
    return connection


def _confine(memory_mb: int) -> None:
    """From here on: so much memory, no file, no core."""
    limits = {
        resource.RLIMIT_AS: (memory_mb + BESIDE_MB) << 20,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for what, limit in limits.items():
        resource.setrlimit(what, (limit, limit))


def _answer(connection: duckdb.DuckDBPyConnection, query: str, rows: int) -> bytes:
    if len(duckdb.extract_statements(query)) != 1:
        raise SluiceError("one statement at a time; send the others on their own")
    relation = connection.sql(query)
    table = pa.table({}) if relation is None else relation.limit(rows).to_arrow_table()
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def _send(answers: BinaryIO, kind: bytes, data: bytes) -> None:
    answers.write(HEAD.pack(kind, len(data)) + data)
    answers.flush()


def _first_line(error: Exception) -> str:
    return " ".join(str(error).partition("\n\n")[0].split()) or type(error).__name__


if __name__ == "__main__":
    main()
