"""Conversations as a tokenizer's chat template writes them, and which of the tokens are answers.

template = ChatTemplate(tokenizer)
template.encode([Turn("user", (None, "\nWhat is this?")), Turn("assistant", ("A cat.",))], [576])

The template is rendered with a mark in the place of every turn's text, so that it is known what of the result is the
template's and what somebody wrote: what a text says is never taken for an image or for a role. Where no text names a
special token, which is nearly always, the whole is tokenized at once, exactly as transformers does it for a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import models.without_torchvision  # isort: skip  # noqa: F401
from jinja2 import TemplateError
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerBase

from models.data.chat_parts import joining, probe, rendered
from models.data.index import DataError

IMAGE = "<image>"
"""The token at whose place an image stands, in texts of LLaVA's form and in a tokenizer."""
ROLES = ("system", "user", "assistant")
ROLE_TOKENS = tuple(f"<|{role}|>" for role in ROLES)
DEFAULT = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{{- '<image>\n' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
"""Of a tokenizer that has none: a special token for each role, and the end of a text after each answer."""
MARK = re.compile("\ue000([0-9]+)\ue001")
"""Characters of Unicode's private use, in the place of a turn's text."""
Layout = tuple[str, tuple[bool, ...]]
"""A role, and of each part of its turn whether it is an image."""
STRUCTURES = 4096
"""Successions of turns whose rendering is remembered."""
IMAGE_PLACE = None


class Turn(NamedTuple):
    """What one side says."""

    role: str
    parts: tuple[str | None, ...]
    """Texts, and None where an image stands."""

    @property
    def images(self) -> int:
        return sum(part is None for part in self.parts)


class Encoded(NamedTuple):
    """A conversation in tokens."""

    ids: npt.NDArray[np.int64]
    learnt: npt.NDArray[np.bool_]
    """(length,): whether the token is of an answer, or ends one."""
    image: npt.NDArray[np.bool_]
    """(length,): whether it holds the place of a part of an image."""

    def cut(self, length: int) -> Encoded:
        return Encoded(self.ids[:length], self.learnt[:length], self.image[:length])


class TemplateMismatch(ValueError):
    """Turns that a template does not write so that they can be found again; in one line."""


class ChatTemplate:
    """The chat template of a tokenizer. Threads may share one; another process makes its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises `DataError` where the template cannot be learnt from."""
        self._name = tokenizer.name_or_path or "of this training"
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(f"the tokenizer {self._name!r} has no chat template; give it one, or take a chat model's")
        self._tokenizer = tokenizer
        self._backend = Tokenizer.from_str(_backend(tokenizer).to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = False
        tokens = self._backend.get_added_tokens_decoder()
        added = {token.content: number for number, token in tokens.items()}
        if IMAGE not in added:
            raise DataError(f"the tokenizer {self._name!r} has no token {IMAGE!r}; add it as a special one")
        self.image_token = added[IMAGE]
        self._named = re.compile(_any_of(added))
        special = {token.content for token in tokens.values() if token.special}
        ends = (special - {IMAGE, tokenizer.bos_token}) | (special & {tokenizer.eos_token})
        self._end = re.compile(rf"\s*(?:{_any_of(ends)})")
        self._pieces = lru_cache(STRUCTURES)(self._rendered)
        self.listed = False
        self._first: list[int] = []
        self._settle()

    def __reduce__(self) -> tuple[type[ChatTemplate], tuple[PreTrainedTokenizerBase]]:
        return ChatTemplate, (self._tokenizer,)  # a cache is of one process

    def _settle(self) -> None:
        """Find out whether texts are given as they are or in lists of parts, by a conversation of two rounds."""
        rounds = [
            Turn("user", (None, "\nwhat is this?")),
            Turn("assistant", ("a red circle.",)),
            Turn("user", ("and that?",)),
            Turn("assistant", ("two blue squares.",)),
        ]
        told = ""
        for self.listed in (False, True):
            try:
                text = "".join(self._segments(rounds)[0])
                always = self._backend.encode("", add_special_tokens=True).ids
                bos = self._tokenizer.bos_token
                self._first = [] if bos and text.startswith(str(bos)) else always
                if self._backend.encode("a", add_special_tokens=True).ids[: len(always)] != always:
                    raise TemplateMismatch("its tokenizer puts tokens behind a text, where an answer should come")
                if text != (whole := self._written(rounds)):
                    raise TemplateMismatch(f"it changes what turns say: {_difference(whole, text)}")
                encoded = self.encode(rounds, [1])
            except TemplateMismatch as mismatch:
                told = told or str(mismatch)
            else:
                ends = np.flatnonzero(encoded.learnt & ~np.append(encoded.learnt[1:], False))
                self.end_tokens = sorted({int(encoded.ids[place]) for place in ends})
                return
        raise DataError(f"the chat template of the tokenizer {self._name!r} cannot be learnt from: {told}")

    def _written(self, turns: Sequence[Turn]) -> str:
        """By the template alone, without marks. Raises `TemplateMismatch`."""
        messages: list[dict[str, Any]] = []
        for turn in turns:
            parts = self._contents(turn)
            words = "".join(IMAGE if part is None else part for part in parts)
            messages.append({"role": turn.role, "content": _in_list(parts) if self.listed else words})
        return self._applied(messages, False)

    def _applied(self, messages: Sequence[dict[str, Any]], prompt: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = _told([message["role"] for message in messages])
            raise TemplateMismatch(f"it refuses turns of {roles}: {' '.join(str(error).split())}") from None

    # -- text ----------------------------------------------------------------------------------------------------------

    def _rendered(self, structure: tuple[Layout, ...], listed: bool, prompt: bool) -> tuple[str, ...]:
        """What the template writes before, between and after the texts of turns. Raises `TemplateMismatch`."""
        messages: list[dict[str, Any]] = []
        ahead, seen, between = list[int](), 0, False  # how many images stand before each text
        for role, images in structure:
            parts: list[str | None] = []
            for at, image in enumerate(images):
                parts.append(None if image else f"\ue000{len(ahead)}\ue001")
                between |= image and not all(images[:at])
                seen += image
                ahead += [] if image else [seen]
            messages.append({"role": role, "content": _in_list(parts) if listed else parts[0]})
        pieces = MARK.split(self._applied(messages, prompt))
        found = [int(number) for number in pieces[1::2]]
        roles = _told([role for role, _ in structure])
        if found != list(range(len(ahead))):
            raise TemplateMismatch(f"of turns of {roles} it writes numbers {found}; expected each once, in order")
        written = np.cumsum([piece.count(IMAGE) for piece in pieces[::2]])[:-1].tolist()
        if between and written != ahead:
            raise TemplateMismatch(
                f"of turns of {roles} it moves images: {written} stand before the texts; expected {ahead}"
            )
        return tuple(pieces[::2])

    def _segments(self, turns: Sequence[Turn]) -> tuple[list[str], list[bool], list[tuple[int, int]]]:
        """The text in segments, whether each is the template's, and from where to where (in characters) answers are.

        An answer begins where a prompt for it ends, and ends with the special token behind it.
        """
        contents = [self._contents(turn) for turn in turns]
        structure = tuple(
            (turn.role, tuple(part is None for part in parts) if self.listed else (False,))
            for turn, parts in zip(turns, contents, strict=True)
        )
        pieces = self._pieces(structure, self.listed, False)
        segments, trusted, spans = list[str](), list[bool](), list[tuple[int, int]]()
        at = begin = place = 0
        for number, (turn, parts) in enumerate(zip(turns, contents, strict=True)):
            answer = turn.role == "assistant"
            if answer:
                before = self._pieces(structure[:number], self.listed, True)
                if before[:-1] != pieces[:place] or not pieces[place].startswith(before[-1]):
                    raise TemplateMismatch(
                        f"the prompt for answer {number + 1} ends with {before[-1]!r}, and the whole goes on with "
                        f"{pieces[place]!r}; expected the prompt to be its beginning"
                    )
                begin = at + len(before[-1])
            # Of a list the template sets the images, and stands between the texts; else images are set in the one text.
            for texts in [[part] for part in parts if part is not None] if self.listed else [parts]:
                segments += [pieces[place], *(IMAGE if part is None else part for part in texts)]
                trusted += [True, *(part is None for part in texts)]
                at += sum(map(len, segments[-1 - len(texts) :]))
                place += 1
            if answer:
                end = self._end.match(pieces[place])
                if end is None:
                    raise TemplateMismatch(
                        f"no special token ends answer {number + 1}, but {pieces[place][:20]!r} follows: what learnt "
                        "from it would never stop; let it write its eos_token after each answer"
                    )
                spans.append((begin, at + end.end()))
        segments.append(pieces[-1])
        trusted.append(True)
        return segments, trusted, spans

    def _contents(self, turn: Turn) -> list[str | None]:
        """Its texts and, as None, its images, without blanks around the whole, or around each text of a list."""
        if self.listed:
            listed = [part if part is None else part.strip() for part in turn.parts]
            kept = [part for part in listed if part is None or part]
            return kept if any(kept) else [*kept, ""]
        parts = list(turn.parts)
        for place, trim in ((0, str.lstrip), (-1, str.rstrip)):
            if parts and (text := parts[place]) is not None:
                parts[place] = trim(text)
        return parts

    # -- tokens --------------------------------------------------------------------------------------------------------

    def encode(self, turns: Sequence[Turn], images: Sequence[int]) -> Encoded:
        """`images`: how many tokens each takes, in their order. Raises `TemplateMismatch`."""
        segments, trusted, spans = self._segments(turns)
        if any(not own and self._named.search(text) for text, own in zip(segments, trusted, strict=True)):
            ids, places = self._apart(segments, trusted)
        else:
            found = self._backend.encode("".join(segments), add_special_tokens=False)
            ids, places = found.ids, found.offsets
        learnt = _within(places, spans)
        first = np.zeros(len(self._first), np.bool_)
        whole = np.array([*self._first, *ids], np.int64)
        learnt = np.append(first, learnt)
        own = whole == self.image_token
        if own.sum() != len(images):
            raise TemplateMismatch(f"it writes {own.sum()} places for images where there are {len(images)}")
        times = np.ones(len(whole), np.int64)
        times[own] = images
        return Encoded(*(np.repeat(column, times) for column in (whole, learnt & ~own, own)))

    def _apart(self, segments: Sequence[str], trusted: Sequence[bool]) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens, segment by segment, of which only the template's own have special ones."""
        ids, places, start = list[int](), list[tuple[int, int]](), 0
        for text, own in zip(segments, trusted, strict=True):
            if own:
                found = self._backend.encode(text, add_special_tokens=False)
                ids += found.ids
                places += [(start + begin, start + end) for begin, end in found.offsets]
            else:
                plain = self._plain(text)
                ids += plain
                places += [(start, start + len(text))] * len(plain)
            start += len(text)
        return ids, places

    def _plain(self, text: str) -> list[int]:
        backend = self._backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]


def _within(places: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Whether each token lies in a span. Raises `TemplateMismatch` for one that lies across the beginning of one."""
    starts, ends = np.array(places, np.int64).reshape(-1, 2).T
    learnt = np.zeros(len(places), np.bool_)
    for begin, end in spans:
        if ((starts < begin) & (ends > begin)).any():
            raise TemplateMismatch("the last token of a prompt reaches into the answer; let a special one end prompts")
        learnt |= (starts >= begin) & (ends <= end) & (ends > starts)
    return learnt


def _in_list(parts: Sequence[str | None]) -> list[dict[str, Any]]:
    return [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]


def _any_of(tokens: Iterable[str]) -> str:
    return "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))


def _told(roles: Sequence[str]) -> str:
    return ", ".join(roles[:6]) + (" …" if len(roles) > 6 else "")


def _difference(found: str, expected: str) -> str:
    """From where on two texts differ."""
    at = next((at for at, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other), 0)
    return f"{found[at : at + 20]!r} where {expected[at : at + 20]!r} was expected"


def ready_to_chat(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with what conversations need, which is saved with it: a token for images, and a chat template.

    One that has no template gets `DEFAULT`, a token for each role, and puts nothing before or behind a text any more.
    A template that takes strings is made to take parts, too, since processors give it nothing else. Raises `DataError`.
    """
    missing = [IMAGE]
    if not getattr(tokenizer, "chat_template", None):
        missing += ROLE_TOKENS
        tokenizer.chat_template = DEFAULT
        backend = _backend(tokenizer)
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    # Prompts are tokenized as a whole from now on: their special tokens must be known for what they are.
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = False
    by_strings = not ChatTemplate(tokenizer).listed
    if by_strings and rendered(tokenizer, probe()) != rendered(tokenizer, probe(IMAGE)):
        tokenizer.chat_template = joining(tokenizer.get_chat_template(), IMAGE)
    return tokenizer


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Its own `tokenizers.Tokenizer`. Raises `DataError`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        name = tokenizer.name_or_path
        raise DataError(f"the tokenizer {name!r} is slow; load it with AutoTokenizer and save that")
    return backend
