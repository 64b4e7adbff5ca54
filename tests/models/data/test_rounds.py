"""Rounds apart: each question is read as if it were the first, and all images are looked at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from models.data.chat import ChatTemplate, Encoded, Turn
from models.data.collate import Room
from models.data.conversations import Conversations, turns_of
from models.data.images import normalise
from models.data.rounds import MISFITS, TRUNK, Tree, _tree
from models.data.shards import Damaged, Sample
from models.objectives.language import NextToken
from models.recipe import Data, Recipe, RecipeError
from models.towers.language_model import CausalLanguageModel
from models.towers.llava import Llava
from models.train.accumulate import System, gradients
from models.train.loop import train
from models.train.parallel import Place
from tests.models.data import talks
from tests.models.towers import seeing

ROUNDS = [("What colour?", "red"), ("Which shape?", "a circle"), ("What colour? Which shape?", "red, a circle.")]


def talk(images: int = 1, system: str | None = None, first: str | None = None) -> Sample:
    """A conversation of three rounds. `first`: its first question, if it is another."""
    said = [("system", system)] if system else []
    for number, (question, answer) in enumerate(ROUNDS):
        shown = (first or "<image>\n" * images + question) if number == 0 else question
        said += [("human", shown), ("gpt", answer)]
    pictures = [talks.shape(Random(number))[0] for number in range(images)]
    return talks.sample(talks.talk("a", pictures, said))


def alone(number: int, images: int = 1, system: str | None = None) -> Sample:
    """Its round of that number and no other."""
    question, answer = ROUNDS[number]
    said = [("system", system)] if system else []
    said += [("human", "<image>\n" * images + question), ("gpt", answer)]
    pictures = [talks.shape(Random(number))[0] for number in range(images)]
    return talks.sample(talks.talk("a", pictures, said))


def apart_of(said: Data, turns: str | None, context: int = 160) -> Data:
    return said.model_copy(update={"texts": said.texts.model_copy(update={"turns": turns, "context": context})})


def data(turns: str | None = "apart", context: int = 160) -> Data:
    return apart_of(talks.recipe().data, turns, context)


def read(sample: Sample, seed: int = 0, **settings: Any) -> Tree:
    tree: Tree = Conversations(data(**settings), seeing.tokenizer()).row(sample, Random(seed), Room(), 0).tree
    return tree


@pytest.mark.parametrize("system", [None, "Say hello."])
@pytest.mark.parametrize("images", [1, 2])
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
    sample, heard = talk(), set[tuple[str, ...]]()
    room = len(read(sample).text.ids) - 1
    for seed in range(40):
        tree = read(sample, seed, context=room)
        assert len(tree.text.ids) <= room
        heard.add(tuple(sorted(seeing.tokenizer().decode(tree.text.ids[tree.text.learnt]).split("<|endoftext|>"))))
    assert len(heard) >= 3
    trunk = int(read(sample).text.image.nonzero()[0][-1]) + 1
    shortest = min(int((read(sample).branches == branch).sum()) for branch in (1, 2, 3))
    short = {tuple(read(sample, seed, context=trunk + shortest).text.ids.tolist()) for seed in range(20)}
    assert short == {tuple(read(alone(0), context=200).text.ids.tolist())}, "the one that fits"
    with pytest.raises(Damaged, match="no answer within the context"):
        read(sample, context=trunk + 2)


def test_where_no_round_fits_one_is_cut_and_it_is_drawn_which() -> None:
    said = [
        ("human", "<image>\nWhat colour?"),
        ("gpt", "red " * 60),
        ("human", "Which shape?"),
        ("gpt", "circle " * 60),
    ]
    picture = talks.shape(Random(0))[0]
    sample = talks.sample(talks.talk("a", [picture], said))
    found = [read(sample, seed, context=40) for seed in range(20)]
    assert {len(tree.text.ids) for tree in found} == {40}
    assert len({tuple(tree.text.ids.tolist()) for tree in found}) == 2


def test_of_thousands_of_rounds_few_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of some megabytes would fill the memory with copies of its image's places."""
    tried, encode = list[int](), ChatTemplate.encode

    def counted(own: ChatTemplate, turns: Sequence[Turn], images: Sequence[int]) -> Encoded:
        tried.append(len(turns))
        return encode(own, turns, images)

    monkeypatch.setattr(ChatTemplate, "encode", counted)
    collate = Conversations(data(), seeing.tokenizer())
    said = [("human", "<image>\nWhat colour?"), ("gpt", "red")] + 2000 * [("human", "Which shape?"), ("gpt", "circle")]
    picture = talks.shape(Random(0))[0]
    sample = talks.sample(talks.talk("a", [picture], said))
    tried.clear()
    tree = collate.row(sample, Random(0), Room(), 0).tree
    assert len(tree.text.ids) <= 160
    assert len(tried) == tree.branches.max() + MISFITS


