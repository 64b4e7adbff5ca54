"""A question and its answer, where both came from, and the words in which others write them.

LLaVA's JSON (Liu et al. 2023): `{"id": …, "image": …, "conversations": [{"from": "human", "value": "<image>\\nWhat?"},
{"from": "gpt", "value": …}]}`. ShareGPT's: the same without an image, or with `messages` of `role` and `content`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "description", "medium", "question", "count", "colour", "relation", "verify", "place", "reading", "reasoning"
]
"""`medium` asks what kind of picture it is, a photograph or a diagram; `verify` whether a relation holds, yes or no (so
called in GQA, Hudson and Manning 2019)."""
Asked = tuple[Kind, str, str]
"""Kind, question and answer."""
TEMPLATE = "template"
"""What wrote a turn that no model wrote."""
LONG: tuple[Kind, ...] = ("description", "reasoning")
"""Kinds whose answers are sentences."""
IMAGE = "<image>"
"""Stands in a human's words where an image is meant."""
ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "chatgpt": "gpt", "system": "system"}
"""What others call who speaks -> what LLaVA calls them."""


@dataclass(frozen=True)
class Turn:
    """One question, one answer."""

    kind: Kind
    question: str
    answer: str
    caption_id: str | None
    """The caption that it was made from; None where it was made from boxes, or from all of them."""
    source: str
    """What wrote it: `template`, or the name of a model."""
    verdict: Literal["too_long", "denied", "duplicate"] | None = None
    """What is known before anything is judged: the model could not be asked, for its prompt is longer than it reads;
    the boxes deny the caption; or an earlier caption was asked for the same in other words."""


def conversation(turns: Sequence[Turn], images: int, brief: str = "") -> list[dict[str, Any]]:
    """As LLaVA writes it; the images come before the first question. `brief`: what follows a question whose answer is
    a word or two."""
    said: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        asked = turn.question
        any_length = turn.kind == "question" and turn.source != TEMPLATE  # a template's are answered by a name
        if brief and turn.kind not in LONG and not any_length:
            asked = f"{asked}\n{brief}"
        if number == 0:
            asked = f"{IMAGE}\n" * images + asked
        about = {"kind": turn.kind, "source": turn.source, "caption_id": turn.caption_id}
        said += [{"from": "human", "value": asked}, {"from": "gpt", "value": turn.answer, **about}]
    return said


def as_text(said: Sequence[Mapping[str, Any]]) -> str:
    """What was said, a line for each who spoke, without the images."""
    return "\n".join(str(turn["value"]).replace(IMAGE, "").strip() for turn in said)


class Malformed(ValueError):
    """What is no conversation: says what was found, and what was expected."""


def read(document: Any) -> list[dict[str, Any]]:
    """The turns of LLaVA's or ShareGPT's form as LLaVA's, other keys of a turn kept. Raises `Malformed`."""
    said = document.get("conversations") or document.get("messages") if isinstance(document, dict) else None
    if not isinstance(said, list) or not said:
        raise Malformed("no `conversations` and no `messages`; expected a list of turns")
    found = []
    for turn in said:
        if not isinstance(turn, dict):
            raise Malformed(f"a turn is {type(turn).__name__}; expected who speaks and what")
        who, what = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if who not in ROLES:
            raise Malformed(f"{who!r} speaks; expected {', '.join(ROLES)}")
        if not isinstance(what, str):
            raise Malformed(f"what {who} says is {type(what).__name__}; expected text")
        rest = {key: value for key, value in turn.items() if key not in ("from", "role", "value", "content")}
        found.append({"from": ROLES[who], "value": what, **rest})
    speaking = [turn["from"] for turn in found if turn["from"] != "system"]
    if speaking != ["human", "gpt"] * (len(speaking) // 2) or not speaking:
        raise Malformed(f"{' '.join(speaking[:4]) or 'nobody'} … speak; expected human and gpt in turn")
    return found


def as_llava(document: Mapping[str, Any], images: Sequence[str]) -> dict[str, Any]:
    """An entry of a file such as `llava_v1_5_mix665k.json`; several images are a list, as LLaVA-NeXT has it."""
    shown: dict[str, Any] = {"image": images[0] if len(images) == 1 else list(images)} if images else {}
    return {"id": document["id"], **shown, "conversations": document["conversations"]}


def as_sharegpt(document: Mapping[str, Any], images: Sequence[str]) -> dict[str, Any]:
    """An entry as most trainers of language models read it: `conversations` of `from` and `value` alone, `images`."""
    turns = [{"from": turn["from"], "value": turn["value"]} for turn in document["conversations"]]
    return {"id": document["id"], "conversations": turns, **({"images": list(images)} if images else {})}
