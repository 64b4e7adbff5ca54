"""Which pairs are kept, part by part and over all parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import SluiceError
from pipeline.records import Generation, Record
from pipeline.rules import Rules
from pipeline.stage import Column
from pipeline.store import Store
from stages.select import Select
from tests.pools import InlineWork, write_node

POOL = [
    Column("status", "pool", "image", pa.string()),
    Column("width", "pool", "image", pa.int32()),
    Column("caption", "pool", "caption", pa.string()),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def images(*rows: tuple[str, str, int]) -> pa.Table:
    uids, statuses, widths = zip(*rows, strict=True)
    return pa.table({"uid": list(uids), "status": list(statuses), "width": pa.array(widths, pa.int32())})


def captions(*rows: tuple[str, str], **columns: Any) -> pa.Table:
    uids, texts = zip(*rows, strict=True)
    ids = [f"{place:x}" for place in range(len(rows))]
    return pa.table({"uid": list(uids), "caption_id": ids, "caption": list(texts), **columns})


def scores(pairs: pa.Table, values: Sequence[float | None]) -> pa.Table:
    return pairs.select(["uid", "caption_id"]).append_column("score", pa.array(values, pa.float32()))


def write_pool(store: Store, retried: bool = False) -> dict[str, Generation]:
    """Two parts; image `b` has two captions, and its score is the best of the pool. A retry finds `c` after all."""
    first = captions(("a", "one"), ("b", "two"), ("b", "three"), ("c", "four"))
    second = captions(("d", "five"), ("e", "six"))
    pool = {
        "000-0": {"image": images(("a", "success", 300), ("b", "success", 100), ("c", "timeout", 0)), "caption": first},
        "000-1": {"image": images(("d", "success", 300), ("e", "success", 400)), "caption": second},
    }
    scored = {
        "000-0": {"caption": scores(first, [0.1, 0.9, 0.8, 0.7])},
        "000-1": {"caption": scores(second, [0.2, 0.3])},
    }
    supersedes: Mapping[str, tuple[str, ...]] = {}
    if retried:
        again = captions(("c", "four"))
        pool["000-0.r1"] = {"image": images(("c", "success", 500)), "caption": again}
        scored["000-0.r1"] = {"caption": scores(again, [0.75])}
        supersedes = {"000-0.r1": ("000-0",)}
    return {
        "pool": write_node(store, "pool", pool, supersedes=supersedes, tar=True),
        "scores": write_node(store, "scores", scored, ["pool"], supersedes),
    }


def run(store: Store, rules: Any, *inputs: Generation) -> tuple[dict[str, dict[str, Any]], InlineWork, list[Record]]:
    """`dropped_by` per part and pair, the work, and the records."""
    stage = Select(rules=rules)
    work = InlineWork(store, "kept", stage, inputs)
    records = stage.assemble(work)
    verdicts = {}
    for record in records:
        table = store.read_table(record, "caption")
        assert table.schema.equals(stage.outputs([])["caption"])
        assert table["kept"].to_pylist() == [name is None for name in table["dropped_by"].to_pylist()]
        keys = [f"{row['uid']}{row['caption_id']}" for row in table.to_pylist()]
        verdicts[record.part] = dict(zip(keys, table["dropped_by"].to_pylist(), strict=True))
    return verdicts, work, records


LOCAL = [{"downloaded": "status = 'success'"}, {"large": "width >= 200"}, {"aligned": "score >= 0.15"}]
GOLDEN = ["5e552632bc4477a9fc1065cd1330c3c1", "d6d4614b229f2434799a575ceec10b64", "968adabfb2d94f0db9e32dbbe19548fa"]
BEST_HALF = [{"downloaded": "status = 'success'"}, {"best": "score >= median(score) OVER ()"}]


def test_every_pair_has_a_row_and_the_first_rule_that_it_failed(store: Store) -> None:
    pool = write_pool(store)
    verdicts, _, records = run(store, LOCAL, *pool.values())
    assert verdicts["000-0"] == {"a0": "aligned", "b1": "large", "b2": "large", "c3": "downloaded"}
    assert verdicts["000-1"] == {"d0": None, "e1": None}
    assert [record.statuses for record in records] == [{"kept": 0, "dropped": 4}, {"kept": 2, "dropped": 0}]
    assert records[0].notes["funnel"] == [
        {"rule": "downloaded", "rows": 4, "dropped": 1, "left": 3},
        {"rule": "large", "rows": 3, "dropped": 2, "left": 1},
        {"rule": "aligned", "rows": 1, "dropped": 1, "left": 0},
    ]


def test_swapping_two_rules_changes_who_is_blamed(store: Store) -> None:
    pool = write_pool(store)
    verdicts, _, _ = run(store, [LOCAL[1], LOCAL[0], LOCAL[2]], *pool.values())
    assert verdicts["000-0"]["c3"] == "large"
    assert Select(rules=LOCAL) != Select(rules=[LOCAL[1], LOCAL[0], LOCAL[2]])
    assert Select(rules=LOCAL).model_dump_json() != Select(rules=[LOCAL[1], LOCAL[0], LOCAL[2]]).model_dump_json()


def test_the_golden_verdicts_hold_or_the_revision_is_raised(store: Store) -> None:
    pool = write_pool(store, retried=True)
    _, _, records = run(store, [*LOCAL, BEST_HALF[1]], *pool.values())
    assert [record.content_hash for record in records] == GOLDEN


def test_rules_are_the_same_as_a_list_and_as_a_mapping() -> None:
    as_mapping = {name: text for rule in LOCAL for name, text in rule.items()}
    assert Select.model_validate({"rules": as_mapping}) == Select.model_validate({"rules": LOCAL})


def test_a_window_sees_the_survivors_of_all_parts(store: Store) -> None:
    pool = write_pool(store)
    verdicts, work, _ = run(store, BEST_HALF, *pool.values())
    # The survivors score 0.1, 0.9, 0.8 and 0.2, 0.3; the failed download's 0.7 would have raised their median.
    assert verdicts == {
        "000-0": {"a0": "best", "b1": None, "b2": None, "c3": "downloaded"},
        "000-1": {"d0": "best", "e1": None},
    }
    assert [phase for phase, _ in work.done] == ["local", "local", "global", "final", "final"]


def test_a_window_as_the_first_rule(store: Store) -> None:
    pool = write_pool(store)
    verdicts, _, _ = run(store, [{"top": "row_number() OVER (ORDER BY score DESC) <= 2"}], *pool.values())
    assert verdicts["000-0"] == {"a0": "top", "b1": None, "b2": None, "c3": "top"}


@pytest.mark.parametrize(
    ("share", "kept"), [(0.2, "b1"), (0.39, "b1"), (0.4, "b1 b2"), (0.6, "b1 b2 d0"), (1, "b1 b2 d0 e1")]
)
@pytest.mark.parametrize("missing", [None, float("nan")])
def test_the_best_share_by_a_score_is_a_rule(store: Store, missing: float | None, share: float, kept: str) -> None:
    """Five pairs were downloaded. The failed download's 0.7 is the third best, and is not asked."""
    pool = write_pool(store)
    pairs = [captions(("a", "one"), ("b", "two"), ("b", "three"), ("c", "four")), captions(("d", "five"), ("e", "six"))]
    values: list[list[float | None]] = [[missing, 0.9, 0.8, 0.7], [0.3, 0.3]]  # d and e are equal, a has no score
    scored = {f"000-{n}": {"caption": scores(*both)} for n, both in enumerate(zip(pairs, values, strict=True))}
    best = {"best": f"cume_dist() OVER (ORDER BY score DESC, uid, caption_id) <= {share}"}
    verdicts, _, _ = run(store, [BEST_HALF[0], best], pool["pool"], write_node(store, "scores", scored, ["pool"]))
    assert {key for part in verdicts.values() for key, name in part.items() if name is None} == set(kept.split())


