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
    """As many rounds as `room` tokens hold, in an order that is drawn, the system's words before each. The turns stay
    one after the other where an image is shown further on, or words stand before the first question's images.

    `images`: tokens of each. Raises `TemplateMismatch`.
    """
    start = int(turns[0].role == "system")
    rounds = list(zip(turns[start::2], turns[start + 1 :: 2], strict=True))
    shown = rounds[0][0].images
    if any(question.images for question, _ in rounds[1:]):
        return whole(template.encode(turns, images))
    ahead = [part for _ in range(shown) for part in (None, "\n")]
    asked = [rounds[0][0], *(Turn(question.role, (*ahead, *question.parts)) for question, _ in rounds[1:])]
    each = [
        template.encode([*turns[:start], question, answer], images)
        for question, (_, answer) in zip(asked, rounds, strict=True)
    ]
    trunk = int(each[0].image.nonzero()[0][-1]) + 1 if shown else 0
    if any(not np.array_equal(text.ids[:trunk], each[0].ids[:trunk]) for text in each):
        return whole(template.encode(turns, images))
    kept, left = list[Encoded](), room - trunk
    for text in dice.sample(each, len(each)):
        if len(text.ids) - trunk <= left:
            kept.append(text)
            left -= len(text.ids) - trunk
    return _tree(kept, trunk) if kept else whole(each[0])


def _tree(rounds: Sequence[Encoded], trunk: int) -> Tree:
    columns = (
        np.concatenate([column[0][:trunk], *(own[trunk:] for own in column)]) for column in zip(*rounds, strict=True)
    )
    lengths = [trunk, *(len(text.ids) - trunk for text in rounds)]
    branches = np.repeat(np.arange(len(lengths)), lengths)
    positions = np.concatenate([np.arange(trunk), *(np.arange(trunk, len(text.ids)) for text in rounds)])
    text = Encoded(*columns)
    # What a branch begins with would be learnt from the token before it, and that is another branch's.
    text.learnt[1:][branches[1:] != branches[:-1]] = False
    return Tree(text, branches, positions)
