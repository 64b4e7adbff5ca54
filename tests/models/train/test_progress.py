"""What is shown of a training, and written for others to show."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest
from rich.console import Console
from rich.text import Text
from tensorboardX.proto.event_pb2 import Event

from models.train.progress import Board, describe

ROW = {"loss": 2.5, "learning_rate": 1e-3, "gradient_norm": 1.0, "samples_per_second": 1234.5, "tokens_per_second": 0.0}


def events(folder: Path) -> dict[tuple[str, int], float]:
    """What an event file holds: records of length (8 bytes), a checksum (4), an event, a checksum (4)."""
    found: dict[tuple[str, int], float] = {}
    for path in folder.glob("events*"):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            data = data[16 + length :]
    return found


def test_without_a_terminal_there_are_plain_lines_and_not_too_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Board(str(tmp_path), "clip", 1000, 0, {}) as board:
        for samples in range(100, 1001, 100):
            board.show(samples, ROW)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("clip: 100 of 1,000 samples, ")
    assert lines[1].startswith("clip: 1,000 of 1,000 samples, 0 s left; loss 2.5000, 1,234.5 samples/s, rate 1.00e-03")


def test_on_a_terminal_a_bar_shows_speed_losses_rate_and_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, clock = io.StringIO(), [1000.0]
    terminal = Console(file=screen, force_terminal=True, force_interactive=True, width=200, get_time=lambda: clock[0])
    monkeypatch.setattr("models.train.progress.Console", lambda stderr: terminal)
    row = {"InfoNCE": 1.0, "NextToken": 2.0, **ROW, "tokens_per_second": 5e4, "mfu": 0.414}
    with Board(str(tmp_path), "clip", 1000, 200, {}) as board:
        for samples in (300, 400, 500):
            clock[0] += 10
            board.show(samples, row)
        board.advance(550)
    shown = Text.from_ansi(screen.getvalue().replace("\r", "\n")).plain.splitlines()
    last = [line for line in shown if line.startswith("clip")][-1]
    assert re.match(r"clip ━+ *╺?━* *550/1000 0:00:\d\d ", last), last
    assert "InfoNCE 1.0000, NextToken 2.0000, loss 2.5000, 1,234.5 samples/s, 50,000 tokens/s, rate 1.00e-03" in last
    assert "MFU 41.4%" in last
    assert "samples, " not in screen.getvalue(), "plain lines are for what is no terminal"


def test_a_line_names_parts_of_the_loss_tokens_and_mfu_where_there_are_some() -> None:
    row = {"loss": 3.0, "InfoNCE": 1.0, "NextToken": 2.0, **ROW, "tokens_per_second": 5e4, "mfu": 0.414}
    told = "loss 2.5000, InfoNCE 1.0000, NextToken 2.0000, 1,234.5 samples/s, 50,000 tokens/s, rate 1.00e-03, MFU 41.4%"
    assert describe(row) == told


def test_tensorboard_gets_every_figure_by_samples(tmp_path: Path) -> None:
    with Board(str(tmp_path), "clip", 1000, 0, {}) as board:
        board.show(100, ROW)
        board.show(200, {**ROW, "loss": 1.5})
    found = events(tmp_path / "tensorboard")
    assert found["train/loss", 100] == 2.5
    assert found["train/loss", 200] == 1.5
    assert found["train/samples_per_second", 200] == 1234.5


def test_weights_and_biases_is_asked_only_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Run:
        def define_metric(self, name: str, step_metric: str) -> None:
            assert (name, step_metric) == ("train/*", "samples"), "after going back, its own steps would be dropped"

        def log(self, row: Any) -> None:
            calls.append((row["train/loss"], row["samples"]))

        def finish(self, exit_code: int) -> None:
            calls.append(exit_code)

    def init(**given: Any) -> Run:
        calls.append(given)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with Board(str(tmp_path / "a"), "clip", 100, 0, {"seed": 0}) as board:
        board.show(100, ROW)
    assert calls == []
    for out, done in (("b/out", 0), ("c/out", 0), ("b/out", 50), ("b/out", 0)):
        with Board(str(tmp_path / out), "clip", 100, done, {"seed": 0}, wandb="mine") as board:
            board.show(100, ROW)
    first, other, again, anew = calls[::3]
    assert first == {"project": "mine", "name": "clip", "id": ANY, "config": {"seed": 0}, "resume": "allow"}
    assert first["id"] == again["id"]
    assert len({first["id"], other["id"], anew["id"]}) == 3
    assert calls[1:3] == [(2.5, 100), 0]
