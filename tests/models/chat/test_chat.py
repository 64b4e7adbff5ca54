"""A talk: what comes piece by piece is what the model says, and what goes wrong is told in a line."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import models.without_torchvision  # isort: skip  # noqa: F401
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from models.captioners.inputs import ProcessorInputs
from models.chat.__main__ import main
from models.chat.talk import Talk, TalkError
from models.data.chat import ChatTemplate, Turn, ready_to_chat
from models.export.loading import ANSWERS


def whole(folder: Path, said: list[dict[str, Any]], images: list[Image.Image], tokens: int) -> str:
    """The answer at once."""
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    model.eval()
    processor = AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    text = processor.apply_chat_template(said, add_generation_prompt=True)
    given = processor(images=images or None, text=text, return_tensors="pt")
    with torch.inference_mode():
        found = model.generate(**given, max_new_tokens=tokens, do_sample=False)
    return str(processor.tokenizer.decode(found[0, given["input_ids"].shape[1] :], skip_special_tokens=True))


def user(text: str, images: int = 0) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}


def test_pieces_are_the_answer_and_the_next_question_knows_what_was_said(llava: Path, picture: Path) -> None:
    talk = Talk.load(llava, [picture])
    images = [Image.open(picture).convert("RGB")]
    first = "".join(talk.ask("what is this?", 8))
    assert first
    assert first == whole(llava, [user("what is this?", 1)], images, 8)
    answer = {"role": "assistant", "content": [{"type": "text", "text": first.strip()}]}
    second = "".join(talk.ask("red?", 8))
    assert second == whole(llava, [user("what is this?", 1), answer, user("red?")], images, 8)


def test_a_talk_about_nothing_needs_no_image(llava: Path) -> None:
    assert "".join(Talk.load(llava, []).ask("what?", 4)) == whole(llava, [user("what?")], [], 4)


def test_an_answer_that_is_broken_off_counts_as_far_as_it_came(llava: Path, picture: Path) -> None:
    talk = Talk.load(llava, [picture])
    pieces = talk.ask("what is this?", 60)
    begun = next(pieces)
    pieces.close()
    assert talk._said[-1]["content"][0]["text"] == begun.strip()
    assert "".join(talk.ask("red?", 4)) == talk._said[-1]["content"][0]["text"] != ""


def test_a_talk_longer_than_the_model_reads_is_told(llava: Path) -> None:
    with pytest.raises(TalkError, match="the model reads 96; begin a new talk"):
        list(Talk.load(llava, []).ask("what is this? " * 60))


def ran(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_one_question_needs_no_terminal(llava: Path, picture: Path) -> None:
    result = ran(llava, "--image", picture, "--ask", "what is this?", "--tokens", "8")
    assert result.exit_code == 0
    images = [Image.open(picture).convert("RGB")]
    assert result.stdout == whole(llava, [user("what is this?", 1)], images, 8) + "\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("MODEL", "--image", "gone.jpg", "--ask", "?"), "there is no image gone.jpg; name a JPEG"),
        (("MODEL", "--image", "TEXT", "--ask", "?"), "cannot be looked at"),
        (("MODEL", "--image", "FOLDER", "--ask", "?"), "is a folder; name one image"),
        (("MODEL", "--ask", "  "), "--ask is empty"),
        (("MODEL",), "there is no terminal to talk in; give one question with --ask"),
        (("nowhere", "--ask", "?"), "there is no folder nowhere"),
        (("FOLDER", "--ask", "?"), "holds no model that talks"),
    ],
)
def test_what_goes_wrong_is_told_in_a_line(
    arguments: tuple[str, ...], told: str, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder").mkdir()
    places = {"MODEL": str(llava), "TEXT": "text.jpg", "FOLDER": "folder"}
    result = ran(*(places.get(argument, argument) for argument in arguments))
    assert result.exit_code == 1
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_in_a_terminal_it_goes_on_until_it_is_told_to_end(llava: Path, picture: Path) -> None:
    """An empty line is answered with a hint; Ctrl-D ends."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "models.chat", str(llava), "--image", str(picture), "--tokens", "4"]
    with subprocess.Popen(
        command, stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(follower)
        os.write(leader, b"\nwhat is this?\n\x04")
        out, errors = process.communicate(timeout=120)
    os.close(leader)
    assert process.returncode == 0, errors
    assert "say something, or end with Ctrl-D" in errors
    images = [Image.open(picture).convert("RGB")]
    assert whole(llava, [user("what is this?", 1)], images, 4) in out


STRINGS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content.strip() + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""As Vicuna's: it joins strings, and writes the first token itself."""


@pytest.mark.parametrize("exported", [True, False])
def test_what_is_asked_begins_as_what_was_learnt(
    exported: bool, llava: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`exported`: the folder is as a training leaves it; else somebody's whose template knows strings alone."""
    folder = tmp_path / "model"
    shutil.copytree(llava, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = STRINGS
    learnt = ready_to_chat(tokenizer)
    # As captions' tokenizers of the hub do: a first token before every text, beside the one that the template writes.
    first = (tokenizer.bos_token, tokenizer.bos_token_id)
    learnt.backend_tokenizer.post_processor = TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
    learnt.save_pretrained(folder)
    if not exported:
        (folder / "chat_template.jinja").write_text(STRINGS)
    turns = [Turn("user", (None, "\nwhat is this?")), Turn("assistant", ("a red square",))]
    expected = ChatTemplate(learnt).encode(turns, [4])
    prompt = expected.ids[: int(expected.learnt.argmax())].tolist()
    assert prompt.count(tokenizer.bos_token_id) == 1

    talk = Talk.load(folder, [picture])
    asked: list[list[int]] = []
    generate = talk._model.generate

    def generating(**given: Any) -> Any:
        asked.append(given["input_ids"][0].tolist())
        return generate(**given)

    monkeypatch.setattr(talk._model, "generate", generating)
    list(talk.ask(" what is this? ", 2))
    inputs = ProcessorInputs(folder, "llava")
    image = np.full((20, 20, 3), 90, np.uint8)
    asked.append(inputs([image], ["what is this?"])["input_ids"][0].tolist())
    if exported:
        scope: dict[str, Any] = {}
        code = ANSWERS.replace("THIS FOLDER", str(folder)).replace("picture.jpg", str(picture))
        exec(code, scope)  # the card's own lines
        asked.append(scope["inputs"]["input_ids"][0].tolist())
    assert asked == [prompt] * len(asked)
