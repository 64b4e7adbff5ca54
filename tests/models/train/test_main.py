"""`python -m models.train`, from tars to a model that transformers loads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoModel, AutoTokenizer

from models.train.__main__ import STOPPED, main
from models.train.progress import Board
from tests.models.data.tars_made import shards


@pytest.fixture(autouse=True)
def _own_cache_and_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def tiny(folder: Path, *more: str) -> Result:
    """Six steps on forty pictures."""
    tars = folder / "tars"
    if not tars.exists():
        shards(tars, range(40), 20)
    said = ("precision=float32", "batch=16", "schedule.warmup=16", "checkpoint_every=32", *more)
    settings = [f"--set={one}" for one in said]
    return call(
        "clip-vit-b32", "--tiny", "--data", f"shards={tars}", "--out", str(folder / "out"), "--samples=96", *settings
    )


def test_help_teaches_by_examples() -> None:
    told = call("--help")
    assert told.exit_code == 0
    assert "python -m models.train clip-vit-b32 --tiny --data shards=" in told.stdout
    assert "torchrun --nproc-per-node 8 -m models.train" in told.stdout
    assert "goes on from the newest checkpoint" in told.stdout


@pytest.mark.fault(55)
def test_stopped_by_a_signal_it_goes_on_and_leaves_a_model_with_its_tokenizer_and_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Board.show

    def show(self: Board, samples: int, row: dict[str, float]) -> None:
        real(self, samples, row)
        if samples == 48:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Board, "show", show)
    stopped = tiny(tmp_path)
    assert stopped.exit_code == STOPPED
    assert "stopped at 64 samples; the same command goes on from there" in stopped.stderr
    tokenizer = (tmp_path / "out" / "tokenizer" / "tokenizer.json").read_bytes()
    finished = tiny(tmp_path)
    assert finished.exit_code == 0, finished.output
    model = Path(finished.stdout.strip())
    assert model == tmp_path / "out" / "model"
    said = json.loads((model / "training.json").read_text())
    assert [row["samples"] for row in said["curve"]] == [16, 32, 48, 64, 80, 96]
    assert AutoModel.from_pretrained(model).config.model_type == "clip"
    assert AutoTokenizer.from_pretrained(model)("picture 3 told 0 times").input_ids
    assert json.loads((model / "tokenizer.json").read_text()) == json.loads(tokenizer)
    assert "clip-vit-b32" in (model / "README.md").read_text()


@pytest.mark.chaos
def test_torchrun_trains_on_two_processes_and_names_the_model_once(tmp_path: Path) -> None:
    shards(tmp_path / "tars", range(40), 20)
    command = ["clip-vit-b32", "--tiny", "--data", f"shards={tmp_path}/tars", "--out", str(tmp_path / "out")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "models.train"]
    settings = ["--samples=96", "--set=batch=16", "--set=schedule.warmup=16", "--set=parallel.mode=fsdp"]
    told = subprocess.run([*torchrun, *command, *settings], capture_output=True, text=True, timeout=500)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split() == [str(tmp_path / "out" / "model")]
    assert json.loads((tmp_path / "out" / "model" / "training.json").read_text())["processes"] == 2


def test_an_objective_that_does_not_fit_the_model_is_one_line_and_leaves_the_folder_alone(tmp_path: Path) -> None:
    matching = "models.objectives.matching.Matching"
    told = tiny(tmp_path, f"objectives=[{matching}]")
    assert told.exit_code == 2
    message = f"error: objectives: {matching} needs match, match_labels, and models.towers.two_towers.TwoTowers gives "
    assert told.stderr == f"{message}image, text; take another model or objective\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clip-vit-b23", "--data=a=b", "--out=o"], "did you mean 'clip-vit-b32'?"),
        (["clip-vit-b32", "--data=a=b", "--out=o", "--set=batsh=3"], "unknown key 'batsh'; did you mean 'batch'?"),
        (
            ["dino-vit-s16", "--data=a=b", "--out=o", "--set=model.momentum=0.9"],
            "model: found models.towers.dino.Dino, momentum; expected one class with its parameters within: "
            "{models.towers.dino.Dino: {name: value}}",
        ),
        (
            ["dino-vit-s16", "--data=a=b", "--out=o", "--set=objectives=[{weight: 1, a.B: {}}]"],
            "objectives.0: found weight, a.B; expected one class with its parameters within: {a.B: {name: value}}",
        ),
        (
            ["dino-vit-s16", "--data=a=b", "--out=o", "--set=objectives=[{a.B: 3}]"],
            "objectives.0: a.B: found 3; expected its parameters: {name: value}",
        ),
        (
            ["dino-vit-s16", "--data=a=b", "--out=o", "--set=objectives=[{}]"],
            "objectives.0: found nothing; expected one class with its parameters within: {package.module.Class: {",
        ),
        (
            ["clip-vit-b32", "--data=a=b", "--out=o", "--samples=1000000"],
            "schedule.warmup = 65536000: as long as all 1,000,000 samples, or longer; set schedule.warmup=…, such as",
        ),
        (["clip-vit-b32", "--data=tars", "--out=o"], "'tars' is no NAME=FOLDER, such as shards=root/shards"),
        (["clip-vit-b32", "--data=web=tars", "--out=o"], "mixture.shards: nothing says where it lies"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = call(*arguments)
    assert told.exit_code == 2
    assert message in " ".join(told.stderr.split())
    assert "Traceback" not in told.output
