"""What an image is asked for are the tokens of its caption, each once, and the rare ones more than others."""

import math

import pytest
import torch

from models.objectives.caption_tokens import CaptionTokens
from models.trainable import Loss

NOT = -100


def lost(objective: CaptionTokens, logits: torch.Tensor, labels: list[list[int]]) -> Loss:
    return objective.forward({"logits": logits, "labels": torch.tensor(labels)}, {})


def test_knowing_nothing_costs_the_logarithm_of_the_number_of_tokens() -> None:
    loss = lost(CaptionTokens(7), torch.zeros(2, 7), [[1, 2, NOT], [3, 3, 3]])
    assert float(loss.total / loss.count) == pytest.approx(math.log(7))


def test_at_first_every_token_weighs_the_same_however_often_it_is_said() -> None:
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(0))
    likely = logits.log_softmax(1)[0]
    assert float(lost(CaptionTokens(5), logits, [[1, 4, 4, NOT]]).total) == pytest.approx(
        -float(likely[1] + likely[4]) / 2
    )


def test_later_tokens_weigh_by_how_few_captions_had_them() -> None:
    objective, logits = CaptionTokens(5), torch.randn(1, 5, generator=torch.Generator().manual_seed(1))
    before = [[1, 2], [1, 3], [1, NOT], [1, NOT], [1, 2], [1, NOT], [1, NOT], [1, 1]]
    for half in (before[:4], before[4:]):  # two micro-batches of one step
        lost(objective, torch.zeros(4, 5), half)
    objective.after_step()
    rarity = {2: math.log(8 / 3), 3: math.log(8 / 2)}  # 1 is in all eight: ln(8 / 9) < 0, it weighs nothing
    likely = logits.log_softmax(1)[0]
    expected = -sum(weight * float(likely[token]) for token, weight in rarity.items()) / sum(rarity.values())
    found = lost(objective, logits, [[1, 2, 3]])
    assert float(found.total) == pytest.approx(expected)
    assert int(objective.seen) == 8


def test_a_caption_of_nothing_but_what_all_captions_say_is_not_learnt_from() -> None:
    objective = CaptionTokens(5)
    lost(objective, torch.zeros(3, 5), [[1], [1], [1]])
    objective.after_step()
    logits = torch.randn(2, 5, requires_grad=True)
    loss = lost(objective, logits, [[1, NOT], [NOT, NOT]])
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert int(loss.count) == 0
    assert float(loss.total.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_too_many_tokens_are_told_with_the_setting_that_helps() -> None:
    with pytest.raises(ValueError, match="tokens = 5: the model gives 'logits' of 9 numbers; set tokens to 9"):
        lost(CaptionTokens(5), torch.zeros(1, 9), [[1]])
    with pytest.raises(ValueError, match="no features 'labels'; this model gives logits"):
        CaptionTokens(5)({"logits": torch.zeros(1, 5)}, {})
