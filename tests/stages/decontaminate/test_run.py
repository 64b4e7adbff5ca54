"""Leaks through whole runs: sets named by relative paths, changed between runs, or left out."""

from pathlib import Path

import pytest

from pipeline import Catalog, Dag, SluiceError, run
from pipeline.store import Store
from tests.inline import Inline
from tests.stages.decontaminate.sets import folder
from tests.stages.dedup.scenes import pairs
from tests.toys import uid_of

TEXT = f"""
dag: clean
nodes:
  urls: {{steps: [{{tests.toys.Numbers: {{rows: {2 * len(pairs())}, parts: 2}}}}]}}
  pool: {{from: urls, steps: [tests.stages.dedup.scenes.Scenes]}}
  leaks: {{from: pool, steps: [stages.decontaminate.Decontaminate]}}
"""


def ran(root: Path, sets: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """uid -> what it leaks from, and the work that was done."""
    executor = Inline(Store(str(root)))
    run(Dag.parse(TEXT, [f"leaks.sets={sets}"]), str(root), executor=executor)
    with Catalog(str(root)) as catalog:
        rows = catalog.sql("SELECT uid, leaks_from FROM leaks WHERE leaks_from IS NOT NULL").to_pylist()
    return {row["uid"]: row["leaks_from"] for row in rows}, executor.calls


def test_a_set_is_named_by_a_path_and_a_changed_one_is_compared_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    copies = [number for number, (_, is_copy, _, _) in enumerate(pairs()) if is_copy]
    folder(tmp_path / "held_out", {f"{copies[0]}.jpg": pairs()[copies[0]][2]})
    found, calls = ran(tmp_path / "root", "{test: held_out}")
    both = {uid_of(2 * copies[0] + end): f"test/{copies[0]}.jpg" for end in (0, 1)}
    assert both.items() <= found.items()
    assert "pool" in calls
    assert ran(tmp_path / "root", "{test: held_out}") == (found, {})
    folder(tmp_path / "held_out", {f"{copies[1]}.jpg": pairs()[copies[1]][3]})
    more, calls = ran(tmp_path / "root", "{test: held_out}")
    assert list(calls) == ["leaks"]
    assert {uid_of(2 * copies[1] + end): f"test/{copies[1]}.jpg" for end in (0, 1)}.items() <= more.items()
    assert found.items() <= more.items()


def test_a_dag_that_names_no_set_says_what_to_do_and_one_that_wants_none_shows_it(tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match=r"^leaks: Decontaminate: sets names no evaluation set.*sets=\{\}"):
        Dag.parse(TEXT).check()
    with pytest.raises(SluiceError, match=r"^leaks: Decontaminate: sets: no file at 'nowhere'; check the path"):
        Dag.parse(TEXT, ["leaks.sets={test: nowhere}"]).check()
    found, _ = ran(tmp_path / "root", "{}")
    assert found == {}
    generation = Store(str(tmp_path / "root")).newest("leaks")
    assert generation is not None
    assert [set(record.statuses) for record in generation.records] == [{"not_compared"}] * 2
