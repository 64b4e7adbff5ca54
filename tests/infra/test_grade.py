"""Grades by closed form: what is written down by hand for every kind of case, and a real run of the quickstart."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from infra.miniweb import FACTS, Kind, Miniweb, evaluation
from infra.miniweb.grade import NOT_IN_THE_RUN, STANDS_IN, Grade, KindGrade, grade, judged, main, show, write
from pipeline import Catalog, Dag, SluiceError, run
from pipeline.store import Store
from tests.inline import Inline

PAIRS = pa.schema(
    {"url": pa.string(), "caption": pa.string(), "status": pa.string(), "kept": pa.bool_(), "dropped_by": pa.string()}
)


def key(*rows: tuple[str, int | None]) -> pa.Table:
    """Pages of these kinds and sources, numbered from 0; the rest follows."""
    return pa.Table.from_pylist(
        [
            {
                "page_id": number,
                "url": "" if kind == Kind.NO_URL else f"http://h/{number}",
                "caption": f"caption {number}",
                "kind": kind,
                "damaged": FACTS[Kind(kind)].damaged,
                "ends": list(FACTS[Kind(kind)].ends),
                "source": source,
                "changed": "colour" if kind == Kind.LOOK_ALIKE else None,
            }
            for number, (kind, source) in enumerate(rows)
        ]
    )


def pairs(**ends: str) -> pa.Table:
    """`n3="kept"`, `n4="worded"` (a rule), `n5="http_404"` (a status) for the pages of these numbers."""
    rows: list[dict[str, Any]] = []
    for name, end in ends.items():
        number, status = name.removeprefix("n"), end if end.startswith("http") else "success"
        dropped_by = None if end == "kept" else "downloaded" if status != "success" else end
        row = {"url": f"http://h/{number}", "caption": f"caption {number}", "status": status}
        rows.append({**row, "kept": dropped_by is None, "dropped_by": dropped_by})
    return pa.Table.from_pylist(rows, schema=PAIRS)


def of(found: Grade, kind: Kind) -> KindGrade:
    return next(each for each in found.kinds if each.kind == kind)


def test_recall_precision_and_reasons_are_those_counted_by_hand() -> None:
    told = key(*[("clean", None)] * 4, *[("spam", None)] * 3, *[("not_found", None)] * 2, ("no_url", None))
    ends = {"n0": "kept", "n1": "kept", "n2": "kept", "n3": "worded", "n4": "worded", "n5": "worded", "n6": "kept"}
    found = judged(told, pairs(**ends, n7="http_404", n8="http_404"))
    assert (found.pairs, found.damaged, found.caught, found.sound, found.lost, found.kept) == (10, 6, 5, 4, 1, 4)
    assert (found.recall, found.precision, found.purity) == (5 / 6, 5 / 6, 3 / 4)
    spam = of(found, Kind.SPAM)
    assert (spam.planted, spam.kept, spam.removed, spam.reasons, spam.ended) == (3, 1, 2 / 3, {"worded": 2}, 1.0)
    assert of(found, Kind.NOT_FOUND).reasons == {"http_404": 2}
    assert of(found, Kind.NO_URL).reasons == {NOT_IN_THE_RUN: 1}
    assert of(found, Kind.NO_URL).ended == 1.0
    assert of(found, Kind.CLEAN).reasons == {"worded": 1}
    rules = {rule.rule: (rule.dropped, rule.damaged, rule.precision) for rule in found.rules}
    assert rules["worded"] == (3, 2, 2 / 3)
    assert rules["downloaded"] == (2, 2, 1.0)


def test_a_status_that_was_not_expected_is_seen_although_the_pair_is_gone() -> None:
    found = judged(key(("not_found", None), ("not_found", None)), pairs(n0="http_404", n1="http_500"))
    assert of(found, Kind.NOT_FOUND).removed == 1.0
    assert of(found, Kind.NOT_FOUND).ended == 0.5


@pytest.mark.parametrize(
    ("source", "first", "second", "counted", "lost"),
    [
        ("kept", "unique", "unique", 0, 0),  # as it should be
        ("kept", "kept", "unique", 1, 0),
        ("kept", "kept", "kept", 2, 0),
        ("unique", "kept", "unique", 0, 0),  # a copy stands for its source
        ("unique", "unique", "kept", 0, 0),
        ("unique", "kept", "kept", 1, 0),
        ("unique", "unique", "unique", 0, 1),  # the picture is gone
    ],
)
def test_any_one_of_a_picture_may_stay_and_no_second(
    source: str, first: str, second: str, counted: int, lost: int
) -> None:
    told = key(("clean", None), ("exact_copy", 0), ("resized_copy", 0), ("clean", None))
    found = judged(told, pairs(n0=source, n1=first, n2=second, n3="kept"))
    assert of(found, Kind.EXACT_COPY).kept + of(found, Kind.RESIZED_COPY).kept == counted
    assert found.damaged - found.caught == counted
    assert of(found, Kind.CLEAN).kept == 2 - lost
    assert found.lost == lost


def test_a_source_that_gives_way_to_its_copy_counts_for_the_rule_and_a_lost_one_against_it() -> None:
    told = key(("clean", None), ("exact_copy", 0))
    alone = judged(told, pairs(n0="unique", n1="kept"))
    assert [rule.precision for rule in alone.rules] == [1.0]
    assert of(alone, Kind.EXACT_COPY).reasons == {STANDS_IN: 1}
    assert [rule.precision for rule in judged(told, pairs(n0="unique", n1="unique")).rules] == [0.5]


def test_look_alikes_are_no_copies_and_leaks_are_counted() -> None:
    told = key(("clean", None), ("look_alike", 0), ("look_alike", 0), ("exact_leak", None), ("altered_leak", None))
    found = judged(told, pairs(n0="kept", n1="kept", n2="unique", n3="leaked", n4="kept"))
    assert found.look_alikes_lost == 1
    assert of(found, Kind.LOOK_ALIKE).changed == "colour"
    assert found.lost == 1
    assert found.leaks_left == 1


def test_pairs_that_the_key_does_not_know_are_counted_apart() -> None:
    found = judged(key(("clean", None)), pairs(n0="kept", n7="kept", n8="worded"))
    assert (found.strangers, found.kept, found.purity) == (1, 1, 1.0)


def test_an_empty_run_loses_everything() -> None:
    found = judged(key(("clean", None), ("spam", None)), pairs())
    assert (found.lost, found.caught, found.recall, found.purity) == (1, 1, 1.0, 1.0)


# -- a real run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, Miniweb]]:
    """A quickstart over a small web, graded afterwards: its key, its root, the web."""
    folder = tmp_path_factory.mktemp("graded")
    with Miniweb(folder / "web", pages=240, seed=3, key=folder / "key.parquet") as web:
        port = urlsplit(web.base).port
        evaluation.write(web.pages, folder / "evaluation")
        overrides = [
            f"urls.files={folder}/web/urls.parquet",
            f"leaks.sets={{held_out: {folder}/evaluation/images}}",
            f"pool.allow_private_hosts=['127.0.0.1:{port}', 'localhost:{port}']",
            "pool.timeout_s=10",
        ]
        root = str(folder / "root")
        run(Dag.load("quickstart", overrides), root, until="shards", executor=Inline(Store(root)))
        yield folder / "key.parquet", folder / "root", web


def test_a_run_is_graded_as_its_own_tables_say(curated: tuple[Path, Path, Miniweb]) -> None:
    told, root, web = curated
    found = grade(pq.read_table(told), str(root))
    with Catalog(str(root)) as catalog:
        kept = catalog.sql("SELECT count_if(kept) AS kept FROM samples").column("kept")[0].as_py()
    assert (found.pairs, found.kept, found.strangers) == (240, kept, 0)
    assert found.damaged == sum(page.facts.damaged for page in web.pages)
    assert sum(each.planted for each in found.kinds) == 240
    assert of(found, Kind.NOT_FOUND).reasons == {"http_404": of(found, Kind.NOT_FOUND).planted}
    assert of(found, Kind.BOILERPLATE).removed > 0.8
    assert of(found, Kind.EXACT_COPY).kept == 0
    assert of(found, Kind.EXACT_LEAK).kept == of(found, Kind.ALTERED_LEAK).kept == 0
    assert of(found, Kind.OTHER_LANGUAGE).removed > 0.8
    assert of(found, Kind.CLEAN).removed < 0.05
    assert sum(each.kept for each in found.kinds if each.kind == Kind.MISMATCH) > 20  # nobody looks for them yet
    assert all(each.ended == 1.0 for each in found.kinds if each.damaged and each.kind != Kind.CHANGED)


def test_the_command_prints_a_grade_and_writes_it(
    curated: tuple[Path, Path, Miniweb], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told, root, _ = curated
    assert main([str(told), str(root), "--write", str(tmp_path / "grade.json")]) == 0
    shown = capsys.readouterr().out
    assert "planted damage" in shown
    assert "boilerplate" in shown
    assert "damaged pairs are gone (recall" in shown
    written = json.loads((tmp_path / "grade.json").read_text())
    assert written["pairs"] == 240
    assert written["recall"] == grade(pq.read_table(told), str(root)).recall


def test_a_grade_is_written_in_three_forms(tmp_path: Path) -> None:
    found = judged(key(("clean", None), ("spam", None)), pairs(n0="kept", n1="worded"))
    for name in ("g.json", "g.csv", "g.parquet"):
        write(found, tmp_path / name)
    with (tmp_path / "g.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["kind"] for row in rows] == ["clean", "spam"]
    assert json.loads(rows[1]["reasons"]) == {"worded": 1}
    assert pq.read_table(tmp_path / "g.parquet")["planted"].to_pylist() == [1, 1]


def test_what_cannot_be_graded_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.parquet"), str(tmp_path)]) == 2
    assert "cannot read the key" in capsys.readouterr().err
    pq.write_table(key(("clean", None)), tmp_path / "key.parquet")
    assert main([str(tmp_path / "key.parquet"), str(tmp_path / "empty")]) == 2
    assert "has no run" in capsys.readouterr().err


def test_a_wrong_ending_and_a_wrong_selection_are_told(curated: tuple[Path, Path, Miniweb], tmp_path: Path) -> None:
    told, root, _ = curated
    with pytest.raises(SluiceError, match=r"\.json, \.csv, \.parquet"):
        write(judged(key(("clean", None)), pairs()), tmp_path / "grade.txt")
    assert grade(pq.read_table(told), str(root), selection="kept").pairs == 240


def test_the_tables_name_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[tuple[str, int | None]] = [(kind.value, None) for kind in Kind]
    show(judged(key(*rows), pairs(n0="kept")), Console(width=120))
    shown = capsys.readouterr().out
    assert all(kind.value in shown for kind in Kind)