def test_nan_is_no_score_part_by_part(store: Store) -> None:
    pool = write_pool(store)
    pairs = captions(("a", "one"), ("b", "two"), ("b", "three"), ("c", "four")), captions(("d", "five"), ("e", "six"))
    values = [0.1, float("nan"), 0.8, 0.7], [float("nan"), 0.3]
    scored = {f"000-{n}": {"caption": scores(*both)} for n, both in enumerate(zip(pairs, values, strict=True))}
    verdicts, _, _ = run(store, [LOCAL[2]], pool["pool"], write_node(store, "scores", scored, ["pool"]))
    assert verdicts["000-0"] == {"a0": "aligned", "b1": "aligned", "b2": None, "c3": None}
    assert verdicts["000-1"] == {"d0": "aligned", "e1": None}


def test_a_window_with_no_survivors_to_see(store: Store) -> None:
    pool = write_pool(store)
    verdicts, _, _ = run(store, [{"none": "false"}, BEST_HALF[1]], *pool.values())
    assert {name for part in verdicts.values() for name in part.values()} == {"none"}


def test_a_retried_part_leaves_the_work_of_the_others_alone(store: Store) -> None:
    run(store, LOCAL, *write_pool(store).values())
    verdicts, work, records = run(store, LOCAL, *write_pool(store, retried=True).values())
    assert work.done == [("parts", "000-0.r1")]
    assert verdicts["000-0.r1"] == {"c0": None}
    assert records[-1].supersedes == ("000-0",)


