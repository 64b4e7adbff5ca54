"""What was trained on a run, and how well it does: curves of losses, and metrics side by side."""

# ruff: noqa: S608 - names are quoted
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.pairs import Table, live
from pipeline.report import words
from pipeline.report.axis import round_step
from pipeline.report.numbers import Ask

CURVE, METRIC = "curve", "metric"
"""Kinds of table: `samples` and `loss` as a training went; `model`, `set`, `metric`, `value`, … of a model."""
COLOURS = 6
"""CSS classes `s0` to `s5`, one for each line or model."""
POINTS = 300
"""Of a line, at most."""
WIDTH, HEIGHT = 1000, 220
"""Of a chart of lines, in units of its own; it stretches."""
TICKS = 4

LINES = Markup(
    '<div class="lines"><div class="ys" aria-hidden="true">{}</div><svg class="lines" role="img" aria-label="{}" '
    'viewBox="0 0 {} {}" preserveAspectRatio="none" height="{}">{}</svg>'
    '<div class="xs" aria-hidden="true">{}</div></div>'
)
GRID = Markup('<line class="grid" x1="0" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
LINE = Markup('<polyline class="s{}" points="{}"><title>{}</title></polyline>')
Y_TICK = Markup('<span style="top:{:.2f}%">{}</span>')
X_TICK = Markup('<span style="left:{:.2f}%">{}</span>')


@dataclass(frozen=True)
class Curve:
    """The losses of one training."""

    node: str
    points: tuple[tuple[float, float], ...]
    """(samples seen, loss), in order."""


@dataclass(frozen=True)
class Score:
    """A model's value: of several seeds their mean and deviation, of one the value and its standard error."""

    model: str
    value: float
    error: float | None


@dataclass(frozen=True)
class Scores:
    """One metric on one set, of all models that have it."""

    node: str
    set: str
    task: str
    metric: str
    chance: float | None
    samples: int
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Training:
    """All that was trained and measured in a run."""

    curves: tuple[Curve, ...]
    scores: tuple[Scores, ...]

    @property
    def models(self) -> list[str]:
        """Every trained or evaluated node once; its place is its colour."""
        named = [curve.node for curve in self.curves]
        return list(dict.fromkeys(named + [score.model for row in self.scores for score in row.scores]))


def training(ask: Ask, tables: Mapping[tuple[str, str], Table]) -> Training:
    """Of the tables of a run, those that tell of models."""
    curves = (_curve(ask, table) for (_, kind), table in tables.items() if kind == CURVE)
    scores = (row for (_, kind), table in tables.items() if kind == METRIC for row in _scores(ask, table))
    return Training(tuple(curves), tuple(scores))


def _curve(ask: Ask, table: Table) -> Curve:
    """Of several models of a node, trained with seeds of their own, the mean."""
    rows = ask(
        f"SELECT samples, avg(loss) AS loss FROM ({live(table)}) WHERE isfinite(loss) GROUP BY samples ORDER BY samples"
    ).to_pylist()
    every = -(-len(rows) // POINTS) or 1
    shown = rows[::-1][::every][::-1]  # with the last one
    return Curve(table.node, tuple((row["samples"], row["loss"]) for row in shown))


def _scores(ask: Ask, table: Table) -> Iterator[Scores]:
    rows = ask(
        f"SELECT model, set, task, metric, avg(value) AS value, any_value(chance) AS chance, max(samples) AS samples, "
        f"coalesce(stddev_samp(value), any_value(standard_error)) AS error FROM ({live(table)}) WHERE isfinite(value) "
        "GROUP BY model, set, task, metric ORDER BY set, task DESC, metric, model"
    ).to_pylist()
    groups: dict[tuple[str, str, str], list[dict[str, object]]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["task"], row["metric"]), []).append(row)
    for (of, task, metric), found in groups.items():
        scores = tuple(Score(row["model"], row["value"], row["error"]) for row in found)  # type: ignore[arg-type]
        chance, samples = found[0]["chance"], found[0]["samples"]
        yield Scores(table.node, of, task, metric, chance, samples, scores)  # type: ignore[arg-type]


def lines(curves: Sequence[Curve], colours: Mapping[str, int]) -> Markup:
    """The curves in one chart: samples seen to the right, loss upwards; `colours`: the class of each node."""
    points = [point for curve in curves for point in curve.points]
    most = max(x for x, _ in points) or 1
    low, high = min(y for _, y in points), max(y for _, y in points)
    step = round_step((high - low) / TICKS or abs(high) / TICKS or 1)
    first, last = int(low // step), -int(-high // step)
    low, high = first * step, max(last, first + 1) * step

    def at(x: float, y: float) -> str:
        return f"{WIDTH * x / most:.1f},{HEIGHT * (high - y) / (high - low):.1f}"

    ticks = [number * step for number in range(first, max(last, first + 1) + 1)]
    grid = [GRID.format(WIDTH, *[HEIGHT * (high - tick) / (high - low)] * 2) for tick in ticks]
    drawn = [
        LINE.format(colours[curve.node] % COLOURS, " ".join(at(x, y) for x, y in curve.points), words.clean(curve.node))
        for curve in curves
    ]
    across = round_step(most / TICKS, whole=True)
    xs = [X_TICK.format(100 * n * across / most, words.short(n * across)) for n in range(int(most // across) + 1)]
    ys = [Y_TICK.format(100 * (high - tick) / (high - low), words.value(tick, "")) for tick in ticks]
    said = ", ".join(f"{words.clean(curve.node)} ends at {curve.points[-1][1]:.3f}" for curve in curves if curve.points)
    empty = Markup("")
    return LINES.format(
        empty.join(ys), f"Losses: {said}", WIDTH, HEIGHT, HEIGHT, empty.join([*grid, *drawn]), empty.join(xs)
    )
