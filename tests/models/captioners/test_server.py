"""A server that speaks OpenAI's protocol and looks at the image: what it is asked, and what its faults come to."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from models.captioners.decoding import Decoding, Written
from models.captioners.server import Server, ServerError, TooLongError
from pipeline.dag import Dag
from pipeline.errors import SluiceError
from pipeline.stage import Device
from stages.conversations import ConversationsByServer
from stages.recaption import RecaptionByServer
from tests.stages.fake_batch import FakeBatch

BROKEN = ("chunk", "short", "failure", "reset")
"""Ways in which an answer ends before its end."""
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}


@dataclass
class Asked:
    """What the server was asked, and how it is to fail first."""

    faults: list[int | str | bytes] = field(default_factory=list)
    """Statuses, answers, ways to break off, and what is said with 400."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    address: str = ""
    at_once: int = 0
    most_at_once: int = 0
    slow_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    state = Asked()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.bodies.append(body)
                state.keys.append(self.headers.get("Authorization"))
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
                fault = state.faults.pop(0) if state.faults else None
            time.sleep(state.slow_s)
            with state.lock:
                state.at_once -= 1
            if self.path != "/v1/chat/completions":
                self._say(404, b"no such path")
            elif fault is None:
                said = {"choices": [{"message": {"role": "assistant", "content": answer(body)}}]}
                self._say(200, json.dumps(said).encode())
            elif fault in BROKEN:
                self._break_off(fault)
            elif isinstance(fault, bytes):
                self._say(400, fault)
            elif isinstance(fault, int):
                self._say(fault, b'{"error": {"message": "not now"}}', {"Retry-After": "0"})
            else:
                self._say(200, fault.encode())

        def _say(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _break_off(self, how: int | str | bytes) -> None:
            """In the middle of a chunk, short of the length it told, in what a failure says, or by a reset."""
            if how == "reset":
                linger = struct.pack("ii", 1, 0)  # close sends RST
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            else:
                self.protocol_version = "HTTP/1.1"
                self.send_response(503 if how == "failure" else 200)
                name, value = ("Content-Length", "90") if how == "short" else ("Transfer-Encoding", "chunked")
                self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b'{"cho' if how == "short" else b'40\r\n{"cho')
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_WR) if how != "reset" else self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.address = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield state
        server.shutdown()
        thread.join()


def answer(body: dict[str, Any]) -> str:
    """The colour that the image mostly has."""
    (message,) = body["messages"]
    url = next(part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url")
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).reshape(-1, 3).mean(0)
    colour = min(COLOURS, key=lambda name: float(np.abs(pixels - COLOURS[name]).sum()))
    return f"  a {colour}\n picture, {body['seed'] % 2}"


