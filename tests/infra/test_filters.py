"""Which score finds what was planted: by counting, against a run made by hand."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.miniweb import filters
from infra.miniweb.kinds import Kind
from infra.miniweb.table import KEY_SCHEMA
from pipeline.errors import SluiceError
from pipeline.store import Store
from tests.pools import write_node, write_run


def key(kinds: list[Kind]) -> pa.Table:
    rows = [{"page_id": n, "url": f"http://page/{n}", "caption": f"c{n}", "kind": k} for n, k in enumerate(kinds)]
    return pa.Table.from_pylist(rows, schema=KEY_SCHEMA)


@pytest.fixture
def root(tmp_path: Path) -> str:
    """20 captions of which the last five are mismatched: `sharp` puts four of them below all others, `blunt` none."""
    store = Store(str(tmp_path / "root"))
    uids, ids = ([f"{letter}{n:02d}" for n in range(20)] for letter in "uc")
    image = pa.table({"uid": uids, "url": [f"http://page/{n}" for n in range(20)]})
    caption = pa.table(
        {"uid": uids, "caption_id": ids, "caption": [f"c{n}" for n in range(20)], "source": ["web"] * 20}
    )
    write_node(store, "pool", {"000-0": {"image": image, "caption": caption}}, tar=True)
    sharp = [0.9] * 15 + [0.1, 0.1, 0.2, 0.2, 0.95]
    scores = pa.table(
        {"uid": uids, "caption_id": ids, "sharp": sharp, "as_sharp": sharp, "blunt": [n / 20 for n in range(20)]}
    )
    write_node(store, "scores", {"000-0": {"caption": scores}}, inputs=["pool"])
    write_run(store, ["pool", "scores"])
    return store.root


def test_what_a_score_finds_is_counted_at_the_same_rates_for_all(root: str) -> None:
    known = key([Kind.CLEAN] * 15 + [Kind.MISMATCH] * 5)
    sharp, blunt = filters.found_by(known, root, ["sharp", "blunt"])
    assert sharp.rates == blunt.rates == (0.1, 0.2, 0.3, 0.4, 0.2)
    assert sharp.shares == (0.4, 0.8, 0.8, 0.8, 0.8)
    assert blunt.shares == (0, 0, 0, 0, 0)
    assert (sharp.area, blunt.area) == (0.8, 0)


def test_other_damage_than_mismatches_is_no_fault_of_a_score(root: str) -> None:
    (sharp,) = filters.found_by(key([Kind.SPAM] * 10 + [Kind.CLEAN] * 5 + [Kind.MISMATCH] * 5), root, ["sharp"])
    assert sharp.rates[-1] == 0.4
    assert sharp.shares[-1] == 0.8


def test_the_command_prints_a_line_for_each_score(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(key([Kind.CLEAN] * 15 + [Kind.MISMATCH] * 5), tmp_path / "key.parquet")
    assert filters.main([str(tmp_path / "key.parquet"), root, "--scores", "sharp", "blunt"]) == 0
    shown = capsys.readouterr().out
    assert "sharp" in shown
    assert "80%" in shown
    assert "nothing is compared: no --rival" in shown
    assert filters.main([str(tmp_path / "key.parquet"), root, "--scores", "dull"]) == 2
    assert "no column 'dull'" in capsys.readouterr().err


def test_it_fails_where_the_filter_finds_less_than_its_rival_and_nowhere_else(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(key([Kind.CLEAN] * 15 + [Kind.MISMATCH] * 5), tmp_path / "key.parquet")
    given = [str(tmp_path / "key.parquet"), root, "--rival", "sharp", "--scores"]
    assert filters.main([*given, "blunt", "sharp"]) == 1
    told = "blunt finds 0.0% of the mismatches, a mean over the rates, and sharp 72.0%; train the filter for longer\n"
    assert capsys.readouterr().err == told
    assert filters.main([*given, "as_sharp", "sharp"]) == 0  # as good
    assert filters.main([*given[:2], "--rival", "blunt", "--scores", "sharp", "blunt"]) == 0  # better
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "nothing is compared" not in shown.out


@pytest.mark.parametrize(
    ("rival", "scores", "expected"),
    [
        ("clip_scor", [], "itc_score, clip_score"),
        ("clip_score", ["sharp", "blunt"], "blunt"),
        ("sharp", ["sharp", "blunt"], "blunt"),
        ("sharp", ["sharp"], "a second one in --scores"),
    ],
)
def test_a_rival_with_which_nothing_would_be_compared_is_told(
    rival: str, scores: list[str], expected: str, root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(key([Kind.CLEAN] * 15 + [Kind.MISMATCH] * 5), tmp_path / "key.parquet")
    given = ["--scores", *scores] if scores else []
    assert filters.main([str(tmp_path / "key.parquet"), root, "--rival", rival, *given]) == 2
    told = f"--rival {rival!r} is not among the scores behind the first; expected {expected}\n"
    assert capsys.readouterr().err == told


def test_clip_score_is_the_rival_where_nobody_names_another() -> None:
    assert filters.rival_among(["itm_score", "itc_score", "clip_score"], None) == "clip_score"
    assert filters.rival_among(["itm_score", "clip_score"], None) == "clip_score"
    assert filters.rival_among(["clip_score", "itm_score"], None) is None
    assert filters.rival_among(["itm_score", "clip_score"], "clip_score") == "clip_score"


def test_a_web_without_mismatches_cannot_tell(root: str) -> None:
    with pytest.raises(SluiceError, match="0 of 20 scored captions are mismatched"):
        filters.found_by(key([Kind.CLEAN] * 20), root, ["sharp"])
