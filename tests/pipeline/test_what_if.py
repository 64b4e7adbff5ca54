"""Other rules beside those of a run: the funnel is the one that a run would give, and what changes is shown."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import cli, contact_sheet
from pipeline.catalog import Catalog
from pipeline.errors import SluiceError
from pipeline.rules import Rules
from pipeline.runs import generations_of
from pipeline.show import funnel
from pipeline.store import Store
from pipeline.verdicts import AFTER, BEFORE, Tally, priorities, steps
from pipeline.what_if import edited, what_if
from tests.pipeline.seeing import LOOSER, Runs, uid
from tests.pools import write_node, write_run

Verdicts = dict[tuple[str, str], str | None]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page on which no cell is folded."""
    monkeypatch.setattr(cli.out, "_width", 250)


def asked(root: str, *options: str) -> Result:
    return CliRunner().invoke(cli.main, ["what-if", root, *options], catch_exceptions=False, terminal_width=200)


def verdicts(root: str, run: str | None = None) -> Verdicts:
    with Catalog(root, run) as catalog:
        table = catalog.sql("SELECT uid, caption_id, dropped_by FROM samples")
    return {(row["uid"], row["caption_id"]): row["dropped_by"] for row in table.to_pylist()}


def really(runs: Runs, rules: dict[str, str], tmp_path: Path) -> Verdicts:
    """What a run of these rules says, in a copy of the store."""
    root = tmp_path / "really"
    shutil.copytree(runs.root, root)
    Runs(str(root), runs.folder).go(rules, retry=True, until="kept")
    return verdicts(str(root))


# -- the funnel --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["0001", "0002", "0003", "0004"])
def test_the_status_of_every_run_counts_what_its_views_count(runs: Runs, run: str) -> None:
    store = Store(runs.root)
    generations = generations_of(store, next(one for one in store.runs() if one.id == run))
    with Catalog(runs.root, run) as catalog:
        drops = [tuple(row.values())[1:4] for row in catalog.funnel("kept").to_pylist()]
        for node in ("pool", "scores", "beside", "depth", "kept"):
            assert sum(generations[node].statuses.values()) == catalog.sql(f"FROM {node}").num_rows
    assert funnel(generations["kept"]) == drops
    assert generations["kept"].statuses["kept"] == drops[-1][1] - drops[-1][2]


