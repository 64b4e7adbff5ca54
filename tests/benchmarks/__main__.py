"""What sluice costs, measured: `make bench`, or `python -m tests.benchmarks [engine memory sql …]`.

Every `bench_<name>.py` here either has `measure()`, which returns figures, or prints a report of its own.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.figures import RESULTS, Figure, circumstances, keep, section

HERE = Path(__file__).parent
TIMEOUT_S = 900


def main(names: Sequence[str]) -> int:
    """Run them one after the other; 1 where a goal was missed or a benchmark failed."""
    known = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    unknown = sorted(set(names) - set(known))
    if unknown:
        Console(stderr=True).print(f"error: no benchmark {unknown[0]!r}; there are: {', '.join(known)}", soft_wrap=True)
        return 2
    missed = [name for name in names or known if not run(name)]
    Console().print(f"written to {RESULTS.relative_to(Path.cwd())}" if RESULTS.is_relative_to(Path.cwd()) else RESULTS)
    return 1 if missed else 0


def run(name: str) -> bool:
    """Measure, show and keep; whether every goal holds."""
    console = Console(width=120)
    where = circumstances(os.getloadavg()[0])
    console.rule(name)
    measure: Callable[[], list[Figure]] | None = getattr(
        importlib.import_module(f"tests.benchmarks.bench_{name}"), "measure", None
    )
    if measure is None:
        command = [sys.executable, "-m", f"tests.benchmarks.bench_{name}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S)
        console.print(done.stdout, markup=False, highlight=False)
        if done.returncode == 0:
            keep(name, where, section([], done.stdout))
        return done.returncode == 0
    figures = measure()
    show(console, figures)
    keep(name, where, section(figures))
    return all(figure.holds is not False for figure in figures)


def show(console: Console, figures: Sequence[Figure]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header, justify in (("figure", "left"), ("measured", "right"), ("", "left"), ("goal", "right"), ("", "left")):
        table.add_column(header, justify=justify)  # type: ignore[arg-type]
    for figure in figures:
        holds = {True: "[green]holds", False: "[red]missed", None: ""}[figure.holds]
        table.add_row(
            figure.name,
            figure.shown,
            figure.unit,
            figure.goal,
            f"{holds}[/] [dim]{figure.note}" if holds else f"[dim]{figure.note}",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
