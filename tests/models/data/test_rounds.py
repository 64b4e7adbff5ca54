"""Rounds apart: each question is read as if it were the first, and all images are looked at once."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from models.data.conversations import Conversations, turns_of
from models.data.rounds import TRUNK, Tree
from models.data.shards import Damaged, Sample
from models.objectives.language import NextToken
from models.recipe import Data, Recipe, RecipeError
from models.towers.llava import Llava
from tests.models.data import talks
from tests.models.towers import seeing

ROUNDS = [("What colour?", "red"), ("Which shape?", "a circle"), ("What colour? Which shape?", "red, a circle.")]


def talk(images: int = 1, system: str | None = None, first: str | None = None) -> Sample:
    """A conversation of three rounds."""
    said = [("system", system)] if system else []
    for number, (question, answer) in enumerate(ROUNDS):
        ahead = (first or "<image>\n" * images) if number == 0 else ""
        said += [("human", ahead + question), ("gpt", answer)]
    pictures = [talks.shape(Random(number))[0] for number in range(images)]
    return Sample("a", {name.partition(".")[2]: value for name, value in talks.talk("a", pictures, said)})


def alone(number: int, images: int = 1, system: str | None = None) -> Sample:
    """Its round of that number and no other."""
    question, answer = ROUNDS[number]
    said = [("system", system)] if system else []
    said += [("human", "<image>\n" * images + question), ("gpt", answer)]
    pictures = [talks.shape(Random(number))[0] for number in range(images)]
    return Sample("a", {name.partition(".")[2]: value for name, value in talks.talk("a", pictures, said)})


def data(turns: str | None = "apart", context: int = 160) -> Data:
    said = talks.recipe().data
    return said.model_copy(update={"texts": said.texts.model_copy(update={"turns": turns, "context": context})})


def read(sample: Sample, seed: int = 0, **settings: Any) -> Tree:
    tree: Tree = Conversations(data(**settings), seeing.tokenizer()).row(sample, Random(seed), {}, 0).tree
    return tree


@pytest.mark.parametrize("system", [None, "Say hello."])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_every_branch_behind_the_trunk_is_a_conversation_of_its_round(images: int, system: str | None) -> None:
    tree = read(talk(images, system))
    found = []
    for branch in range(1, tree.branches.max() + 1):
        own = (tree.branches == TRUNK) | (tree.branches == branch)
        assert tree.positions[own].tolist() == list(range(own.sum()))
        found.append([column[own].tolist() for column in tree.text])
    expected = [
        [column.tolist() for column in read(alone(number, images, system), turns=None).text] for number in range(3)
    ]
    assert sorted(found) == sorted(expected)
    assert tree.text.image.sum() == images * talks.TOKENS, "seen once"
    assert (tree.branches[tree.text.image] == TRUNK).all()


def test_of_more_rounds_than_the_context_holds_some_are_drawn_anew_each_time() -> None:
    sample, heard = talk(), set()
    room = len(read(sample).text.ids) - 1
    for seed in range(40):
        tree = read(sample, seed, context=room)
        assert len(tree.text.ids) <= room
        heard.add(tuple(sorted(seeing.tokenizer().decode(tree.text.ids[tree.text.learnt]).split("<|endoftext|>"))))
    assert len(heard) >= 3
    with pytest.raises(Damaged, match="no answer within the context"):
        read(sample, context=int(read(sample).text.image.nonzero()[0][-1]) + 2)


def test_rounds_that_cannot_stand_alone_stay_as_they_are() -> None:
    """What is shown further on is seen by earlier rounds, too, if they see all images."""
    later = [("human", "<image>\nWhat?"), ("gpt", "yes"), ("human", "<image>\nand this?"), ("gpt", "no")]
    members = talks.talk("a", [talks.shape(Random(number))[0] for number in range(2)], later)
    for sample in (
        Sample("a", {name.partition(".")[2]: value for name, value in members}),
        talk(first="Look: <image>\n"),
    ):
        tree = read(sample)
        assert (tree.branches == TRUNK).all()
        assert tree.text.ids.tolist() == read(sample, turns=None).text.ids.tolist()
        assert tree.positions.tolist() == list(range(len(tree.positions)))


@pytest.mark.parametrize("pack", [True, False])
def test_loss_and_gradients_are_those_of_as_many_conversations_of_one_round(pack: bool) -> None:
    """Also where several trees lie in one row, and some have no image. Norms of transformers' Llama are in float32."""
    samples = [talk(images) for images in (1, 2, 0, 1)] + [alone(1)]
    each = [alone(number, images) for images in (1, 2, 0, 1) for number in range(3)] + [alone(1)]
    found, expected = step(samples, "apart", pack), step(each, None, pack)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-7, rtol=1e-6, msg=name)


