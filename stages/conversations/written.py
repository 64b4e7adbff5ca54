"""Conversations that a language model writes, from captions and boxes alone (LLaVA, Liu et al. 2023, section 3).

    conversations:
      from: shards
      steps: [{stages.conversations.ConversationsByServer: {server: "http://127.0.0.1:8000/v1", model: qwen2.5-7b}}]

What it is asked stands in `prompts/llava.yaml`. What it answers is judged as rules' turns are; an answer from which no
question can be read is kept in the table as `empty`, captions that the model has no places for as `too_long`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import fsspec
import yaml
from pydantic import Field

from pipeline.errors import SluiceError
from pipeline.identity import resource_files
from pipeline.stage import Column, Device, Effort, Promise, ResourceMark, Weights
from stages.conversations.conversations import Sample, Writer, Writing, boxes_of, captions_of
from stages.conversations.turns import Kind, Turn
from stages.kit.encoders import DTYPES, Dtype, model_folder

if TYPE_CHECKING:
    from models.captioners.server import Server

SHIPPED = ResourceMark("file", shipped="stages.conversations.prompts")
Prompts = Annotated[str, SHIPPED]
"""A YAML of prompts by kind of turn: its path on any fsspec store, or the name of one that sluice ships."""
KINDS: tuple[Kind, ...] = ("question", "reasoning", "description")
LIST = re.compile(r"\[.*\]", re.DOTALL)
LINES = re.compile(
    r"(?:^|\s)Q(?:uestion)?\s*\d*[:.)]\s*(.+?)\s+A(?:nswer)?\s*\d*[:.)]\s*(.+?)(?=\sQ(?:uestion)?\s*\d*[:.)]|\Z)",
    re.DOTALL | re.IGNORECASE,
)
"""What models write that were asked for JSON and give none."""
Speak = Callable[[Sequence[str], Sequence[str]], Sequence[str | None]]
"""The answers to prompts, each under a key from which its draws follow; None where a prompt is too long to be read."""


class Speaking(Writing):
    """What models that write conversations have in common."""

    at_once: ClassVar[int] = 16

    kinds: tuple[Kind, ...] = KINDS
    """Which kinds of turns are asked for; the prompts have each."""
    prompts: Prompts = "llava"
    most_tokens: int = Field(default=512, ge=1)
    """Of what the model writes at once."""

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` for prompts that lack a kind, or a place for the captions."""
        self._prompts_by_kind()

    def _prompts_by_kind(self) -> dict[Kind, str]:
        path = (resource_files(SHIPPED, self.prompts, "prompts") or [""])[0]
        with fsspec.open(path, "rt", encoding="utf-8") as handle:
            try:
                said = yaml.safe_load(handle)
            except yaml.YAMLError as error:
                raise SluiceError(f"prompts: {path} is no YAML: {' '.join(str(error).split())}") from None
        for kind in self.kinds:
            text = said.get(kind) if isinstance(said, dict) else None
            if not isinstance(text, str) or "{captions}" not in text:
                raise SluiceError(
                    f"prompts: {path} has no {kind!r} with {{captions}} in it; write one, or leave it out"
                )
        return {kind: said[kind] for kind in self.kinds}

    def written(self, speak: Speak, source: str) -> Writer:
        """Turns by asking a model."""
        prompts = self._prompts_by_kind()

        def write(some: Sequence[Sample]) -> list[list[Turn]]:
            asked = [(row, kind) for row, _ in enumerate(some) for kind in self.kinds if captions_of(some[row][2])]
            texts = [filled(prompts[kind], some[row][2]) for row, kind in asked]
            answers = speak(texts, [f"{some[row][0]}/{kind}" for row, kind in asked])
            found: list[list[Turn]] = [[] for _ in some]
            for (row, kind), answer in zip(asked, answers, strict=True):
                if answer is None:
                    found[row].append(Turn(kind, "", "", None, source, "too_long"))
                else:
                    found[row] += [Turn(kind, question, told, None, source) for question, told in read_from(answer)]
            return found

        return write


