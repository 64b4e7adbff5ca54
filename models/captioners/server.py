"""Captions by a server that speaks OpenAI's protocol (vLLM, SGLang, llama.cpp, Ollama, hosted ones): chat completions
with the image in the question.

https://platform.openai.com/docs/api-reference/chat

asked = Server("http://127.0.0.1:8000/v1", "llava-1.5-7b")
asked.write([image_hwc], ["0f3c…"], Decoding(candidates=2), "Describe the image in one sentence.")
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from models.captioners.decoding import Decoding, Written
from models.towers.preprocess import Pixels

LONGEST_ANSWER = 1_000_000
"""Bytes of an answer that are read."""
LONGEST_WAIT_S = 60.0
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that another try may change."""
TOO_LONG = re.compile(r"context[ _](?:length|size|window)|prompt is too long", re.IGNORECASE)
"""In what servers say with 400 or 413 of a question that the model has no places for."""
ASKED_TOO_MUCH = re.compile(r"max_(?:completion_|new_)?tokens|in (?:the|your) completion", re.IGNORECASE)
"""In what they say then where the places for the answer are counted, too."""
PLACES = re.compile(r"context (?:length|size|window)\D{0,20}?(\d+)", re.IGNORECASE)
REMEMBERED = 10_000
"""Answers that are kept: where one image of a batch fails, the engine tries the others again."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServerError(RuntimeError):
    """No caption was to be had: one line that names the server and what it said."""


class TooLongError(ServerError):
    """What was asked is longer than the model reads."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Refuses all of them: the key is for one address."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass
class Server:
    """Asks one question for every caption, several at a time."""

    address: str
    """Up to its `/v1`; `chat/completions` is asked below it."""
    model: str
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, if the server wants one."""
    timeout_s: float = 60.0
    """Seconds for one try."""
    tries: int = 4
    concurrency: int = 8
    wait_s: float = 0.5
    """Before the second try; doubled for every further one, unless the server says how long."""
    _answers: dict[bytes, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Raises `ValueError` for an address that cannot be asked, or that the key must not be sent to."""
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(
                f"server = {parts.hostname or self.address!r}: expected http or https, a host and a path without user "
                "or query, such as http://127.0.0.1:8000/v1"
            )
        if parts.scheme == "http" and parts.hostname not in LOOPBACK and os.environ.get(self.key_variable):
            raise ValueError(
                f"server = {self.address!r}: ${self.key_variable} would be sent in the clear; use https, or name "
                "another key_variable"
            )
        self._opener = urllib.request.build_opener(_Redirects)

    def write(
        self, images: Sequence[Pixels], uids: Sequence[str], decoding: Decoding, prompt: str
    ) -> list[list[Written]]:
        """`decoding.candidates` captions of every image, uint8 (height, width, 3), RGB; a server gives no scores.

        Each is asked for with a seed of its own, which follows from `decoding.seed`, the uid and its number: a server
        may heed it. Raises `ServerError` for the first that was not to be had.
        """
        count = decoding.candidates
        with ThreadPoolExecutor(self.concurrency) as threads:
            pictures = list(threads.map(_data_url, images))
            asked = [
                threads.submit(self._ask, picture, decoding, prompt, _seed(decoding.seed, uid, one))
                for picture, uid in zip(pictures, uids, strict=True)
                for one in range(count)
            ]
            try:
                written = [Written(answer.result(), None) for answer in asked]
            finally:
                for answer in asked:
                    answer.cancel()
        return [written[start : start + count] for start in range(0, len(written), count)]

    def answer(self, texts: Sequence[str], keys: Sequence[str], decoding: Decoding) -> list[str | None]:
        """What the model says to each of some texts, without an image; the draws follow from the keys. None where the
        server says that a text is longer than the model reads.

        Raises `ServerError` for the first to which no answer was to be had.
        """
        with ThreadPoolExecutor(self.concurrency) as threads:
            asked = [
                threads.submit(self._ask, None, decoding, text, _seed(decoding.seed, key, 0))
                for text, key in zip(texts, keys, strict=True)
            ]
            try:
                return [_unless_too_long(one) for one in asked]
            finally:
                for one in asked:
                    one.cancel()

    def _ask(self, picture: str | None, decoding: Decoding, prompt: str, seed: int) -> str:
        content: Any = prompt
        if picture is not None:
            content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": picture}}]
        question = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": decoding.most_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": seed,
        }
        body = json.dumps(question).encode()
        known = blake2b(body, digest_size=16).digest()
        if known not in self._answers:
            found = self._tried(body, decoding.most_tokens)
            if len(self._answers) >= REMEMBERED:
                self._answers.clear()
            self._answers[known] = found
        return self._answers[known]

    def _tried(self, body: bytes, most_tokens: int) -> str:
        wait = self.wait_s
        for left in reversed(range(self.tries)):
            try:
                return self._posted(body)
            except urllib.error.HTTPError as error:
                said, after = _shown(error), error.headers.get("Retry-After", "")
                trouble = f"{self.address} answers {error.code}{f' ({said})' if said else ''}"
                if error.code in (400, 413) and TOO_LONG.search(said):
                    if _asks_too_much(said, most_tokens):
                        raise ServerError(f"{trouble}; most_tokens = {most_tokens}: lower most_tokens") from None
                    raise TooLongError(trouble) from None
                if error.code not in AGAIN:
                    raise ServerError(f"{trouble}; look at server, model and ${self.key_variable}") from None
                if after.isdecimal():
                    wait = float(after)
            # URLError, timeouts and resets; answers cut short, which `http.client` calls no OSError; JSON that is none
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = getattr(error, "reason", None) or error
                trouble = f"{self.address}: {str(reason).splitlines()[0] if str(reason) else type(error).__name__}"
            if left:
                time.sleep(min(wait, LONGEST_WAIT_S))
                wait *= 2
        raise ServerError(f"{trouble}, {self.tries} times; is it running, and is timeout_s enough?")

    def _posted(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self.address.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, body, headers)  # noqa: S310 - http or https: `__post_init__` has looked
        with self._opener.open(request, timeout=self.timeout_s) as answer:
            said = json.loads(answer.read(LONGEST_ANSWER))
        try:
            text = said["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise ValueError("an answer without choices[0].message.content") from None
        return " ".join(str(text or "").split())


def _unless_too_long(asked: Future[str]) -> str | None:
    try:
        return asked.result()
    except TooLongError:
        return None


def _asks_too_much(said: str, most_tokens: int) -> bool:
    """Whether the answer is to blame where it and the question are too long together: it wants more than half of the
    places, or the server does not say how many there are."""
    places = PLACES.search(said)
    return bool(ASKED_TOO_MUCH.search(said)) and (places is None or 2 * most_tokens > int(places[1]))


def _shown(error: urllib.error.HTTPError) -> str:
    """What a server says of a failure, on a short line."""
    try:
        said = error.read(2000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    return " ".join(said.split())[:200]


def _seed(seed: int, uid: str, candidate: int) -> int:
    """31 bits: what all servers take."""
    data = f"{seed} {uid} {candidate}".encode()
    return int.from_bytes(blake2b(data, digest_size=4).digest(), "little") >> 1


def _data_url(image: Pixels) -> str:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()
