"""How far a run is: a bar with rate and time left for every node, or plain lines where nobody watches a terminal."""

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

PLAIN_EVERY_S = 10.0


class _Rate(ProgressColumn):
    """Rows a second, over the last while."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} rows/s" if speed else "", style="cyan")


class Board:
    """Progress of all nodes; `report` may be called from any thread."""

    def __init__(self, console: Console, shown: bool = True) -> None:
        self._console = console
        self._shown = shown
        self._live = shown and console.is_terminal
        self._lock = threading.Lock()
        self._counts: dict[str, list[float]] = {}
        self._bars: dict[str, object] = {}
        self._progress = Progress(
            TextColumn("{task.description:>14}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
        )

    def __enter__(self) -> Self:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()

    def say(self, line: str) -> None:
        """One line above the bars."""
        if self._shown:
            self._console.print(line, highlight=False)

    def report(self, node: str, total_or_zero: int, rows: int, parts: int) -> None:
        """`parts` = 0 opens a phase of `total_or_zero` rows with `rows` done before; 1 adds the rows of a part."""
        with self._lock:
            if parts == 0:
                self._open(node, total_or_zero, rows)
                return
            done, total, shown_at = self._counts[node]
            now = time.monotonic()
            quiet = now - shown_at < PLAIN_EVERY_S and done + rows < total
            self._counts[node] = [done + rows, total, shown_at if quiet else now]
            if self._live:
                self._progress.advance(self._bars[node], rows)  # type: ignore[arg-type]
            elif not quiet:
                self.say(f"{node}: {int(done + rows):,} of {int(total):,} rows")

    def _open(self, node: str, total: int, done: int) -> None:
        self._counts[node] = [done, total, time.monotonic()]
        if self._live:
            if node in self._bars:
                self._progress.reset(self._bars[node], total=total, completed=done)  # type: ignore[arg-type]
            else:
                note = f"{done:,} from before" if done else ""
                self._bars[node] = self._progress.add_task(node, total=total, completed=done, note=note)