CHANGES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "another condition": ({"even": "n % 3 = 0"}, {}),
    "before a window": ({"small": "product < 50"}, {}),
    "another window": ({"first": "n = max(n) OVER (PARTITION BY kind)"}, {}),
    "a new rule, last, no window": ({"long": "length(label) > 16"}, {"drop": ["first"]}),
    "a new rule in the middle": ({"long": "length(label) > 16"}, {"after": "downloaded"}),
    "without a rule": ({}, {"drop": ["small"]}),
    "a number that is none": ({"sharp": "ratio > 0.2"}, {"after": "downloaded"}),
    "a share where some have no number": ({"best": "cume_dist() OVER (ORDER BY ratio DESC, uid) <= 0.9"}, {}),
    "several at once": ({"even": "n > 3", "odd": "n % 2 = 1"}, {"drop": ["first"], "after": "even"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_funnel_is_the_one_that_a_run_gives(runs: Runs, name: str, tmp_path: Path) -> None:
    changes, options = CHANGES[name]
    found = what_if(runs.root, changes, **options)
    rules = edited(LOOSER, changes, **options)
    before, after = verdicts(runs.root), really(runs, rules, tmp_path)
    assert (found.pairs, found.kept) == (70, list(before.values()).count(None))
    assert found.would_keep == list(after.values()).count(None)
    expected = Counter((before[pair], after[pair]) for pair in before if before[pair] != after[pair])
    assert {(was, now): count for was, now, count in found.moves} == expected
    assert [step.rule for step in found.steps if step.now is not None] == list(rules)
    for side, said, mine in ((0, before, LOOSER), (1, after, rules)):
        left = len(said)
        for rule in mine:
            step = next(step for step in found.steps if step.rule == rule)
            count = (step.before, step.after)[side]
            assert count is not None
            assert (count.seen, count.dropped) == (left, list(said.values()).count(rule))
            left = count.left


@pytest.mark.parametrize("sql", ["ratio >= 0", "ratio / ratio = 1", "cume_dist() OVER (ORDER BY ratio, uid) <= 1"])
def test_no_pair_without_a_number_would_be_kept(runs: Runs, sql: str) -> None:
    """Every fifth has NaN: 11 images, of which three have two captions."""
    found = what_if(runs.root, {"sharp": sql}, after="downloaded", drop=["even", "small", "first"], sample=80)
    fifths = {uid(number) for number in range(0, 54, 5)}
    assert found.gained
    assert fifths.isdisjoint(sample.uid for sample in found.gained)
    assert [step.after.dropped for step in found.steps if step.rule == "sharp" and step.after] == [14]


def test_the_rules_as_they_are_change_nothing(runs: Runs) -> None:
    found = what_if(runs.root, LOOSER)
    assert found.pairs == 70
    assert (found.moves, found.gained, found.lost) == ((), (), ())
    assert [(step.before, step.now) for step in found.steps] == [(step.after, step.was) for step in found.steps]
    assert "no pair's verdict changes" in asked(runs.root, "--rule", f"even={LOOSER['even']}").output


def test_an_older_run_is_asked_by_its_id(runs: Runs) -> None:
    assert what_if(runs.root, {"even": "true"}, run="0001").pairs == len(verdicts(runs.root, "0001"))


def test_where_a_rule_stands() -> None:
    rules = {"a": "1", "b": "2", "c": "3"}
    assert edited(rules, {"b": "9"}) == {"a": "1", "b": "9", "c": "3"}
    assert list(edited(rules, {"x": "9", "y": "8"})) == ["a", "b", "c", "x", "y"]
    assert list(edited(rules, {"x": "9", "a": "8"}, after="a")) == ["a", "x", "b", "c"]
    assert list(edited(rules, {"x": "9"}, drop=["b"])) == ["a", "c", "x"]
    with pytest.raises(SluiceError, match="--drop d: the selection has no such rule; there are: a, b, c"):
        edited(rules, {}, drop=["d"])
    with pytest.raises(SluiceError, match="--after b: the selection has no such rule; there are: a, c"):
        edited(rules, {"x": "1"}, drop=["b"], after="b")


# -- the sample --------------------------------------------------------------------------------------------------------


def test_what_is_shown_would_change_and_says_by_what(runs: Runs, tmp_path: Path) -> None:
    changes = {"even": "n % 2 = 1"}
    found = what_if(runs.root, changes, sample=5)
    before, after = verdicts(runs.root), really(runs, LOOSER | changes, tmp_path)
    assert (len(found.gained), len(found.lost)) == (5, 5)
    for shown in (*found.gained, *found.lost):
        pair = (shown.uid, shown.caption_id)
        assert (shown.before, shown.after) == (before[pair], after[pair])
        assert (shown.before is None) != (shown.after is None)
    assert all(shown.after is None for shown in found.gained)
    by_rule = {shown.after: shown for shown in found.lost}
    assert by_rule["even"].values == {"pool.n": int(re.findall(r"/(\d+)\.png", by_rule["even"].url or "")[0])}
    assert by_rule["even"].values["pool.n"] % 2 == 0


def test_the_seed_chooses(runs: Runs) -> None:
    chosen = [[s.uid for s in what_if(runs.root, {"even": "false"}, sample=4, seed=seed).lost] for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert what_if(runs.root, {"even": "false"}, sample=0).lost == ()


NAMES = st.sampled_from(["a", "b", None])
PAIRS = st.lists(st.tuples(st.integers(0, 10**6), NAMES, NAMES), max_size=40, unique_by=lambda row: row[0])


@settings(max_examples=40, deadline=None)
@given(rows=PAIRS, cut=st.integers(0, 40), size=st.integers(0, 5), seed=st.integers(-3, 3))
def test_counts_and_sample_do_not_depend_on_how_pairs_come(rows: list[Any], cut: int, size: int, seed: int) -> None:
    def tallied(*pieces: list[Any]) -> Tally:
        tally = Tally(size, seed)
        for piece in pieces:
            columns = {
                "uid": [f"u{number}" for number, _, _ in piece],
                "caption_id": ["c" * (n % 9) for n, _, _ in piece],
            }
            columns |= {BEFORE: [was for _, was, _ in piece], AFTER: [now for _, _, now in piece]}
            tally.add(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}))
        return tally

    whole, pieces = tallied(rows), tallied(rows[cut:][::-1], rows[:cut])
    assert whole.counts == pieces.counts == Counter((was, now) for _, was, now in rows)
    assert (whole.gained, whole.lost) == (pieces.gained, pieces.lost)
    assert len(whole.gained) == min(size, sum(was is not None and now is None for _, was, now in rows))
    assert all(change.before is None and change.after is not None for change in whole.lost)


def test_every_pair_has_the_same_chance() -> None:
    """Each of ten groups of keys that begin alike gets its tenth of the first thousand, within five deviations."""
    keys = [f"{group}{number:06}" for group in range(10) for number in range(2000)]
    for seed in range(3):
        first = np.argsort(priorities(keys, seed))[:1000]
        counts = np.bincount(first // 2000, minlength=10)
        assert np.abs(counts - 100).max() < 5 * np.sqrt(1000 * 0.1 * 0.9)


def test_a_pair_that_is_only_on_one_side_is_no_ones_to_drop() -> None:
    from pipeline.verdicts import ABSENT

    (step,) = steps({"a": "x"}, {"a": "x"}, {(None, None): 5, (ABSENT, "a"): 2, ("a", ABSENT): 1})
    assert step.before is not None
    assert step.after is not None
    assert (step.before.seen, step.before.left) == (6, 5)
    assert (step.after.seen, step.after.left) == (7, 5)


def test_verdicts_that_carry_keys_are_those_without() -> None:
    from tests.pipeline.test_rules import COLUMNS

    rules = Rules([{"wide": "pool.width > 2"}, {"best": "score = max(score) OVER (PARTITION BY pool.width)"}])
    bound = rules.check(COLUMNS)
    rng = np.random.default_rng(0)
    pieces = [
        pa.table(
            {
                "uid": [f"u{piece}-{row}" for row in range(50)],
                "caption_id": ["c"] * 50,
                "pool.width": pa.array(rng.integers(0, 9, 50), pa.int32()),
                "scores.score": rng.random(50),
                "before": [f"b{piece}-{row}" for row in range(50)],
            }
        )
        for piece in range(3)
    ]
    plain = {
        uid: int(code)
        for piece, codes in zip(pieces, bound.judge_all(pieces), strict=True)
        for uid, code in zip(piece["uid"].to_pylist(), codes, strict=True)
    }
    carried = [row for t in bound.judge_carrying(pieces, pa.schema([("before", pa.string())])) for row in t.to_pylist()]
    assert {row["uid"]: row["code"] for row in carried} == plain
    assert all(row["before"][1:] == row["uid"][1:] for row in carried)


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rule", "even=nn % 2 = 0"], "rule 'even' reads 'nn', which no node has; did you mean 'n'?"),
        (["--rule", "small=prodct < 4"], "did you mean 'product'?"),
        (["--rule", "even=(FROM read_csv('/etc/passwd')) IS NULL"], "has a subquery"),
        (["--rule", "even=n"], "rule 'even' is BIGINT, not BOOLEAN"),
        (["--rule", "even"], "write it as NAME=SQL"),
        (["--rule", "a b=true"], "write it as NAME=SQL"),
        (["--drop", "evn"], "--drop evn: the selection has no such rule; did you mean 'even'?"),
        (
            ["--rule", "x=true", "--after", "smal"],
            "--after smal: the selection has no such rule; did you mean 'small'?",
        ),
        (["--rule", "x=true", "--node", "kpt"], "has no such selection; did you mean 'kept'?"),
        (["--rule", "x=true", "--run", "9"], "has no run '9'"),
        ([], "nothing to try; give --rule NAME=SQL or --drop RULE"),
        (["--rule", "x=true", "--html", "/nowhere/x.html"], "/nowhere/x.html: No such file or directory; name a file"),
        (["--drop", "downloaded", "--drop", "even", "--drop", "small", "--drop", "first"], "there are no rules"),
    ],
)
def test_what_cannot_be_is_one_line(runs: Runs, options: list[str], said: str) -> None:
    done = asked(runs.root, *options)
    assert done.exit_code == 2
    assert said in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_a_selection_that_only_an_older_run_has_is_told_with_that_run(runs: Runs, tmp_path: Path) -> None:
    root = str(shutil.copytree(runs.root, tmp_path / "root"))
    write_run(Store(root), ["urls", "pool"], "seen")
    rule = ("--rule", "even=true")
    told = asked(root, *rule, "--node", "kept").output
    assert told == "error: --node kept: run 0005 has no such selection; run 0004 has it: --run 0004\n"
    assert asked(root, *rule).output == "error: run 0005 has no selection; run 0004 has one: --run 0004\n"
    assert "--node urls: run 0005 has no such selection\n" in asked(root, *rule, "--node", "urls").output
    assert json.loads(asked(root, *rule, "--run", "4", "--json").output)["run"] == "0004"
    for part in Path(root).glob("kept/data/*"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    lost = asked(root, *rule, "--node", "kept").output
    assert lost.startswith("error: --node kept: run 0005 has no such selection")
    assert "--run" not in lost
    alone = Store(str(tmp_path / "alone"))
    write_node(alone, "urls", {"000-0": {"image": pa.table({"uid": ["a"]})}})
    write_run(alone, ["urls"])
    none = "error: run 0001 has no selection; add a node with stages.select.Select\n"
    assert asked(alone.root, *rule).output == none


def test_a_rule_may_read_another_node_and_is_told_what_that_takes(runs: Runs) -> None:
    """`product` is of two nodes; a rule means the one that the selection takes from."""
    assert what_if(runs.root, {"small": "product < 80"}).moves == ()
    found = what_if(runs.root, {"beside": "m > 9"})
    assert found.nodes_to_add == ("beside",)
    assert all(shown.values == {"beside.m": n} for shown in found.lost for n in [shown.values["beside.m"]] if n <= 9)
    assert "to run it, add beside to `from` of kept" in asked(runs.root, "--rule", "beside=m > 9").output


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_the_page_shows_both_funnels_and_the_sample(runs: Runs) -> None:
    shown = asked(runs.root, "--rule", "even=n % 2 = 1", "--sample", "3").output
    for expected in (
        "left now",
        "left then",
        f"{LOOSER['even']} → n % 2 = 1",
        "would be dropped",
        "would be kept",
        "%)",
    ):
        assert expected in shown
    found = json.loads(asked(runs.root, "--rule", "even=n % 2 = 1", "--json").output)
    assert found["would_keep"] == what_if(runs.root, {"even": "n % 2 = 1"}).would_keep


def test_a_page_of_pictures_holds_nothing_of_a_stranger_but_text(runs: Runs, tmp_path: Path) -> None:
    page = tmp_path / "changes.html"
    done = asked(runs.root, "--rule", "even=n <> 8", "--sample", "2", "--html", str(page))
    assert str(page) in done.output
    html = page.read_text()
    assert "&lt;script&gt;alert(1)" in html, "the caption of the pair that is dropped"
    assert "<script" not in html
    assert not {"\u202e", "\u2066", "\x1b"} & set(html)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert set(re.findall(r"""(?:src|href)\s*=\s*["']?(\S{23})""", html)) == {"data:image/jpeg;base64,"}
    assert html.count("<img ") == len(re.findall("<figure>", html)) > 1


def test_a_picture_of_pictures(runs: Runs, tmp_path: Path) -> None:
    """The image of the number 8 is a stripe of the grey 8, at its corner of the sheet."""
    sheet = tmp_path / "changes.png"
    asked(runs.root, "--rule", "even=n <> 8", "--sample", "1", "--grid", str(sheet))
    with Image.open(sheet) as drawn:
        corner = (contact_sheet.GAP, contact_sheet.HEAD)
        assert drawn.getpixel((corner[0] + 4, corner[1] + 8)) == (8, 8, 8)
        assert drawn.getpixel((corner[0] + 12, corner[1] + 8)) == contact_sheet.PAPER
    with pytest.raises(SluiceError, match="name a file in a folder that exists"):
        contact_sheet.draw_png(Store(runs.root), what_if(runs.root, {"even": "n <> 8"}), "/nowhere/x.png")


def test_damaged_bytes_are_never_drawn(runs: Runs, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(runs.root, root)
    found = what_if(str(root), {"even": "n <> 8"}, sample=1)
    (lost,) = found.lost
    assert lost.uid == uid(8)
    assert lost.image is not None
    tar = Path(lost.image.path)
    data = bytearray(tar.read_bytes())
    data[lost.image.offset + 5] ^= 1
    tar.write_bytes(data)
    with pytest.raises(SluiceError, match=f"corrupt at byte {lost.image.offset} .uid {uid(8)}.*--repair"):
        contact_sheet.thumbnail(Store(str(root)), lost)