class ConversationsByModel(Speaking):
    """By a causal language model out of a folder, another node or the hub, which takes the likeliest token always."""

    promise: ClassVar[Promise] = "numeric"

    model: Weights
    dtype: Dtype | None = None
    """By default float32 on CPUs and float16 on GPUs."""
    batch: Annotated[int, Effort] = Field(default=8, ge=1)
    """Prompts that the model sees at once."""

    def open(self, device: Device) -> Writer:
        from models.captioners.speaker import Speaker

        with model_folder(self.model) as folder:
            try:
                speaker = Speaker.load(folder, device.kind, self.dtype or DTYPES[device.kind])
            except ValueError as error:
                raise SluiceError(f"model: {error}") from None
        source = self.model if isinstance(self.model, str) else self.model.node
        return self.written(lambda texts, keys: speaker.answer(texts, self.most_tokens, self.batch), source)


class ConversationsByServer(Speaking):
    """By a server that speaks OpenAI's protocol. Captions and boxes are sent to it, images are not."""

    promise: ClassVar[Promise] = "observed"

    server: Annotated[str, Effort]
    """Its address up to `/v1`, such as `http://127.0.0.1:8000/v1`. The model is what counts, wherever it runs."""
    model: str
    """As the server calls it."""
    temperature: float = Field(default=0.7, gt=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    seed: int = 0
    """Other seeds, other draws, where the server heeds them."""
    key_variable: Annotated[str, Effort] = "OPENAI_API_KEY"
    """The environment variable that holds the server's key, on the machines that ask."""
    timeout_s: Annotated[float, Effort] = Field(default=120.0, gt=0)
    tries: Annotated[int, Effort] = Field(default=4, ge=1)
    concurrency: Annotated[int, Effort] = Field(default=8, ge=1)

    def check(self, inputs: Sequence[Column]) -> None:
        """Also for an address that cannot be asked, or that this machine's key must not be sent to."""
        super().check(inputs)
        self._server()

    def _server(self) -> Server:
        from models.captioners.server import Server

        try:
            return Server(self.server, self.model, self.key_variable, self.timeout_s, self.tries, self.concurrency)
        except ValueError as error:
            raise SluiceError(str(error)) from None

    def open(self, device: Device) -> Writer:
        from models.captioners.decoding import Decoding
        from models.captioners.server import ServerError

        server = self._server()  # the key may be on this machine, and not where the DAG was checked
        decoding = Decoding(
            top_p=self.top_p, temperature=self.temperature, most_tokens=self.most_tokens, seed=self.seed
        )

        def speak(texts: Sequence[str], keys: Sequence[str]) -> list[str | None]:
            try:
                return server.answer(texts, keys, decoding)
            except ServerError as error:
                raise SluiceError(str(error)) from None

        return self.written(speak, self.model)


def filled(prompt: str, said: Mapping[str, Any]) -> str:
    """A prompt with a sample's captions and boxes."""
    captions = "\n".join(f"- {' '.join(caption['text'].split())}" for caption in captions_of(said))
    boxes = [f"- {box['label']}: {', '.join(f'{edge:.2f}' for edge in box['box'])}" for box in boxes_of(said)]
    return prompt.replace("{captions}", captions).replace("{boxes}", "\n".join(boxes) or "none")


def read_from(answer: str) -> Iterator[tuple[str, str]]:
    """The questions and answers in what a model wrote: a JSON list, perhaps with words around it, or lines of `Q:` and
    `A:`. Where there is neither, all of it with no question."""
    listed = LIST.search(answer)
    try:
        entries = json.loads(listed[0]) if listed else []
    except (ValueError, RecursionError):
        entries = []
    found = [
        (str(one.get("question") or ""), str(one.get("answer") or "")) for one in entries if isinstance(one, dict)
    ] or [(match[1], match[2]) for match in LINES.finditer(answer)]
    yield from ((" ".join(question.split()), " ".join(told.split())) for question, told in found or [("", answer)])