def test_a_superseded_row_takes_no_part_in_a_window(store: Store) -> None:
    run(store, BEST_HALF, *write_pool(store).values())
    verdicts, work, _ = run(store, BEST_HALF, *write_pool(store, retried=True).values())
    assert verdicts == {
        "000-0": {"a0": "best", "b1": None, "b2": None, "c3": "superseded"},
        "000-0.r1": {"c0": None},
        "000-1": {"d0": "best", "e1": "best"},
    }
    assert ("local", "000-0") not in work.done
    assert ("final", "000-1") in work.done


def test_the_phases_give_what_one_table_in_memory_gives(store: Store) -> None:
    rng = np.random.default_rng(5)
    pool, scored, everything = {}, {}, []
    for part in range(7):
        uids = [f"{part}-{row}" for row in range(40)]
        table = images(*((uid, rng.choice(["success", "timeout"]), int(rng.integers(500))) for uid in uids))
        pairs = captions(*((uid, "x") for uid in uids for _ in range(1 + len(uid) % 2)))
        values = scores(pairs, [float(v) if v > 0.1 else None for v in rng.integers(0, 20, pairs.num_rows) / 20])
        pool[f"000-{part}"], scored[f"000-{part}"] = {"image": table, "caption": pairs}, {"caption": values}
        joined = values.join(table, "uid").sort_by([("uid", "ascending"), ("caption_id", "ascending")])
        everything.append(joined)
    rules = [
        {"downloaded": "status = 'success'"},
        {"one_per_width": "row_number() OVER (PARTITION BY width // 50 ORDER BY score DESC NULLS LAST) <= 14"},
        {"scored": "score > 0.2"},
        {"above": "score >= avg(score) OVER ()"},
    ]
    verdicts, _, _ = run(store, rules, write_node(store, "pool", pool), write_node(store, "scores", scored))
    whole = pa.concat_tables(everything)
    named = whole.rename_columns({"score": "scores.score", "status": "pool.status", "width": "pool.width"})
    columns = [*POOL, Column("score", "scores", "caption", pa.float32())]
    expected = Rules(rules).check(columns).judge(named).to_pylist()
    keys = [f"{row['uid']}{row['caption_id']}" for row in whole.to_pylist()]
    assert {key: name for part in verdicts.values() for key, name in part.items()} == dict(
        zip(keys, expected, strict=True)
    )
    assert set(expected) == {None, *(name for rule in rules for name in rule)}


