"""How near captions come to people's: BLEU, ROUGE-L and CIDEr, as pycocoevalcap 1.2 has them, to the digit.

scores = caption_scores(["a cat sits on a mat"], [["the cat is on the mat", "a cat on a mat"]])
scores.cider, scores.cider_each

BLEU: Papineni et al. 2002, over the whole corpus, with the length of the nearest reference. ROUGE-L: Lin 2004, the best
precision and the best recall of a caption's references, beta 1.2. CIDEr: Vedantam et al. 2015, as CIDEr-D with sigma 6
but without stemming; how rare words are, the references of the given images say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.evaluate.words import words

LONGEST = 4
"""Words of an n-gram."""
BETA = 1.2
SIGMA = 6.0
TINY, SMALL = 1e-15, 1e-9
"""What keeps pycocoevalcap's BLEU from dividing by zero, and so its last digits."""

Words = tuple[str, ...]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CaptionScores:
    """Of all captions, and of each."""

    bleu: tuple[float, float, float, float]
    """BLEU-1 to BLEU-4."""
    rouge_l: float
    cider: float
    rouge_l_each: Values
    cider_each: Values


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Of one caption an image, with one reference or more each. Raises `ValueError` where those are missing."""
    if len(captions) != len(references) or not captions:
        raise ValueError(f"{len(captions)} captions and {len(references)} lists of references; expected as many")
    if any(not own for own in references):
        raise ValueError("an image without a reference; there is nothing to compare its caption with")
    told = [words(caption) for caption in captions]
    known = [[words(caption) for caption in own] for own in references]
    rouge = np.array([_rouge_l(own, refs) for own, refs in zip(told, known, strict=True)])
    # `22 3/4` is one word to ROUGE-L, which splits at plain blanks; it has another one, at which the others split.
    told = [_split(own) for own in told]
    known = [[_split(ref) for ref in refs] for refs in known]
    cider = _cider(told, known)
    return CaptionScores(_bleu(told, known), float(rouge.mean()), float(cider.mean()), rouge, cider)


def _split(text: Words) -> Words:
    return tuple(" ".join(text).split())


def grams(text: Words) -> Counter[Words]:
    """How often every n-gram of 1 to `LONGEST` words occurs."""
    return Counter(
        text[start : start + size] for size in range(1, LONGEST + 1) for start in range(len(text) - size + 1)
    )


def _bleu(told: Sequence[Words], known: Sequence[Sequence[Words]]) -> tuple[float, float, float, float]:
    guessed, correct = np.zeros(LONGEST), np.zeros(LONGEST)
    length = reference = 0
    for own, refs in zip(told, known, strict=True):
        most: Counter[Words] = Counter()
        for ref in refs:
            most |= grams(ref)
        length += len(own)
        reference += min((abs(len(ref) - len(own)), len(ref)) for ref in refs)[1]
        for size in range(LONGEST):
            guessed[size] += max(0, len(own) - size)
        for gram, count in grams(own).items():
            correct[len(gram) - 1] += min(count, most[gram])
    ratio = (length + TINY) / (reference + SMALL)
    shorter = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, found = 1.0, []
    for size in range(LONGEST):
        product *= (correct[size] + TINY) / (guessed[size] + SMALL)
        found.append(float(product ** (1 / (size + 1))) * shorter)
    return found[0], found[1], found[2], found[3]


def _rouge_l(own: Words, references: Sequence[Words]) -> float:
    common = [_longest_common(own, ref) for ref in references]
    # An empty text is one empty word to pycocoevalcap, which splits at blanks.
    precision = max(count / max(1, len(own)) for count in common)
    recall = max(count / max(1, len(ref)) for count, ref in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common(one: Words, other: Words) -> int:
    """The length of the longest common subsequence, bit by bit (Hyyrö 2004)."""
    if not one or not other:
        return int(one == other)
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(one)) - 1
    row = every
    for word in other:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & every
    return len(one) - row.bit_count()


def _cider(told: Sequence[Words], known: Sequence[Sequence[Words]]) -> Values:
    counted = [[grams(ref) for ref in refs] for refs in known]
    images_with: Counter[Words] = Counter()
    for counts in counted:
        images_with.update(set().union(*counts))
    images = math.log(float(len(known)))

    def vector(text: Words, count: Counter[Words]) -> _Vector:
        weights: list[dict[Words, float]] = [{} for _ in range(LONGEST)]
        for gram, times in count.items():
            weights[len(gram) - 1][gram] = times * (images - math.log(max(1.0, images_with[gram])))
        norms = [math.sqrt(sum(weight**2 for weight in each.values())) for each in weights]
        return _Vector(weights, norms, max(0, len(text) - 1))

    found = np.empty(len(told))
    for image, (own, refs) in enumerate(zip(told, known, strict=True)):
        mine = vector(own, grams(own))
        theirs = (vector(ref, count) for ref, count in zip(refs, counted[image], strict=True))
        found[image] = 10 * sum(_likeness(mine, their) for their in theirs) / len(refs)
    return found


@dataclass(frozen=True)
class _Vector:
    """The n-grams of a text by their weights, a dict for each n; their norms; how many pairs of words there are."""

    weights: list[dict[Words, float]]
    norms: list[float]
    length: int


def _likeness(mine: _Vector, theirs: _Vector) -> float:
    """The mean over n of the cosines, of what both have, less for another length."""
    total = 0.0
    for own, other, norm, their_norm in zip(mine.weights, theirs.weights, mine.norms, theirs.norms, strict=True):
        product = sum(min(weight, other[gram]) * other[gram] for gram, weight in own.items() if gram in other)
        total += product / (norm * their_norm) if norm and their_norm else product
    return total / LONGEST * math.exp(-((mine.length - theirs.length) ** 2) / (2 * SIGMA**2))
