"""Questions about images, answered in the model's own words.

Beside what a model scores stands what can be had without looking: the best answer to all questions of a group
(`chance`), and the same model with another question's image (`…_shuffled`), which is what it knows of questions alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.data.images import opened, rgb
from models.evaluate import answers
from models.evaluate.metric import Metric, mean
from models.evaluate.sets import SetError
from models.evaluate.vqa_sets import Asked, Question
from models.towers.preprocess import Pixels

if TYPE_CHECKING:
    from models.captioners.captioner import Captioner

TASK = "vqa"
MOST_TOKENS = 16
"""Of an answer; longer ones are cut, which no short answer is."""
FREQUENT = 20
"""Answers of a group that are tried as a guess: the most frequent ones."""
CHUNK = 256
"""Images in memory at once."""
Answer = Callable[[Sequence[Question], Sequence[str]], list[str]]
"""The answers to questions, each about the image of the name beside it."""


def answering(model: Captioner, asked: Asked, batch: int) -> Answer:
    """A model that answers, greedily."""
    from models.captioners.decoding import Decoding

    greedy = Decoding(method="beam", beams=1, candidates=1, most_tokens=MOST_TOKENS)

    def answer(questions: Sequence[Question], images: Sequence[str]) -> list[str]:
        found: list[str] = []
        for start in range(0, len(questions), CHUNK):
            rows = slice(start, start + CHUNK)
            pixels = [_pixels(asked, image) for image in images[rows]]
            keys, texts = [one.key for one in questions[rows]], [one.text for one in questions[rows]]
            found += [written[0].text for written in model.write(pixels, keys, greedy, texts, batch)]
        return found

    return answer


def scores(asked: Asked, answer: Answer) -> Iterator[Metric]:
    """VQA accuracy and exact match over all questions, and by their kinds; each again with shuffled images."""
    questions = asked.questions
    images = [one.image for one in questions]
    guesses = best_guesses(questions)
    told = answer(questions, images)
    blind = answer(questions, shuffled(questions))
    for name, rule in (("vqa_accuracy", accuracy), ("exact_match", exact)):
        own, other = (np.array([rule(*pair) for pair in zip(questions, said, strict=True)]) for said in (told, blind))
        guessed = np.array([rule(*pair) for pair in zip(questions, guesses, strict=True)])
        for kind in [None, *dict.fromkeys(one.kind for one in questions)]:
            of = np.array([kind in (None, one.kind) for one in questions])
            if kind is not None and of.all():
                continue  # the only kind
            metric = name if kind is None else f"{name}/{kind}"
            chance = float(guessed[of].mean())
            groups = np.unique([image for image, chosen in zip(images, of, strict=True) if chosen], return_inverse=True)
            for suffix, values in (("", own), ("_shuffled", other)):
                yield Metric(asked.name, TASK, f"{metric}{suffix}", *mean(values[of], groups[1]), chance, int(of.sum()))


def accuracy(question: Question, said: str) -> float:
    """Of one answer; of several choices, whether it is the right one."""
    return answers.accuracy(_chosen(question, said), question.answers)


def exact(question: Question, said: str) -> float:
    return answers.exact(_chosen(question, said), question.answers)


def _chosen(question: Question, said: str) -> str:
    """What was said, in the words of the choice that it names."""
    number = answers.choice(said, question.choices) if question.choices else None
    return said if number is None else question.choices[number]


def best_guesses(questions: Sequence[Question]) -> list[str]:
    """For every question the one answer that does best over its group, chosen with the answers at hand: no model that
    does not look can do better."""
    best: dict[str, str] = {}
    for group in dict.fromkeys(one.group for one in questions):
        inside = [one for one in questions if one.group == group]
        if inside[0].choices:
            most = max(len(one.choices) for one in inside)
            candidates = [chr(ord("A") + number) for number in range(most)]
        else:
            given = Counter(answers.normalised(said) for one in inside for said in one.answers)
            candidates = [said for said, _ in given.most_common(FREQUENT)]

        def value(candidate: str, inside: Sequence[Question] = inside) -> float:
            return sum(accuracy(one, candidate) for one in inside)

        best[group] = max(candidates, key=value)
    return [best[one.group] for one in questions]


def shuffled(questions: Sequence[Question]) -> list[str]:
    """For every question the image of another of its kind, if there is one: half the round further on."""
    found: list[str] = [one.image for one in questions]
    for kind in {one.kind for one in questions}:
        places = [place for place, one in enumerate(questions) if one.kind == kind]
        images = list(dict.fromkeys(questions[place].image for place in places))
        if len(images) < 2:
            continue
        turned = dict(zip(images, np.roll(images, len(images) // 2).tolist(), strict=True))
        for place in places:
            found[place] = turned[questions[place].image]
    return found


def _pixels(asked: Asked, image: str) -> Pixels:
    try:
        with opened(asked.load(image)) as found:
            return rgb(found)[..., :3]
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all of them for damaged files
        if isinstance(error, SetError):
            raise
        raise SetError(f"set {asked.name}: the image {image}: {error}; fetch the set again") from None