def test_a_node_without_the_retried_part_is_joined_by_uid(store: Store) -> None:
    """It hangs off the ingest node: the base part has its rows, in another order and with others between them."""
    pool = write_pool(store, retried=True)
    languages = {
        "000-0": {"image": pa.table({"uid": ["c", "b", "a"], "language": ["en", "de", "en"]})},
        "000-1": {"image": pa.table({"uid": ["d", "e"], "language": ["en", "de"]})},
    }
    verdicts, _, _ = run(store, [{"english": "language = 'en'"}], pool["pool"], write_node(store, "text", languages))
    assert verdicts == {
        "000-0": {"a0": None, "b1": "english", "b2": "english", "c3": None},
        "000-0.r1": {"c0": None},
        "000-1": {"d0": None, "e1": "english"},
    }


def test_a_column_of_two_nodes_is_told_apart_by_its_node(store: Store) -> None:
    pool = write_pool(store)
    other = write_node(store, "other", {
        "000-0": {"image": pa.table({"uid": ["a", "b", "c"], "width": [1, 2, 3]})},
        "000-1": {"image": pa.table({"uid": ["d", "e"], "width": [4, 5]})},
    })  # fmt: skip
    with pytest.raises(SluiceError, match=r"write pool\.width or other\.width"):
        run(store, [{"large": "width > 200"}], pool["pool"], other)
    verdicts, _, _ = run(store, [{"large": "pool.width > 200 AND other.width < 5"}], pool["pool"], other)
    assert verdicts["000-1"] == {"d0": None, "e1": "large"}


def test_a_caption_column_shadows_the_image_column_of_its_node(store: Store) -> None:
    image = images(("a", "success", 1)).append_column("caption", pa.array(["of the image"]))
    pool = write_node(store, "pool", {"000-0": {"image": image, "caption": captions(("a", "of the caption"))}})
    verdicts, _, _ = run(store, [{"mine": "caption = 'of the caption'"}], pool)
    assert verdicts["000-0"] == {"a0": None}


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([{"large": "widht > 1"}], "rule 'large' reads 'widht', which no node has; did you mean 'width'"),
        ([{"large": "width"}], "rule 'large' is INTEGER, not BOOLEAN"),
        ([{"large": "width > 'x'::BLOB"}], "rule 'large'.*Cannot compare"),
    ],
)
def test_what_cannot_be_is_known_before_work_starts(rules: Any, said: str) -> None:
    with pytest.raises(SluiceError, match=said):
        Select(rules=rules).check(POOL)


@pytest.mark.parametrize(
    "rules", [[], {}, "width > 1", [{"a": "true", "b": "true"}], [{"a": True}], [{"a": "true"}, {"a": "false"}]]
)
def test_rules_that_are_no_named_conditions_are_refused(rules: Any) -> None:
    with pytest.raises(SluiceError, match="rule"):
        Select.model_validate({"rules": rules})


def test_it_says_which_columns_it_reads() -> None:
    assert Select(rules=[*LOCAL, {"one": "pool.uid = uid"}]).needs() == {"status", "width", "score"}


def test_without_captions_there_is_nothing_to_select(store: Store) -> None:
    with pytest.raises(SluiceError, match="add the pool to `from`"):
        Select(rules=LOCAL).check(POOL[:2])


def test_a_corrupt_verdict_is_found_when_it_is_read(store: Store) -> None:
    pool = write_pool(store)
    stage = Select(rules=BEST_HALF)
    work = InlineWork(store, "kept", stage, list(pool.values()))
    stage.assemble(work)
    (path,) = Path(store.path).glob("kept/data/all-*.verdicts")
    data = bytearray(path.read_bytes())
    data[16] ^= 1
    path.write_bytes(bytes(data))
    for commit in Path(store.path).glob("kept/commits/*.json"):
        if '"phase": "final"' in commit.read_text():
            commit.unlink()
    with pytest.raises(SluiceError, match=r"is corrupt; delete .* and run again") as caught:
        stage.assemble(work)
    Path(str(caught.value).partition("delete ")[2].partition(" and run")[0]).unlink()
    work.done.clear()
    assert len(stage.assemble(work)) == 2
    assert ("global", "all") in work.done


def test_parts_that_do_not_match_are_refused(store: Store) -> None:
    pool = write_pool(store)
    retried = write_pool(store, retried=True)
    with pytest.raises(SluiceError, match="name scores first"):
        run(store, LOCAL, pool["pool"], retried["scores"])
