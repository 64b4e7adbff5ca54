"""MetaCLIP's balancing: the closed form of its probabilities, its counts, and draws that no layout changes."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SluiceError
from pipeline.stage import Column
from stages.balance import BalanceConcepts, draws
from stages.balance.concepts import chance
from tests.stages.balance.pools import Row, caption_id, run, spread, uid_of

ENTRIES = ("cat", "dog", "red", "red fox", "owl")


@pytest.fixture
def concepts(tmp_path: Path) -> str:
    path = tmp_path / "concepts.txt"
    path.write_text("\n".join(ENTRIES))
    return str(path)


def zoo(count: int) -> list[Row]:
    """Captions in which `cat` is frequent, `dog` is not, and `owl` is rare; some have no entry at all."""
    rows = []
    for number in range(count):
        word = "owl" if number % 50 == 0 else "dog" if number % 10 == 1 else "nothing" if number % 10 == 2 else "cat"
        rows.append(Row(uid_of(number), (f"a {word} no. {number}",)))
    return rows


def test_the_probability_is_that_of_any_entry_letting_it_through(tmp_path: Path, concepts: str) -> None:
    rows = [Row(uid_of(0), ("cat and dog", "a cat", None)), *(Row(uid_of(n), (f"cat {n}",)) for n in range(1, 9))]
    found, _ = run(tmp_path / "root", BalanceConcepts(concepts=concepts, cap=2, among=None), {"000-0": rows})
    of = {(row["uid"], row["caption_id"]): row for row in found.to_pylist()}
    cat, dog = 2 / 10, 1.0
    assert of[uid_of(1), caption_id("cat 1")]["balance_probability"] == pytest.approx(cat)
    assert of[uid_of(0), caption_id("cat and dog")]["balance_probability"] == pytest.approx(1 - (1 - cat) * (1 - dog))
    assert of[uid_of(0), caption_id("cat and dog")]["concepts"] == ["dog", "cat"], "the rarest first"
    assert of[uid_of(0), caption_id(None)]["concepts"] is None
    assert of[uid_of(0), caption_id(None)]["balance_probability"] == 0
    assert of[uid_of(0), caption_id(None)]["balanced"] is False


@given(st.lists(st.integers(1, 10**9), max_size=12), st.integers(1, 10**6))
def test_the_closed_form_lies_between_the_best_entry_and_the_sum_of_all(counts: list[int], cap: int) -> None:
    each = [min(1.0, cap / count) for count in counts]
    found = chance(counts, cap)
    assert max(each, default=0.0) <= found + 1e-12
    assert found <= min(1.0, sum(each)) + 1e-12
    assert found == pytest.approx(1 - np.prod([1 - one for one in each]))


def test_it_is_as_often_drawn_as_when_every_entry_throws_its_own_dice() -> None:
    """Algorithm 1 as it is written, against its closed form."""
    rng = np.random.default_rng(3)
    counts, cap = [10, 40, 25], 8
    trials = rng.random((200_000, len(counts))) < np.minimum(1, cap / np.array(counts))
    assert trials.any(axis=1).mean() == pytest.approx(chance(counts, cap), abs=0.005)


def test_of_a_frequent_entry_about_cap_captions_remain_and_of_a_rare_one_all(tmp_path: Path, concepts: str) -> None:
    cap = 200
    found, work = run(tmp_path / "root", BalanceConcepts(concepts=concepts, cap=cap), spread(zoo(4000), 3))
    rows = found.to_pylist()
    kept = Counter(name for row in rows if row["balanced"] for name in row["concepts"])
    total = Counter(name for row in rows for name in row["concepts"])
    assert total == {"cat": 3120, "dog": 400, "owl": 80}
    assert kept["owl"] == total["owl"]
    for name in ("cat", "dog"):
        # binomial: cap on average, its standard deviation below the root of it
        assert abs(kept[name] - cap) < 4 * cap**0.5, name
    assert not any(row["balanced"] for row in rows if not row["concepts"])
    records = BalanceConcepts(concepts=concepts, cap=cap).assemble(work)
    statuses: Counter[str] = Counter()
    for record in records:
        statuses.update(record.statuses)
        assert record.notes == {"entries": 3, "entries_above_cap": 2}
    assert statuses["balanced"] == sum(row["balanced"] for row in rows)
    assert sum(statuses.values()) == 4000


def test_no_layout_changes_a_draw(tmp_path: Path, concepts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, rows = BalanceConcepts(concepts=concepts, cap=50), zoo(1000)
    one, _ = run(tmp_path / "one", stage, {"000-0": rows})
    monkeypatch.setattr(draws, "FAN_IN", 2)
    many, work = run(tmp_path / "many", stage, spread(rows[::-1], 7))
    assert {"sum0", "sum1", "sum2"} <= {phase for phase, _ in work.done}
    assert one.sort_by("uid").equals(many.sort_by("uid").combine_chunks())


def test_another_seed_draws_others_and_a_larger_cap_only_adds(tmp_path: Path, concepts: str) -> None:
    def kept(name: str, cap: int, seed: int) -> set[str]:
        found, _ = run(tmp_path / name, BalanceConcepts(concepts=concepts, cap=cap), spread(zoo(1000), 2), seed=seed)
        return {row["uid"] for row in found.to_pylist() if row["balanced"]}

    first, again, other, more = kept("a", 50, 1), kept("b", 50, 1), kept("c", 50, 2), kept("d", 150, 1)
    assert first == again
    assert len(first - other) > 30
    assert first < more


def test_what_takes_no_part_is_neither_counted_nor_drawn(tmp_path: Path, concepts: str) -> None:
    rows = [Row(uid_of(n), (f"cat {n}",), status="success" if n % 2 else "http_404") for n in range(40)]
    found, _ = run(tmp_path / "root", BalanceConcepts(concepts=concepts, cap=10), {"000-0": rows})
    shown = found.to_pylist()
    assert {row["balance_probability"] for row in shown} == {None, 0.5}
    assert {row["balanced"] for row in shown if row["balance_probability"] is None} == {None}
    assert all(row["concepts"] == ["cat"] for row in shown)
    assert found.column("balanced").null_count == 20


def test_a_retried_image_counts_once(tmp_path: Path, concepts: str) -> None:
    rows = [Row(uid_of(n), ("a cat",)) for n in range(4)]
    parts = {"000-0": rows, "000-0.r1": rows[:2]}
    stage = BalanceConcepts(concepts=concepts, cap=2)
    found, _ = run(tmp_path / "root", stage, parts, supersedes={"000-0.r1": ("000-0",)})
    assert found.column("balance_probability").to_pylist() == [None, None, 0.5, 0.5, 0.5, 0.5]


def test_a_rerun_does_nothing_again(tmp_path: Path, concepts: str) -> None:
    _, work = run(tmp_path / "root", BalanceConcepts(concepts=concepts), spread(zoo(60), 2))
    assert {phase for phase, _ in work.done} == {"match", "sum0", "draw"}
    work.done.clear()
    BalanceConcepts(concepts=concepts).assemble(work)
    assert work.done == []


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"among": "width"}, "among: 'width' is int32 of images; expected true or false, or a status, of captions"),
        ({"among": "kep"}, "reads 'kep', which no node in `from` has; did you mean 'kept'"),
    ],
)
def test_columns_of_another_kind_are_refused(concepts: str, what: dict[str, Any], said: str) -> None:
    columns = [
        Column("caption", "pool", "caption", pa.string()),
        Column("status", "pool", "image", pa.string()),
        Column("width", "pool", "image", pa.int32()),
        Column("kept", "chosen", "caption", pa.bool_()),
    ]
    BalanceConcepts(concepts=concepts).check(columns)
    BalanceConcepts(concepts=concepts, among="kept").check(columns)
    with pytest.raises(SluiceError, match=said.replace("`", ".")):
        BalanceConcepts(concepts=concepts, **what).check(columns)


def test_the_golden_table_holds_or_the_revision_is_raised(tmp_path: Path, concepts: str) -> None:
    assert BalanceConcepts.revision == 1
    rows = [
        Row(uid_of(0), ("a red fox and a cat", "A Cat")),
        *(Row(uid_of(n), ("the cat sat",)) for n in range(1, 5)),
        Row(uid_of(5), ("a red dog",), status="timeout"),
    ]
    found, _ = run(tmp_path / "root", BalanceConcepts(concepts=concepts, cap=2, shown=2), {"000-0": rows}, seed=17)
    assert [tuple(row.values())[2:] for row in found.to_pylist()] == GOLDEN


CAT = (["cat"], pytest.approx(0.4))
GOLDEN: list[tuple[Any, ...]] = [
    (["red", "red fox"], 1.0, True),
    ([], 0.0, False),
    (*CAT, False),
    (*CAT, True),
    (*CAT, True),
    (*CAT, False),
    (["dog", "red"], None, None),
]
