"""A model that transformers loads, what was said to it so far, and its answers piece by piece as they come.

talk = Talk.load(Path("out/model"), [Path("cat.jpg")])
for piece in talk.ask("What is this?"): print(piece, end="")
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from queue import Empty
from threading import Event, Thread
from typing import Any

import torch
from PIL import Image

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, StoppingCriteria, TextIteratorStreamer
from transformers.utils import logging

from models.data.chat_parts import take_parts, wants_special_tokens
from models.data.images import opened
from models.data.index import DataError

PATIENCE_S = 0.2
"""How often it is looked whether the model still writes."""


class TalkError(ValueError):
    """What cannot be talked with or about: one line."""


class Talk:
    """One conversation. `ask` may be called again and again; the images come with the first question."""

    def __init__(self, model: Any, processor: Any, images: Sequence[Image.Image]) -> None:
        self._model, self._processor = model.eval(), processor
        self._images = list(images)
        self._said: list[dict[str, Any]] = []

    @classmethod
    def load(cls, folder: Path, images: Sequence[Path], device: str = "cpu") -> Talk:
        """Raises `TalkError`."""
        pictures = [_image(path) for path in images]
        options = {"local_files_only": True, "trust_remote_code": False}
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            config = AutoConfig.from_pretrained(folder, **options)
            if type(config) not in AutoModelForImageTextToText._model_mapping:
                raise TalkError(f"{folder} holds a {config.model_type!r}, which answers nothing; name a LLaVA")
            model: Any = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True, **options)
            processor = AutoProcessor.from_pretrained(folder, **options)  # type: ignore[no-untyped-call]
        except TalkError:
            raise
        except (OSError, ImportError, ValueError, KeyError) as error:
            told = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TalkError(f"{folder} holds no model that talks: {told}") from None
        if getattr(processor, "chat_template", None) is None:
            raise TalkError(f"{folder} has no chat template; take a model that was tuned on conversations")
        try:
            take_parts(processor)
        except DataError as error:
            raise TalkError(f"{folder}: {error}") from None
        return cls(model.to(device), processor, pictures)

    @property
    def context(self) -> int:
        """Tokens that the model has places for."""
        return int(self._model.config.get_text_config().max_position_embeddings)

    def ask(self, question: str, most_tokens: int = 128, temperature: float = 0.0) -> Generator[str, None, None]:
        """The answer, piece by piece; one that is broken off counts as far as it came.

        `temperature`: 0 takes the likeliest token always. Raises `TalkError` for a talk longer than the model reads.
        """
        parts = [{"type": "image"}] * (0 if self._said else len(self._images))
        asked = {"role": "user", "content": [*parts, {"type": "text", "text": question.strip()}]}
        text = self._processor.apply_chat_template([*self._said, asked], add_generation_prompt=True)
        given = self._processor(
            images=self._images or None,
            text=text,
            return_tensors="pt",
            add_special_tokens=wants_special_tokens(self._processor.tokenizer, text),
        ).to(self._model.device)
        length = given["input_ids"].shape[1]
        if length >= self.context:
            raise TalkError(f"{length} tokens were said, and the model reads {self.context}; begin a new talk")
        stopped = _Stop()
        streamer = TextIteratorStreamer(
            self._processor.tokenizer, skip_prompt=True, timeout=PATIENCE_S, skip_special_tokens=True
        )
        options: dict[str, Any] = {"max_new_tokens": min(most_tokens, self.context - length), "do_sample": False}
        if temperature > 0:
            options |= {"do_sample": True, "temperature": temperature}
        failed: list[BaseException] = []

        def generate() -> None:
            try:
                with torch.inference_mode():
                    self._model.generate(**given, **options, streamer=streamer, stopping_criteria=[stopped])
            except BaseException as error:  # told in the thread that waits
                failed.append(error)

        writer = Thread(target=generate, daemon=True)
        writer.start()
        answer = ""
        try:
            for piece in _pieces(streamer, writer):
                answer += piece
                yield piece
        finally:
            stopped.asked.set()
            writer.join()
            self._said += [asked, {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]}]
        if failed:
            raise failed[0]


class _Stop(StoppingCriteria):
    """Ends an answer after its next token, when it is asked to."""

    def __init__(self) -> None:
        self.asked = Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.asked.is_set(), device=input_ids.device)


def _pieces(streamer: Any, writer: Thread) -> Iterator[str]:
    """What is written, until it ends or the writer dies. Short waits let Ctrl-C through."""
    while True:
        try:
            yield next(streamer)
        except StopIteration:
            return
        except Empty:
            if not writer.is_alive():
                return


def _image(path: Path) -> Image.Image:
    try:
        with opened(path.read_bytes()) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise TalkError(f"there is no image {path}; name a JPEG, PNG, WebP or GIF") from None
    except IsADirectoryError:
        raise TalkError(f"{path} is a folder; name one image") from None
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all of them for damaged files
        raise TalkError(f"{path} cannot be looked at: {' '.join(str(error).split())}") from None
