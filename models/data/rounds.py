"""The rounds of a conversation, each a question and its answer, apart: every one sees the images, and no other round.

What a model would learn from as many conversations of one round comes from one row, whose images are seen once, as
Molmo learns from images with several annotations (Deitke et al., arXiv 2409.17146). A tree has a trunk, all tokens up
to the last one of the images, and a branch of every round: a token of a branch sees the trunk, and what is before it in
its own branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.data.chat import ChatTemplate, Encoded, Turn

TRUNK = 0
"""The number of the branch that all others see."""
MISFITS = 8
"""Rounds that may be found too long for what is left of a row, before no more are tried: there may be thousands."""


class Tree(NamedTuple):
    """A conversation in tokens, trunk and branches one after the other."""

    text: Encoded
    branches: npt.NDArray[np.int64]
    """(length,): of every token, from 1 on; `TRUNK` for those that all see."""
    positions: npt.NDArray[np.int64]
    """(length,): of every token in a conversation of its round alone."""

    def cut(self, length: int) -> Tree:
        return Tree(self.text.cut(length), self.branches[:length], self.positions[:length])


def whole(text: Encoded) -> Tree:
    """A conversation whose turns see all turns before them: nothing but a trunk."""
    length = len(text.ids)
    return Tree(text, np.full(length, TRUNK), np.arange(length))


def apart(template: ChatTemplate, turns: Sequence[Turn], images: Sequence[int], room: int, dice: Random) -> Tree:
    """As many rounds as `room` tokens hold, in an order that is drawn; where none that was tried fits, the first one,
    longer than that; where they cannot stand apart (`_rounds`), the conversation as it is. `images`: tokens of each.
    Raises `TemplateMismatch`."""
    rounds = _rounds(turns)
    if rounds is None:
        return whole(template.encode(turns, images))
    kept, trunk, left, misfits = list[Encoded](), 0, room, 0
    for number in dice.sample(range(len(rounds)), len(rounds)):
        text = template.encode(rounds[number], images)
        if not trunk:
            trunk = int(text.image.nonzero()[0][-1]) + 1
            left, longer = room - trunk, text
        if len(text.ids) - trunk <= left:
            kept.append(text)
            left -= len(text.ids) - trunk
        else:
            misfits += 1
            if misfits == MISFITS:
                break
    return _tree(kept, trunk) if kept else whole(longer)


def _rounds(turns: Sequence[Turn]) -> list[list[Turn]] | None:
    """Each round as a conversation of its own, with the system's words and all images first, as LLaVA's own training
    puts them. None where there is nothing to look at, where an image is shown further on, and where words of the first
    question have an image on each side, or an image them."""
    start = int(turns[0].role == "system")
    rounds = list(zip(turns[start::2], turns[start + 1 :: 2], strict=True))
    first = rounds[0][0]
    words = [part.strip() for part in first.parts if part is not None and part.strip()]
    shown = [part is None for part in first.parts if part is None or part.strip()]
    among = shown not in (sorted(shown), sorted(shown, reverse=True))
    if not first.images or among or any(question.images for question, _ in rounds[1:]):
        return None
    ahead = [part for _ in range(first.images) for part in (None, "\n")]
    asked = [words, *([part.strip() for part in question.parts if part] for question, _ in rounds[1:])]
    return [
        [*turns[:start], Turn(first.role, (*ahead, *said)), answer]
        for said, (_, answer) in zip(asked, rounds, strict=True)
    ]


def _tree(rounds: Sequence[Encoded], trunk: int) -> Tree:
    columns = (
        np.concatenate([column[0][:trunk], *(own[trunk:] for own in column)]) for column in zip(*rounds, strict=True)
    )
    lengths = [trunk, *(len(text.ids) - trunk for text in rounds)]
    branches = np.repeat(np.arange(len(lengths)), lengths)
    positions = np.concatenate([np.arange(trunk), *(np.arange(trunk, len(text.ids)) for text in rounds)])
    text = Encoded(*columns)
    # What a branch begins with would be learnt from the token before it, and that is another branch's.
    text.learnt[1:][(branches[1:] != branches[:-1]) & (branches[1:] > 1)] = False
    return Tree(text, branches, positions)
