"""`sluice caption`: captions of a person's own images, and what is said of files that are none."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from models.captioners.captioner import Captioner
from pipeline import cli
from pipeline.errors import SluiceError
from stages.recaption import command
from stages.recaption.command import caption
from tests.models.captioners import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("own")
    tiny.captioner(folder / "captioner")
    tiny.matcher(folder / "filter")
    (folder / "photos").mkdir()
    dice = np.random.default_rng(0)
    for number in range(3):
        pixels = dice.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    (folder / "photos" / "notes.txt").write_text("no picture")
    return folder


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str, status: int = 0) -> str:
    sink = io.StringIO()
    monkeypatch.setattr(cli, "out", Console(file=sink, width=160))
    monkeypatch.setattr("click.echo", lambda text: print(text, file=sink))
    with pytest.raises(SystemExit) if status else nullcontext() as raised:
        caption.main([*arguments], standalone_mode=False)
    assert (raised.value.code if raised else 0) == status
    return sink.getvalue()


def test_every_image_of_a_folder_gets_its_captions_and_how_well_they_fit(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (str(place / "captioner"), str(place / "photos"), "--candidates", "2", "--filter", str(place / "filter"))
    rows = [json.loads(line) for line in called(monkeypatch, *given, "--json").splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["0.png", "0.png", "1.png", "1.png", "2.png", "2.png"]
    assert all(0 < row["token_probability"] <= 1 and 0 <= row["fits"] <= 1 for row in rows)
    shown = called(monkeypatch, *given)
    assert "2.png" in shown
    assert "%" in shown
    one = str(place / "captioner"), str(place / "photos" / "1.png")
    alone = called(monkeypatch, *one, "--candidates", "2", "--json")
    assert [json.loads(line)["caption"] for line in alone.splitlines()] == [row["caption"] for row in rows[2:4]]
    other = called(monkeypatch, *one, "--seed", "1", "--json")
    assert json.loads(other)["caption"] not in [row["caption"] for row in rows]


def test_a_folder_goes_through_a_few_pictures_at_a_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = (str(place / "captioner"), str(place / "photos"), "--filter", str(place / "filter"), "--json")
    expected = called(monkeypatch, *given)
    asked, write = [], Captioner.write

    def written(self: Any, images: Any, *others: Any) -> Any:
        asked.append(len(images))
        return write(self, images, *others)

    monkeypatch.setattr(Captioner, "write", written)
    monkeypatch.setattr(command, "CHUNK", 2)
    assert called(monkeypatch, *given) == expected
    assert asked == [2, 1]


def test_a_damaged_file_stands_among_the_others_with_its_reason(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "CHUNK", 2)
    given = ("--filter", str(place / "filter"))
    expected = called(monkeypatch, str(place / "captioner"), str(place / "photos"), *given, "--json").splitlines()
    for number, name in enumerate(("0", "2", "5")):
        (tmp_path / f"{name}.png").write_bytes((place / "photos" / f"{number}.png").read_bytes())
    for name in ("1", "3", "4"):  # beside another, and a whole chunk
        (tmp_path / f"{name}.png").write_bytes(b"cut off")
    called_on = (str(place / "captioner"), str(tmp_path), *given)
    rows = [json.loads(line) for line in called(monkeypatch, *called_on, "--json", status=1).splitlines()]
    assert [Path(row["image"]).stem for row in rows] == ["0", "1", "2", "3", "4", "5"]
    captions = [row["caption"] for row in rows if row["error"] is None]
    assert captions == [json.loads(line)["caption"] for line in expected]
    assert all(row["error"].startswith("no picture that can be read (") for row in rows if row["caption"] is None)
    assert [row["caption"] is None for row in rows] == [False, True, False, True, True, False]
    shown = called(monkeypatch, *called_on, status=1)
    assert shown.count("no picture that can be read") == 3
    assert shown.count("%") >= 3


def test_what_was_written_is_shown_where_the_model_fails_later(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Captioner.write

    def failing(self: Any, images: Any, *others: Any) -> Any:
        if len(images) == 1:
            raise FloatingPointError("not a number")
        return write(self, images, *others)

    monkeypatch.setattr(command, "CHUNK", 2)
    monkeypatch.setattr(Captioner, "write", failing)
    sink = io.StringIO()
    monkeypatch.setattr(cli, "out", Console(file=sink, width=160))
    with pytest.raises(SluiceError, match="not a number"):
        caption.main([str(place / "captioner"), str(place / "photos")], standalone_mode=False)
    assert "1.png" in sink.getvalue()
    assert "2.png" not in sink.getvalue()


def test_what_is_no_picture_or_no_captioner_is_told_in_a_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SluiceError, match=r"notes\.txt is no picture"):
        called(monkeypatch, str(place / "captioner"), str(place / "photos" / "notes.txt"))
    with pytest.raises(SluiceError, match="holds no image"):
        called(monkeypatch, str(place / "captioner"), str(place / "captioner"))
    with pytest.raises(SluiceError, match=r"lacks \d+ tensors"):
        called(monkeypatch, str(place / "filter"), str(place / "photos" / "0.png"))