def picture(colour: str, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    return np.full((*size, 3), COLOURS[colour], np.uint8)


def server(asked: Asked, **options: Any) -> Server:
    return Server(asked.address, "a-model", wait_s=0.01, **options)


def colours(found: list[list[Written]]) -> list[list[str]]:
    return [[one.text.split(",")[0] for one in captions] for captions in found]


def test_every_image_is_described_from_its_pixels(asked: Asked) -> None:
    names = ["red", "blue", "green", "red"]
    found = server(asked).write([picture(name) for name in names], list("abcd"), Decoding(candidates=2), "What is it?")
    assert colours(found) == [[f"a {name} picture"] * 2 for name in names]
    assert len(asked.bodies) == 8
    for body in asked.bodies:
        assert (body["model"], body["max_tokens"], body["top_p"]) == ("a-model", 30, 0.9)
        assert body["messages"][0]["content"][0] == {"type": "text", "text": "What is it?"}
    assert len({body["seed"] for body in asked.bodies}) == 8


def test_the_same_uid_asks_with_the_same_seed(asked: Asked) -> None:
    ask = server(asked)
    ask.write([picture("red")], ["a"], Decoding(seed=1), "?")
    server(asked).write([picture("blue"), picture("red")], ["b", "a"], Decoding(seed=1), "?")
    first, *others = (body["seed"] for body in asked.bodies)
    assert first in others
    ask.write([picture("red")], ["a"], Decoding(seed=1), "?")
    assert len(asked.bodies) == 3  # it has the answer


def test_what_passes_is_tried_again_and_what_does_not_is_told(asked: Asked) -> None:
    asked.faults = [503, 429, "{no json", '{"choices": []}']
    found = server(asked, tries=5).write([picture("green")], ["a"], Decoding(), "?")
    assert colours(found) == [["a green picture"]]
    assert len(asked.bodies) == 5
    asked.faults = [503] * 3
    with pytest.raises(ServerError, match=r"answers 503 .*not now.*3 times"):
        server(asked, tries=3).write([picture("red")], ["a"], Decoding(), "?")
    asked.faults = [401]
    with pytest.raises(ServerError, match=r"answers 401 .*\$OPENAI_API_KEY"):
        server(asked).write([picture("red")], ["a"], Decoding(), "?")
    assert len(asked.bodies) == 9


@pytest.mark.parametrize("how", BROKEN)
def test_an_answer_that_breaks_off_is_asked_for_again(asked: Asked, how: str) -> None:
    asked.faults = [how, how]
    found = server(asked, tries=3).write([picture("green")], ["a"], Decoding(), "?")
    assert colours(found) == [["a green picture"]]
    assert len(asked.bodies) == 3
    asked.faults = [how]
    with pytest.raises(ServerError, match=r"127\.0\.0\.1.*, 1 times; is it running"):
        server(asked, tries=1).write([picture("red")], ["a"], Decoding(), "?")


def test_a_server_that_is_not_there_or_too_slow_is_told_in_a_line(asked: Asked) -> None:
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9/v1.*is it running"):
        Server("http://127.0.0.1:9/v1", "m", tries=2, wait_s=0.01).write([picture("red")], ["a"], Decoding(), "?")
    asked.slow_s = 1.0
    with pytest.raises(ServerError, match="timed out, 1 times"):
        server(asked, tries=1, timeout_s=0.1).write([picture("red")], ["a"], Decoding(), "?")


def test_no_more_questions_are_under_way_than_allowed(asked: Asked) -> None:
    asked.slow_s = 0.02
    images = [picture("red", (10 + n, 10)) for n in range(12)]
    server(asked, concurrency=3).write(images, [str(n) for n in range(12)], Decoding(), "?")
    assert 1 < asked.most_at_once <= 3


def test_the_key_comes_from_the_environment_and_goes_nowhere_in_the_clear(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    server(asked).write([picture("red")], ["a"], Decoding(), "?")
    monkeypatch.setenv("MY_KEY", "secret")
    server(asked, key_variable="MY_KEY").write([picture("red")], ["b"], Decoding(), "?")
    assert asked.keys == [None, "Bearer secret"]
    with pytest.raises(ValueError, match="in the clear"):
        Server("http://models.example.org/v1", "m", key_variable="MY_KEY")
    with pytest.raises(ValueError, match="without user"):
        Server("https://me:word@models.example.org/v1", "m")
    assert "secret" not in repr(server(asked, key_variable="MY_KEY"))


def test_the_stage_writes_what_the_server_says_and_null_where_there_is_no_image(asked: Asked) -> None:
    stage = RecaptionByServer(server=asked.address, model="a-model", side=16, candidates=2)
    batch = FakeBatch(pa.table({"uid": ["a", "b"]}), [picture("blue", (64, 32)), None])
    found = stage.open(Device())(batch).to_pylist()
    assert [text.split(",")[0] for text in found[0]["written"]] == ["a blue picture"] * 2
    assert (found[0]["written_source"], found[0]["written_checkpoint"]) == ("a-model", None)
    assert set(found[1].values()) == {None}


STAGES = (RecaptionByServer, ConversationsByServer)


@pytest.mark.parametrize("kind", STAGES)
def test_an_address_that_cannot_be_asked_is_found_by_the_check(kind: Any) -> None:
    with pytest.raises(SluiceError, match="expected http or https"):
        kind(server="ftp://x", model="m").check([])
    kind(server="http://127.0.0.1:9/v1", model="m").check([])


@pytest.mark.parametrize("kind", STAGES)
def test_a_key_set_later_does_not_keep_a_finished_runs_dag_from_being_read(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    step = {f"{kind.__module__}.{kind.__name__}": {"server": "http://10.0.0.2/v1", "model": "m"}}
    urls = {"steps": [{"stages.ingest.UrlTables": {"files": "urls.csv", "url": "url"}}]}
    dag = Dag.parse(json.dumps({"dag": "a", "nodes": {"urls": urls, "asked": {"from": "urls", "steps": [step]}}}))
    (stage,) = dag.nodes["asked"].stages
    with pytest.raises(SluiceError, match=r"\$OPENAI_API_KEY would be sent in the clear"):
        stage.check([])


@pytest.mark.parametrize("kind", STAGES)
def test_the_stage_looks_at_the_key_that_it_will_send_and_at_no_other(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = "http://models.example.org/v1"
    monkeypatch.setenv("OPENAI_API_KEY", "another server's")
    monkeypatch.delenv("MY_KEY", raising=False)
    stage = kind(server=far, model="m", key_variable="MY_KEY")
    stage.check([])  # has no key that could be read on its way
    monkeypatch.setenv("MY_KEY", "secret")
    for ask, given in ((stage.open, Device()), (stage.check, [])):
        with pytest.raises(SluiceError, match=r"\$MY_KEY would be sent in the clear"):
            ask(given)


VLLM = (
    "'max_tokens' or 'max_completion_tokens' is too large: {}. This model's maximum context length is 4096 tokens and "
    "your request has {} input tokens ({} > 4096 - {})."
)


@pytest.mark.parametrize("said", [VLLM.format(5000, 20, 5000, 20), "max_tokens: more than the context window has"])
def test_an_answer_that_no_model_has_places_for_is_none_of_the_text_s_faults(said: str, asked: Asked) -> None:
    asked.faults = [said.encode()]
    with pytest.raises(ServerError, match=r"answers 400 .*; most_tokens = 5000: lower most_tokens$") as raised:
        server(asked).answer(["short"], ["a"], Decoding(most_tokens=5000))
    assert not isinstance(raised.value, TooLongError)


def test_a_text_that_leaves_no_places_for_a_short_answer_is_too_long(asked: Asked) -> None:
    asked.faults = [VLLM.format(128, 4000, 128, 4000).encode()]
    assert server(asked).answer(["long"], ["a"], Decoding(most_tokens=128)) == [None]
