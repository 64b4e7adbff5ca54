"""`sluice takedown`: says first and does it when told; lists with a bad line are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import SluiceError
from pipeline.cli import main
from pipeline.store import Store
from pipeline.takedown.matching import Asked
from pipeline.takedown.tombstones import tombstones
from tests.pipeline.takedown.erased import is_clean
from tests.takedowns import go, uid_of, url_of


def sluice(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, list(arguments), catch_exceptions=False, terminal_width=200)
    return done.exit_code, " ".join(done.output.split())


@pytest.mark.parametrize("command", ["takedown", "export", "catalog"])
def test_help_ends_with_an_example(command: str) -> None:
    code, said = sluice(command, "--help")
    assert code == 0
    assert f"Examples: sluice {command} " in said


def test_the_command_says_first_and_does_it_when_told(root: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.txt"
    gone.write_text(f"# a request\n{url_of(4)}   # by mail\n\n{url_of(16)}\n")
    code, said = sluice("takedown", str(root), "--urls", str(gone))
    assert code == 0
    assert "2 urls asked for: 3 images" in said
    assert "nothing was changed; add --yes" in said
    assert f"{uid_of(4)}.jpg at byte" in said
    assert tombstones(Store(str(root))) == []
    code, said = sluice("takedown", str(root), "--urls", str(gone), "--reason", "request 4711", "--yes")
    assert code == 0
    assert "takedown 0001 is done" in said
    is_clean(root, 4, 16, 34)
    code, said = sluice("takedown", str(root))
    assert "request 4711" in said
    assert "erased" in said


def test_a_reason_moves_no_terminal(root: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.txt"
    gone.write_text(f"{uid_of(4)}\n")
    code, said = sluice("takedown", str(root), "--uids", str(gone), "--reason", "ticket [/4711] \x1b[2J", "--yes")
    assert code == 0
    code, said = sluice("takedown", str(root))
    assert code == 0
    assert "ticket [/4711] �[2J" in said
    assert "1 uid " in said


def test_the_same_takedown_again_writes_nothing(root: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.txt"
    gone.write_text(f"{uid_of(4)}\n")
    arguments = ("takedown", str(root), "--uids", str(gone), "--yes")
    assert "1 uid asked for: 2 images of" in sluice(*arguments)[1]
    for _ in range(2):
        before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        code, said = sluice(*arguments)
        assert (code, "all of it was taken down before; nothing is left to do" in said) == (0, True)
        assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        go(root, "kept.rules=[{all: \"status = 'success'\"}]")
    gone.write_text(f"{uid_of(4)}\n{uid_of(5)}\n")
    assert "takedown 0002 is done" in sluice(*arguments)[1]


def test_a_domain_without_a_dot_is_localhost_only(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("LOCALHOST\n")
    assert Asked.read(domains=str(path)).domains == ("localhost",)
    path.write_text("org\n")
    with pytest.raises(SluiceError, match=r"line 1: 'org'; expected 'example.org'"):
        Asked.read(domains=str(path))


@pytest.mark.parametrize(
    ("kind", "line", "expected"),
    [
        ("uids", "xyz", r"--uids .*, line 2: 'xyz'; expected 32 hex digits"),
        ("urls", "example.org/x", "expected 'https://example.org/x.jpg'"),
        ("domains", "https://example.org", "expected 'example.org'"),
        ("sha256s", "0" * 32, "expected 64 hex digits"),
    ],
)
def test_a_line_that_is_no_such_entry_is_named(tmp_path: Path, kind: str, line: str, expected: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"# comment\n{line}\n")
    with pytest.raises(SluiceError, match=expected):
        Asked.read(**{kind: str(path)})