def step(samples: list[Sample], turns: str | None, pack: bool) -> dict[str, torch.Tensor]:
    """The loss of all answers, and its gradients."""
    collate = Conversations(data(turns), seeing.tokenizer())
    # of every conversation the images are `shape(0)` and so on, so that all rounds ask about the same
    rows = [collate.row(sample, Random(number), {}, 0) for number, sample in enumerate(samples)]
    model = seeing.model("mlp", pack=pack).double()
    batch = collate.batch(rows)
    total, count = NextToken()(model({**batch, "pixel_values": batch["pixel_values"].double()}), {})
    assert count == sum(row.tree.text.learnt.sum() for row in rows)
    (total / count).backward()
    return {"loss": total / count} | {name: own.grad for name, own in model.named_parameters() if own.grad is not None}


def test_another_round_changes_nothing_of_an_answer() -> None:
    tree, model = read(talk()), seeing.model("mlp").eval()
    collate = Conversations(data(), seeing.tokenizer())
    batch = collate.batch([collate.row(talk(), Random(0), {}, 0)])
    del batch["learnt"]  # then all tokens have logits
    other = (tree.branches == 2).nonzero()[0]
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, other] = 7
    with torch.no_grad():
        before, after = model(batch)["logits"], model(changed)["logits"]
    same = np.delete(np.arange(len(tree.branches)), other)
    torch.testing.assert_close(before[0, same], after[0, same], atol=0, rtol=0)
    assert not torch.equal(before[0, other], after[0, other])


def test_a_language_model_that_no_mask_can_tell_who_sees_what_is_refused() -> None:
    said = talks.recipe().model.parameters["config"]
    speaker = {**said["text_config"], "model_type": "mistral", "sliding_window": 16}
    collate = Conversations(data(), seeing.tokenizer())
    batch = collate.batch([collate.row(talk(), Random(0), {}, 0)])
    with pytest.raises(ValueError, match=r"texts.turns = apart .* window of 16 tokens"):
        Llava({**said, "text_config": speaker}, tokenizer=seeing.tokenizer())(batch)
    eager = Llava(said, tokenizer=seeing.tokenizer())
    eager.model.model.language_model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=r"texts.turns = apart and attn_implementation = 'eager'"):
        eager(batch)


def test_a_pair_is_one_round() -> None:
    members = {name.partition(".")[2]: value for name, value in talks.pair(3)}
    sample = Sample("a", members)
    assert [turn.role for turn in turns_of(sample, 1, Random(0))] == ["user", "assistant"]
    tree = read(sample)
    assert tree.branches.max() == 1
    assert tree.text.ids.tolist() == read(sample, turns=None).text.ids.tolist()


def test_only_conversations_have_turns_to_be_read_apart() -> None:
    told = r"texts\.turns = apart is for conversations; leave it out"
    with pytest.raises(RecipeError, match=told):
        Recipe.load("clip-vit-b32", tiny=True, overrides=["data.texts.turns=apart"])
    recipe = Recipe.load("llava", tiny=True, overrides=["data.texts.turns=apart"])
    assert recipe.data.texts.turns == "apart"
    with pytest.raises(RecipeError, match="turns"):
        Recipe.load("llava", tiny=True, overrides=["data.texts.turns=together"])
