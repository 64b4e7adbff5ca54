"""How well scores find the planted mismatches among the captions of the web, each score at the same rejection rates.

    python -m infra.miniweb.filters demo_blip/key/key.parquet demo_blip/root --scores itm_score itc_score clip_score

Of every score the lowest captions are rejected, as many as the rate says; what is found is the share of the mismatched
captions among them. One that knows nothing finds the rate itself. The last rate is the one at which the first score
lies below 0.5. Where the first score finds less than its rival, by the mean over the rates, the exit status is 1. The
rival is one of the others: `--rival`, else `clip_score`; where that is not among `--scores`, nothing is compared, and
this is said.
"""

# ruff: noqa: S608 - names are quoted
import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from infra.miniweb.kinds import Kind
from pipeline import Catalog, SluiceError

RATES = (0.1, 0.2, 0.3, 0.4)
RIVAL = "clip_score"
THRESHOLD = 0.5
"""Of an ITM score, as BLIP has it."""


@dataclass(frozen=True)
class Found:
    """What one score finds."""

    score: str
    rates: tuple[float, ...]
    shares: tuple[float, ...]
    """Of the mismatched captions, those that are rejected, at each rate."""
    area: float
    """The chance that a mismatched caption scores below a sound one (the area under the ROC curve)."""

    @property
    def mean(self) -> float:
        """Of the shares, over the rates."""
        return sum(self.shares) / len(self.shares)


def found_by(key: pa.Table, root: str, scores: Sequence[str], run: str | None = None) -> list[Found]:
    """The first score decides the last rate. Captions of the web that lack a score are left out of all comparisons.

    Raises `SluiceError` where no pair of the run has such a score.
    """
    with Catalog(root, run) as catalog:
        columns = catalog.sql("FROM samples LIMIT 0").column_names
        for name in ("source", *scores):
            if name not in columns:
                raise SluiceError(f"run {catalog.run.id} of {root} has no column {name!r}; it scored no captions by it")
        wanted = ", ".join(f'"{name}"' for name in scores)
        there = " AND ".join(f'"{name}" IS NOT NULL' for name in scores)
        pairs = catalog.sql(f"SELECT url, caption, {wanted} FROM samples WHERE source = 'web' AND {there}")
    sound, wrong = (set(_pairs(key, kind)) for kind in (Kind.CLEAN, Kind.MISMATCH))
    told = list(zip(pairs.column("url").to_pylist(), pairs.column("caption").to_pylist(), strict=True))
    known = np.array([pair in sound or pair in wrong for pair in told], bool)
    is_wrong = np.array([pair in wrong for pair in told], bool)[known]
    if not is_wrong.any() or is_wrong.all():
        raise SluiceError(f"{is_wrong.sum()} of {len(is_wrong)} scored captions are mismatched; expected some of both")
    values = {name: np.asarray(pairs.column(name), np.float64)[known] for name in scores}
    last = float((values[scores[0]] < THRESHOLD).mean())
    return [_found(name, value, is_wrong, (*RATES, last)) for name, value in values.items()]


def _pairs(key: pa.Table, kind: str) -> list[tuple[str, str]]:
    rows = key.select(["url", "caption", "kind"]).to_pylist()
    return [(row["url"], row["caption"]) for row in rows if row["kind"] == kind]


def _found(
    name: str, values: npt.NDArray[np.float64], is_wrong: npt.NDArray[np.bool_], rates: tuple[float, ...]
) -> Found:
    order = np.argsort(values, kind="stable")
    shares = [float(is_wrong[order[: round(rate * len(order))]].sum() / is_wrong.sum()) for rate in rates]
    ranks = np.empty(len(order))
    ranks[order] = np.arange(len(order))
    below = ranks[~is_wrong].sum() - (~is_wrong).sum() * ((~is_wrong).sum() - 1) / 2
    return Found(name, rates, tuple(shares), float(below / (is_wrong.sum() * (~is_wrong).sum())))


def rival_among(scores: Sequence[str], given: str | None) -> str | None:
    """Which score the first must not be behind; None where nobody named one and the usual one is not there.

    Raises `SluiceError` for a name with which nothing would be compared.
    """
    if given is not None and given not in scores[1:]:
        expected = ", ".join(scores[1:]) or "a second one in --scores"
        raise SluiceError(f"--rival {given!r} is not among the scores behind the first; expected {expected}")
    return given or (RIVAL if RIVAL in scores[1:] else None)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.miniweb.filters", description=__doc__.split("\n")[0])
    parser.add_argument("key", metavar="KEY", type=Path, help="the answer key of the web, key.parquet")
    parser.add_argument("root", metavar="RUN_ROOT", help="where the run's nodes are")
    parser.add_argument("--scores", nargs="+", default=["itm_score", "itc_score", "clip_score"], metavar="COLUMN")
    parser.add_argument(
        "--rival", metavar="COLUMN", help=f"what the first score must not be behind; {RIVAL} where it is there"
    )
    parser.add_argument("--run", help="an older run than the newest")
    options = parser.parse_args(arguments)
    try:
        rival = rival_among(options.scores, options.rival)
        try:
            key = pq.read_table(options.key)
        except (OSError, pa.ArrowInvalid) as error:
            raise SluiceError(f"cannot read the key {options.key} ({str(error).splitlines()[0]})") from None
        found = found_by(key, options.root, options.scores, options.run)
    except SluiceError as error:
        print(error, file=sys.stderr)
        return 2
    table = Table(title="planted mismatches found, by the share of captions rejected", title_justify="left", box=None)
    table.add_column("score")
    for rate in found[0].rates:
        table.add_column(f"{rate:.0%}", justify="right")
    table.add_column("area", justify="right")
    for one in found:
        table.add_row(one.score, *(f"{share:.0%}" for share in one.shares), f"{one.area:.3f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if rival is None:
        print(f"nothing is compared: no --rival, and no {RIVAL} behind the first of --scores")
    first, *others = found
    for other in others:
        if other.score == rival and first.mean < other.mean:
            found_each = f"{first.score} finds {first.mean:.1%} of the mismatches, a mean over the rates"
            print(f"{found_each}, and {other.score} {other.mean:.1%}; train the filter for longer", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
