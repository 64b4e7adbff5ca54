"""A DAG slow enough to be interrupted, which says in a log what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline import Dag
from tests.chaos.drive import hashes, inline

TEXT = """
dag: slow
nodes:
  numbers: {{steps: [{{tests.toys.Numbers: {{rows: {rows}, parts: {parts}}}}}]}}
  slow: {{from: numbers, steps: [{{tests.toys.Slow: {{seconds: {seconds}, log: "{folder}/log"}}}}, tests.toys.Times]}}
"""


@dataclass
class Slow:
    """`parts` parts of four rows, each of which takes `seconds`; `calm` are the hashes of an undisturbed run."""

    folder: Path
    parts: int
    seconds: float
    calm: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        text = TEXT.format(folder=self.folder, rows=4 * self.parts, parts=self.parts, seconds=self.seconds)
        self.dag.write_text(text)
        self.resume(f"{self.folder}/undisturbed")
        self.calm = hashes(f"{self.folder}/undisturbed")
        (self.folder / "log").unlink()

    @property
    def dag(self) -> Path:
        return self.folder / "slow.yaml"

    def resume(self, root: str) -> None:
        """The same command, in this process."""
        inline(Dag.load(self.dag), root)

    def batches(self) -> list[int]:
        """The process that did each part, in order of time."""
        log = self.folder / "log"
        return [int(line.split()[0]) for line in log.read_text().splitlines()] if log.exists() else []
