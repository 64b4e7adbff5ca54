"""Whether an answer is right: VQA's rule of ten annotators, and equality.

Both follow the official evaluation of VQAv2 (Goyal et al. 2017, visualqa.org/evaluation) with its quirks, since
published figures have them, too: punctuation next to a blank goes and other punctuation becomes a blank, a comma within
a number makes all of it go, `none` is 0, articles go, and apostrophes that were left out come back.
Its copies differ where all annotators agree; here all answers are normalised always, as by LAVIS.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
THOUSANDS = re.compile(r"\d,\d")
STOPS = re.compile(r"\.(?!\d)")
"""Periods that do not begin decimals."""
MOST_STOPS = 32
"""Periods that go, at most: what the official code takes for a flag is a count."""
NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())  # noqa: SIM905
} | {"none": "0"}
ARTICLES = frozenset({"a", "an", "the"})
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
    not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
    won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
"""The words that the official code mends where one apostrophe is missing."""
CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word for word in CONTRACTED.split() for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}
LEAST = 3
"""Annotators who say the same make an answer right."""


def normalised(answer: str) -> str:
    """An answer as it is compared."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    kept = text
    whole = THOUSANDS.search(text) is not None
    for mark in PUNCTUATION:
        beside = whole or f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if beside else " ")
    words = [NUMBERS.get(word, word) for word in STOPS.sub("", kept, count=MOST_STOPS).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def accuracy(answer: str, annotators: Sequence[str]) -> float:
    """VQA's rule: the mean, over all but one annotator, of min(matches / 3, 1) (Antol et al. 2015, section 3.3).

    Of fewer than four annotators it is whether one of them says the same: no three others could.
    """
    said, known = normalised(answer), [normalised(other) for other in annotators]
    matches = [other == said for other in known]
    if len(known) <= LEAST:
        return float(any(matches))
    total = sum(matches)
    return sum(min((total - match) / LEAST, 1.0) for match in matches) / len(matches)


def exact(answer: str, annotators: Sequence[str]) -> float:
    """1 where it equals the answer that most annotators gave, the first of those that tie; else 0."""
    known = [normalised(other) for other in annotators]
    return float(normalised(answer) == max(known, key=known.count))


def choice(answer: str, choices: Sequence[str]) -> int | None:
    """Which of several an answer names, by its letter or in words; None where it names none.

    `B`, `(B)`, `B.`, `B. the dog`, `the answer is B`, `the dog`; a letter alone counts before words.
    """
    letters = "".join(chr(ord("A") + number) for number in range(len(choices)))
    found = re.match(rf"\s*\(?([{letters}])(?:[).:\s]|$)", answer) or re.search(
        rf"\banswer is:? \(?([{letters}])\b", answer
    )
    if found is not None and not (found[1] == "A" and re.match(r"\s*A\s+[a-z]", answer)):
        return letters.index(found[1])
    said = normalised(answer)
    exactly = [number for number, other in enumerate(choices) if normalised(other) == said]
    return exactly[0] if exactly else None
