"""Conversations by language models: what they are asked, what is read from their answers, and that these are judged."""

from __future__ import annotations

import io
import json
import urllib.error
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import LlamaConfig, LlamaForCausalLM

from models.captioners.speaker import Speaker
from models.data.chat import ready_to_chat
from models.data.shards import Samples
from models.data.tokenizer import trained
from pipeline.errors import SluiceError
from pipeline.stage import Device
from pipeline.store import Store
from stages.conversations import ConversationsByModel, ConversationsByServer
from stages.conversations.written import filled, read_from
from tests.stages.conversations.conftest import made, sample, tars, turns, uid, write_pairs

CAPTION = "Two red circles beside a dog."


@pytest.mark.parametrize(
    "answer",
    [
        '[{"question": "How many?", "answer": "Two."}, {"question": "What\\nelse?", "answer": "A dog."}]',
        'Sure! ```json\n[{"question": "How many?", "answer": "Two."}, {"question": "What else?", "answer": "A dog."}]',
        "Q: How many?\nA: Two.\nQ: What else?\nA: A dog.",
        "Question 1: How many? Answer 1: Two. Question 2: What else? Answer 2: A dog.",
    ],
)
def test_questions_are_read_from_json_and_from_lines(answer: str) -> None:
    assert list(read_from(answer)) == [("How many?", "Two."), ("What else?", "A dog.")]


@pytest.mark.parametrize("answer", ["I would rather not.", "[1, 2", "[]", '["a"]'])
def test_an_answer_without_a_question_stays_to_be_looked_at(answer: str) -> None:
    assert list(read_from(answer)) == [("", answer)]


def test_captions_and_boxes_are_filled_in() -> None:
    said = sample(0, "a  dog", "a cat", boxes=[{"label": "dog", "box": [0, 0.5, 1, 1]}])
    assert filled("{captions}|{boxes}", said) == "- a dog\n- a cat|- dog: 0.00, 0.50, 1.00, 1.00"
    assert filled("{boxes}", sample(0, "a dog")) == "none"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a server is asked; it answers by the kind that it is asked for."""
    asked: list[str] = []

    def posted(self: Any, body: bytes) -> str:
        said = json.loads(body)
        (message,) = said["messages"]
        assert isinstance(message["content"], str), "no image is sent"
        asked.append(message["content"])
        if "Describe" in message["content"]:
            return '[{"question": "Describe the image in detail.", "answer": "Two red circles lie beside a dog."}]'
        if "reason" in message["content"]:
            return '[{"question": "Why is the dog there?", "answer": "Because seven unicorns invited everybody."}]'
        return (
            '[{"question": "How many circles?", "answer": "Two"}, {"question": "How many circles?", "answer": "Two"}, '
            '{"question": "What is it?", "answer": "As an AI, I cannot see images."}]'
        )

    monkeypatch.setattr("models.captioners.server.Server._posted", posted)
    return asked


def test_a_server_is_asked_for_every_kind_and_its_turns_are_judged(store: Store, answers: list[str]) -> None:
    pairs = write_pairs(store, [[sample(0, CAPTION), sample(1)]])
    stage = ConversationsByServer(server="http://127.0.0.1:1/v1", model="speaker")
    rows = turns(store, made(store, stage, pairs))
    assert len(answers) == 3, "a sample without a caption is none to ask about"
    assert all(f"- {CAPTION}" in text for text in answers)
    assert [(row["kind"], row["verdict"]) for row in rows] == [
        ("question", "kept"),
        ("question", "duplicate"),
        ("question", "refusal"),
        ("reasoning", "ungrounded"),
        ("description", "kept"),
    ]
    assert {row["source"] for row in rows} == {"speaker"}


def test_of_what_a_model_wrote_every_kept_turn_is_said_in_its_order(store: Store, answers: list[str]) -> None:
    pairs = write_pairs(store, [[sample(number, CAPTION) for number in range(20)]])
    generation = made(store, ConversationsByServer(server="http://127.0.0.1:1/v1", model="speaker"), pairs)
    (path,) = tars(store, generation)
    said = [json.loads(members["json"])["conversations"] for _, members in Samples.open(str(path))]
    assert [[turn["kind"] for turn in one[1::2]] for one in said] == [["question", "description"]] * 20


def test_prompts_of_ones_own_need_every_kind_and_a_place_for_captions(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("question: 'Ask about {captions}'\nreasoning: why?\n")
    server = {"server": "http://127.0.0.1:1/v1", "model": "speaker", "prompts": str(path)}
    ConversationsByServer(kinds=("question",), **server).check([])
    with pytest.raises(SluiceError, match=r"has no 'reasoning' with {captions} in it"):
        ConversationsByServer(kinds=("question", "reasoning"), **server).check([])


@pytest.fixture
def speaker(tmp_path: Path) -> Path:
    """A language model of random weights, in its folder."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = ready_to_chat(trained([CAPTION, "a dog on a red ground"] * 2, 300, 64))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=1200, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, initializer_range=0.5,
    )  # fmt: skip
    folder = tmp_path / "speaker"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_answers_do_not_depend_on_who_else_is_asked(speaker: Path) -> None:
    model = Speaker.load(speaker, "cpu", "float32")
    texts = ["a dog", "two red circles beside a dog on a red ground", "circles"]
    together = model.answer(texts, 6, batch=3)
    assert together == [model.answer([text], 6)[0] for text in texts]
    assert any(together)


