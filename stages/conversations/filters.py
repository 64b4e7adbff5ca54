"""Why a turn is not kept: an answer that its captions do not bear out, a refusal, a repetition, a length.

Turns are judged in order, each by the first thing that is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from stages.conversations.phrases import number_of, singular
from stages.conversations.turns import IMAGE, TEMPLATE, Turn

Verdict = Literal["kept", "empty", "image_token", "too_long", "refusal", "ungrounded", "duplicate", "denied"]
REFUSAL = re.compile(
    r"\b(?:as an? (?:ai|language model|assistant)|i(?:'m| am) (?:sorry|unable|not able)"
    r"|i (?:cannot|can't|can not|could not|couldn't|do not|don't)"
    r" (?:see|view|tell|determine|provide|answer|have (?:access|enough))|unfortunately, i"
    r"|(?:no|without(?: an?)?|not an?) image (?:is |was |has been )?(?:provided|attached|given)|(?:the|your) caption"
    r"|not (?:mentioned|specified|stated|provided|described))\b",
    re.IGNORECASE,
)
"""An answer that tells of a model's limits, or of a caption that nobody but its writer has seen."""
WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
FUNCTION_WORDS = frozenset((
    "a", "an", "the", "and", "or", "but", "of", "in", "on", "at", "to", "from", "by", "for", "with", "without",
    "as", "is", "are", "was", "were", "be", "been", "being", "am", "do", "does", "did", "has", "have", "had", "it",
    "its", "this", "that", "these", "those", "there", "here", "they", "them", "their", "he", "him", "his", "she",
    "her", "we", "our", "you", "your", "i", "my", "me", "not", "no", "yes", "which", "who", "whom", "whose", "what",
    "where", "when", "why", "how", "than", "then", "so", "if", "while", "also", "both", "each", "all", "some",
    "any", "more", "most", "other", "such", "very", "just", "only", "can", "could", "may", "might", "will", "would",
    "shall", "should", "must", "about", "into", "onto", "over", "under", "up", "down", "out", "off", "image",
    "picture", "photo", "photograph", "shown", "shows", "show", "see", "seen", "appears", "appear", "visible",
))  # fmt: skip
"""Words that no caption needs to bear out."""


def judged(
    turns: Sequence[Turn], captions: Sequence[str], known: Iterable[str], grounded: float, longest: int
) -> Iterator[Verdict]:
    """The verdict on every turn of one sample. `captions`: its texts; `known`: further words that are true of it, such
    as labels of boxes. `grounded`: share of an answer's words of meaning that must be among them."""
    bearing = {stem for text in (*captions, *known) for stem in stems(text)}
    asked: set[str] = set()
    for turn in turns:
        verdict = turn.verdict or _verdict(turn, bearing, grounded, longest)
        question = " ".join(WORD.findall(turn.question.lower()))
        if verdict == "kept" and question in asked:
            verdict = "duplicate"
        if verdict == "kept":
            asked.add(question)
        yield verdict


def _verdict(turn: Turn, bearing: set[str], grounded: float, longest: int) -> Verdict:
    if not turn.question.strip() or not turn.answer.strip():
        return "empty"
    if IMAGE in turn.question or IMAGE in turn.answer:
        return "image_token"
    if len(turn.question) > longest or len(turn.answer) > longest:
        return "too_long"
    if REFUSAL.search(turn.answer):
        return "refusal"
    return "kept" if _share(turn, bearing) >= grounded else "ungrounded"


def _share(turn: Turn, bearing: set[str]) -> float:
    """Of the answer's words of meaning, how many the captions have; 0 where a number in it is not borne out.

    What rules found in boxes no caption needs to say; a model has nothing but captions and boxes' labels.
    """
    words = list(stems(turn.answer, articles=False))  # `a dog` is borne out by `dog`
    if turn.caption_id is None and turn.source == TEMPLATE:
        return 1.0
    numbers = [word for word in words if word.isdigit()]
    if any(number not in bearing for number in numbers):
        return 0.0
    return sum(word in bearing for word in words) / len(words) if words else 1.0


def stems(text: str, articles: bool = True) -> Iterator[str]:
    """Words of meaning: lower case, in the singular, numbers as digits. `articles`: whether `a` is a one or nothing."""
    for word in WORD.findall(text.lower()):
        if word in ("a", "an"):
            yield from ["1"] * articles
            continue
        number = number_of(word)
        if number:
            yield str(number)
        elif word not in FUNCTION_WORDS:
            yield singular(word)
