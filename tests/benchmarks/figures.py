"""A measured figure with its goal, and the page that keeps the newest ones: RESULTS.md."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """# Measured

`make bench` writes this page, a section per benchmark; `make bench ARGS=engine` measures one of them again.
A goal that does not hold stays here as such. Other work on the machine makes figures worse, never better: the load
says how much of it there was before the benchmark began.
"""


@dataclass(frozen=True)
class Figure:
    """One measured value. `at_most` or `at_least` is its goal; without one it is only told."""

    name: str
    value: float | None
    """None where it was not run; the note says why."""
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def goal(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return f"≥ {self.at_least:g}" if self.at_least is not None else ""

    @property
    def holds(self) -> bool | None:
        if self.value is None:
            return None
        if self.at_most is not None:
            return self.value <= self.at_most
        return self.value >= self.at_least if self.at_least is not None else None

    @property
    def shown(self) -> str:
        if self.value is None:
            return "not run"
        digits = 0 if abs(self.value) >= 1000 else 1 if abs(self.value) >= 100 else 3
        return f"{self.value:,.{digits}f}".rstrip("0").rstrip(".") if digits else f"{self.value:,.0f}"


def circumstances(load: float) -> str:
    """When, on which commit and on what machine; `load`: processes that wanted a CPU before the benchmark began."""
    memory = int(re.findall(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[0]) / 2**20
    models = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {_commit()}; {models[0] if models else platform.machine()}, "
        f"{os.cpu_count()} cores, {memory:.0f} GiB, load {load:.1f}; "
        f"Python {platform.python_version()}, Ray {version('ray')}"
    )


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short=10", "HEAD") or "none") + (
        " with changes" if git("status", "--porcelain") else ""
    )


def section(figures: Sequence[Figure], printed: str = "") -> str:
    """Figures as a Markdown table, or what a benchmark printed where it has a form of its own."""
    if printed:
        return f"```\n{printed.strip()}\n```"
    lines = ["| figure | measured | | goal | holds | |", "| --- | ---: | --- | ---: | --- | --- |"]
    for figure in figures:
        holds = {True: "yes", False: "**no**", None: ""}[figure.holds]
        cells = (figure.name, figure.shown, figure.unit, figure.goal, holds, figure.note)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def keep(name: str, where: str, body: str) -> None:
    """Put a benchmark's section in the place of its older one; the others stay."""
    text = RESULTS.read_text() if RESULTS.exists() else HEAD
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    sections[name] = f"{where}\n\n{body}"
    pages = [f"## {title}\n\n{sections[title].strip()}\n\n" for title in sorted(sections)]
    RESULTS.write_text((HEAD + "\n" + "".join(pages)).rstrip() + "\n")