def test_a_text_that_fills_the_context_has_no_answer_and_takes_no_room_from_others(speaker: Path) -> None:
    model = Speaker.load(speaker, "cpu", "float32")
    count = len(model._tokenizer(" a dog", add_special_tokens=False)["input_ids"])
    near = "a dog" + " a dog" * (1190 // count - 3)  # leaves room for a few tokens, and its neighbour has more
    texts = ["a dog on a red ground " * 400, "a dog", near]
    together = model.answer(texts, 30, batch=3)
    assert together == [model.answer([text], 30)[0] for text in texts]
    assert together[0] is None
    assert None not in together[1:]


def test_a_sample_too_long_for_the_model_has_a_row_that_says_so(speaker: Path) -> None:
    stage = ConversationsByModel(model=str(speaker), most_tokens=4, kinds=("description",))
    long = (uid(0), list[tuple[str, bytes]](), sample(0, "a dog on a red ground " * 400))
    turns_of_long, others = stage.open(Device())([long, (uid(1), [], sample(1, CAPTION))])
    (row,) = stage._rows(long, turns_of_long)
    assert (row["kind"], row["answer"], row["verdict"]) == ("description", "", "too_long")
    assert others[0].verdict is None


@pytest.mark.parametrize(
    "told",
    [
        b"This model's maximum context length is 4096 tokens. However, you requested 5000.",
        b'{"error": {"code": "context_length_exceeded"}}',
        b"the request exceeds the available context size",
    ],
)
def test_what_a_server_finds_too_long_has_a_row_that_says_so(
    told: bytes, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def posted(self: Any, body: bytes) -> str:
        if b"seven seas" in body:
            raise urllib.error.HTTPError("http://a", 400, "", Message(), io.BytesIO(told))
        return '[{"question": "How many circles?", "answer": "Two"}]'

    monkeypatch.setattr("models.captioners.server.Server._posted", posted)
    pairs = write_pairs(store, [[sample(0, "seven seas"), sample(1, CAPTION)]])
    stage = ConversationsByServer(server="http://127.0.0.1:1/v1", model="speaker", kinds=("question",))
    generation = made(store, stage, pairs)
    assert [(row["uid"], row["verdict"]) for row in turns(store, generation)] == [
        (uid(0), "too_long"),
        (uid(1), "kept"),
    ]
    assert generation.statuses == {"too_long": 1, "kept": 1}


def test_a_model_in_a_folder_writes_and_what_is_no_question_is_kept_as_such(store: Store, speaker: Path) -> None:
    """Random weights say nothing."""
    stage = ConversationsByModel(model=str(speaker), most_tokens=4, kinds=("description",))
    ((turn,),) = stage.open(Device())([(uid(0), [], sample(0, CAPTION))])
    assert (turn.kind, turn.question, turn.source) == ("description", "", str(speaker))
    with pytest.raises(SluiceError, match="no turn was kept"):
        made(store, stage, write_pairs(store, [[sample(0, CAPTION)]]))


def test_what_is_no_language_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no language model"):
        Speaker.load(tmp_path, "cpu", "float32")
