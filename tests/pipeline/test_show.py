"""What commands print, on terminals of any width: a uid stays in one piece, and nothing that is told is left out."""

import io
import re

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.text import Text

from pipeline import cli, show
from tests.pipeline.seeing import Runs, uid

QUERY = "SELECT uid, caption_id, url, kept, dropped_by, caption, n, n AS m FROM samples ORDER BY n, caption_id"


def printed(width: int, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(cli.out, "_width", width)
    return CliRunner().invoke(cli.main, list(arguments), catch_exceptions=False).output


@pytest.mark.parametrize(
    "command",
    [
        ["explain", "ROOT", uid(8)],
        ["what-if", "ROOT", "--rule", "even=n % 3 = 0"],
        ["diff", "ROOT", "0003", "0004"],
        ["sql", "ROOT", QUERY],
        ["errors", "ROOT"],
    ],
)
@pytest.mark.parametrize("width", [80, 30])
def test_a_uid_can_be_copied_from_any_terminal(
    runs: Runs, command: list[str], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [runs.root if argument == "ROOT" else argument for argument in command]
    wide = set(re.findall(r"\b[0-9a-f]{32}\b", printed(500, monkeypatch, *asked)))
    assert len(wide) > (0 if command[0] == "errors" else 1)
    assert set(re.findall(r"\b[0-9a-f]{32}\b", printed(width, monkeypatch, *asked))) == wide


def laid_out(width: int, *rows: tuple[str, ...]) -> str:
    grid = show.new_grid(*"abcdef"[: len(rows[0])])
    for row in rows:
        grid.add_row(*map(Text, row))
    sink = io.StringIO()
    show.lay_out(Console(file=sink, width=width), grid)
    return sink.getvalue()


def test_other_cells_fold_and_lose_nothing() -> None:
    shown = laid_out(40, ("0" * 32, "1" * 31, "words " * 20, "x" * 50, "1", "yes"))
    assert "0" * 32 in shown
    assert (shown.count("1"), shown.count("x"), shown.count("words")) == (32, 50, 20)
    assert "1" * 31 not in shown


def test_a_table_without_uids_fits_the_terminal() -> None:
    assert max(map(len, laid_out(40, ("words " * 20, "x" * 50, "yes")).splitlines())) <= 40
