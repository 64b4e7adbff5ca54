"""Chat templates as processors use them: turns come in parts, and some templates know only strings.

Processors of transformers, and what is built on them, say a turn as `[{"type": "image"}, {"type": "text", "text": …}]`.
A language model's template often joins strings (`'USER: ' + content`). What learns from such a template writes
`<image>` and a line break before the text (`models.data.chat`); whoever asks later must do the same.
"""

from __future__ import annotations

from typing import Any

import models.without_torchvision  # isort: skip  # noqa: F401
from jinja2 import TemplateError

from models.data.index import DataError

PROBE = "what is this?"
JOINED = (
    "{%- set joined = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string or message['content'] is not iterable -%}"
    "{%- set joined.messages = joined.messages + [message] -%}"
    "{%- else -%}"
    "{%- set said = namespace(text='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- set said.text = said.text + ('IMAGE\\n' if part['type'] == 'image' else part['text']) -%}"
    "{%- endfor -%}"
    "{%- set joined.messages = joined.messages + [dict(message, content=said.text)] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = joined.messages %}\n"
)
"""Goes before a template that takes strings. The line break at its end is dropped (`trim_blocks`), so that what follows
stands at the beginning of a line, as it did."""


def joining(template: str, image: str) -> str:
    """The template for strings, made to take parts as well. `image`: the token at whose place an image stands."""
    return JOINED.replace("IMAGE", image) + template


def rendered(speaker: Any, content: Any) -> str | None:
    """What a question becomes by the template of a tokenizer or processor; None where that refuses it, as templates for
    strings do with a list, each in the way of the expression that meets it first."""
    asked = [{"role": "user", "content": content}]
    try:
        return str(speaker.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError):
        return None


def probe(image: str | None = None) -> Any:
    """A question about an image: in parts, or as a string with the token of an image."""
    return f"{image}\n{PROBE}" if image else [{"type": "image"}, {"type": "text", "text": PROBE}]


def take_parts(processor: Any) -> None:
    """Let the processor's template take parts, where it writes them wrongly or refuses them, and strings well.

    Raises `DataError` where it leaves images out without a word.
    """
    in_parts = rendered(processor, probe())
    well = in_parts is not None and PROBE in in_parts and "'type'" not in in_parts  # some print a list as Python would
    if well and in_parts != rendered(processor, probe()[1:]):
        return
    image = str(getattr(processor, "image_token", "<image>"))
    in_words = rendered(processor, probe(image))
    if in_words is not None and f"{image}\n{PROBE}" in in_words:
        processor.chat_template = joining(processor.chat_template, image)
    elif well:
        raise DataError(f"the chat template leaves images out; let it write {image!r} for a part of type 'image'")


def wants_special_tokens(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer is to put its own tokens before a rendered text: not where the template wrote the first.

    So it was learnt (`models.data.chat`), and so transformers' processors do it when they tokenize what they render.
    """
    bos = tokenizer.bos_token
    return not (bos and text.startswith(str(bos)))