def test_rounds_that_cannot_stand_alone_stay_as_they_are() -> None:
    """What is shown further on would be seen by earlier rounds, too; words on both sides of an image say which it is;
    and without images there is nothing to be looked at once."""
    later = [("human", "<image>\nWhat?"), ("gpt", "yes"), ("human", "<image>\nand this?"), ("gpt", "no")]
    members = talks.talk("a", [talks.shape(Random(number))[0] for number in range(2)], later)
    for sample in (
        talks.sample(members),
        talk(first="In <image> what colour?"),
        talk(images=2, first="<image> What colour? <image>\n"),
        talk(images=0),
    ):
        tree = read(sample)
        assert (tree.branches == TRUNK).all()
        assert tree.text.ids.tolist() == read(sample, turns=None).text.ids.tolist()
        assert tree.positions.tolist() == list(range(len(tree.positions)))


@pytest.mark.parametrize("first", ["What colour?\n<image>", "<image>What colour?", "<image>\nWhat colour?"])
def test_wherever_the_first_question_shows_its_image_it_is_before_all_of_them(first: str) -> None:
    """LLaVA's own data has it before the first question or behind it, and its training puts it first."""
    found, expected = (read(sample).text for sample in (talk(first=first), talk()))
    assert found.ids.tolist() == expected.ids.tolist()
    two = (
        read(talk(images=2, first=first)).text.ids
        for first in ("<image> <image>\nWhat colour?", "<image>\n<image>\nWhat colour?")
    )
    assert next(two).tolist() == next(two).tolist()


def test_blanks_around_a_later_question_are_those_of_no_question() -> None:
    said = [("human", "<image>\nWhat colour?"), ("gpt", "red"), ("human", "\n Which shape? "), ("gpt", "a circle")]
    picture = talks.shape(Random(0))[0]
    tree = read(talks.sample(talks.talk("a", [picture], said)))
    told = [tree.text.ids[(tree.branches == TRUNK) | (tree.branches == branch)].tolist() for branch in (1, 2)]
    assert sorted(told) == sorted(read(alone(number), turns=None).text.ids.tolist() for number in (0, 1))


def test_a_branch_that_began_with_an_answer_would_not_be_learnt_from_another() -> None:
    texts = [
        Encoded(np.array([1, 2, answer, 9]), np.array([False, False, True, True]), np.zeros(4, np.bool_))
        for answer in (3, 4)
    ]
    tree = _tree(texts, 2)
    assert tree.text.ids.tolist() == [1, 2, 3, 9, 4, 9]
    assert tree.text.learnt.tolist() == [False, False, True, True, False, True]


