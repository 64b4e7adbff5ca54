"""What the page of measured figures says, and that measuring one benchmark leaves the others' figures alone."""

from pathlib import Path

import pytest

from tests.benchmarks import figures
from tests.benchmarks.__main__ import main
from tests.benchmarks.figures import Figure, circumstances, keep, section


@pytest.mark.parametrize(
    ("figure", "holds"),
    [
        (Figure("time", 20, "ms", at_most=20), True),
        (Figure("time", 20.1, "ms", at_most=20), False),
        (Figure("share", 94.9, "%", at_least=95), False),
        (Figure("share", 95, "%", at_least=95), True),
        (Figure("told", 1, "s"), None),
        (Figure("on a GPU", None, "%", at_least=90), None),
    ],
)
def test_a_goal_holds_up_to_its_bound(figure: Figure, holds: bool | None) -> None:
    assert figure.holds is holds


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (7.5113, "7.511"), (128.0, "128"), (256.25, "256.2"), (1234.5, "1,234")]
)
def test_values_are_shown_with_the_digits_that_matter(value: float, shown: str) -> None:
    assert Figure("f", value, "").shown == shown


def test_what_was_not_run_says_so_and_why() -> None:
    line = section([Figure("on a GPU", None, "%", at_least=90, note="there is none")]).splitlines()[-1]
    assert line == "| on a GPU | not run | % | ≥ 90 |  | there is none |"


def test_a_missed_goal_is_on_the_page_and_other_sections_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "RESULTS.md"
    monkeypatch.setattr(figures, "RESULTS", page)
    keep("sql", "then", section([], "a report of its own"))
    keep("engine", "then", section([Figure("time", 30, "ms", at_most=20)]))
    keep("engine", "now", section([Figure("time", 21, "ms", at_most=20)]))
    text = page.read_text()
    assert "| time | 21 | ms | ≤ 20 | **no** |  |" in text
    assert "a report of its own" in text
    assert text.count("## engine") == text.count("## sql") == text.count("# Measured") == 1
    assert text.index("## engine") < text.index("## sql")


def test_the_page_says_on_what_machine_and_commit() -> None:
    said = circumstances(1.5)
    assert "load 1.5" in said
    assert "cores" in said
    assert "commit" in said


def test_an_unknown_benchmark_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines"]) == 2
    said = capsys.readouterr().err
    assert "no benchmark 'engines'; there are: " in said
    assert {"engine", "memory"} <= set(said.strip().rpartition(": ")[2].split(", "))