@pytest.mark.parametrize("kind", ["mlp", "tiles"])
@pytest.mark.parametrize("micro", [None, 2])
def test_loss_and_gradients_are_those_of_as_many_conversations_of_one_round(kind: str, micro: int | None) -> None:
    """Also where several trees lie in one row, and some have no image. Norms of transformers' Llama are in float32."""
    samples = [talk(images) for images in (1, 2, 1)] + [alone(1), alone(2, 0)]
    each = [alone(number, images) for images in (1, 2, 1) for number in range(3)] + [alone(1), alone(2, 0)]
    found, expected = step(kind, samples, "apart", micro), step(kind, each, None, None)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-7, rtol=1e-6, msg=name)


def step(kind: str, samples: list[Sample], turns: str | None, micro: int | None) -> dict[str, torch.Tensor]:
    """The loss of all answers, and its gradients."""
    said = talks.recipe(seeing.KINDS[kind][0]).data
    collate = Conversations(apart_of(said, turns), seeing.tokenizer())
    rows = [collate.row(sample, Random(number), Room(), 0) for number, sample in enumerate(samples)]
    model = seeing.model(kind)
    batch = normalise({**collate.batch(rows), "position": torch.arange(len(rows))}, said.images)
    losses = gradients(System(model, [NextToken()], [1.0], Place.here()), batch, 0, micro)
    return {"loss": losses} | {name: own.grad for name, own in model.named_parameters() if own.grad is not None}


def test_another_round_changes_nothing_of_an_answer() -> None:
    tree, model = read(talk()), seeing.model("mlp").eval()
    collate = Conversations(data(), seeing.tokenizer())
    batch = dict(collate.batch([collate.row(talk(), Random(0), Room(), 0)]))
    del batch["learnt"]  # then all tokens have logits
    other = (tree.branches == 2).nonzero()[0]
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, other] = 7
    with torch.no_grad():
        before, after = model(batch)["logits"], model(changed)["logits"]
    same = np.delete(np.arange(len(tree.branches)), other)
    torch.testing.assert_close(before[0, same], after[0, same], atol=0, rtol=0)
    assert not torch.equal(before[0, other], after[0, other])


def window(tokens: int) -> dict[str, Any]:
    """A language model that sees so far."""
    said = talks.recipe().model.parameters["config"]
    return {**said, "text_config": {**said["text_config"], "model_type": "mistral", "sliding_window": tokens}}


def test_a_model_that_no_mask_can_tell_who_sees_what_is_refused_before_its_training(tmp_path: Path) -> None:
    recipe = talks.recipe(settings={"config": window(159)}, data=data().model_dump())
    with pytest.raises(
        RecipeError, match=r"data.texts.turns = apart: texts of 160 tokens and a language model that sees 159"
    ):
        train(recipe, talks.sets(tmp_path / "sets"), str(tmp_path / "out"))
    Llava(window(160), tokenizer=seeing.tokenizer()).check_branches(160)
    mixed = seeing.model("mlp")
    mixed.model.model.language_model.config.layer_types = ["conv", "full_attention"]
    with pytest.raises(ValueError, match="conv layers; expected attention alone"):
        mixed.check_branches(10)
    with pytest.raises(ValueError, match="pack = False; expected packed texts"):
        seeing.model("mlp", pack=False).check_branches(10)
    eager = seeing.model("mlp")
    eager.model.model.language_model.set_attn_implementation("eager")
    collate = Conversations(data(), seeing.tokenizer())
    with pytest.raises(ValueError, match="eager attention; expected sdpa; leave"):
        eager(collate.batch([collate.row(talk(), Random(0), Room(), 0)]))
    with pytest.raises(ValueError, match="CausalLanguageModel has no branches; leave"):
        CausalLanguageModel(
            talks.recipe().model.parameters["config"]["text_config"] | {"vocab_size": 300}
        ).check_branches(9)


def test_a_pair_is_one_round() -> None:
    sample = talks.sample(talks.pair(3))
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
    with pytest.raises(RecipeError, match=r"turns = 'together': .*expected apart; leave it out for turns that follow"):
        Recipe.load("llava", tiny=True, overrides=["data.texts.turns=together"])
