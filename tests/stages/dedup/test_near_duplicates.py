"""Copies in a pool: found by bytes, hashes and embeddings, the same in every layout, searched once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import SluiceError
from pipeline.records import ABOUT, Record
from pipeline.stage import Column
from pipeline.store import Store
from stages.dedup import Groups, NearDuplicates, search
from tests.pools import seal_node
from tests.stages.dedup.copies import scene_pairs
from tests.stages.dedup.pools import WIDTH, Inline, Item, spread, uid_of, write_pool


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def items_of(seed: int, count: int) -> list[Item]:
    """Images of noise; some with the bytes, a near hash or a near embedding of another one."""
    rng = np.random.default_rng(seed)
    items: list[Item] = []
    for number in range(count):
        data, vector = rng.bytes(20), rng.normal(size=WIDTH).astype(np.float32)
        code = int(rng.integers(0, 2**64, dtype=np.uint64))
        if number % 10 == 9:
            data = items[number - 3].data or b""
        if number % 10 == 8:
            code = (items[number - 4].phash or 0) ^ 0b1011
        if number % 10 == 7:
            other = items[number - 5].vector
            assert other is not None
            vector = other + 0.02 * vector
        items.append(Item(uid_of(number), data, code, vector))
    items[0] = Item(items[0].uid, None)
    return items


def run(
    store: Store,
    parts: Mapping[str, Sequence[Item]],
    supersedes: Mapping[str, tuple[str, ...]] | None = None,
    **what: Any,
) -> tuple[dict[str, str], pa.Table, Inline, list[Record]]:
    """Group by uid, all edges, the work done, and the records."""
    inputs = write_pool(store, parts, supersedes)
    stage = NearDuplicates(**{"verify": "none", **what})
    work = Inline(store, "copies", stage, inputs)
    stage.check(work.columns)
    records = stage.assemble(work)
    images = [store.read_table(record, "image") for record in records]
    for record, image in zip(records, images, strict=True):
        assert image.column("uid").to_pylist() == [item.uid for item in parts[record.part]]
    rows = pa.concat_tables(images).to_pylist()
    edges = pa.concat_tables([store.read_table(record, "edge") for record in records])
    return {row["uid"]: row["duplicate_group"] for row in rows}, edges, work, records


def pairs(edges: pa.Table) -> set[tuple[str, str, str]]:
    rows = edges.select(["uid_a", "uid_b", "evidence"]).to_pylist()
    assert all(row["uid_a"] < row["uid_b"] for row in rows)
    assert len({(row["uid_a"], row["uid_b"]) for row in rows}) == len(rows)
    return {(row["uid_a"], row["uid_b"], row["evidence"]) for row in rows}


def planted(items: Sequence[Item]) -> set[tuple[str, str, str]]:
    found = set()
    for number in range(0, len(items), 10):
        for a, b, evidence in ((6, 9, "sha256"), (4, 8, "phash"), (2, 7, "cosine")):
            one, other = sorted([items[number + a].uid, items[number + b].uid])
            found.add((one, other, evidence))
    return found


def test_what_was_planted_is_found_by_what_it_was_planted_by(store: Store) -> None:
    items = items_of(1, 200)
    groups, edges, _, records = run(store, spread(items, 3))
    assert pairs(edges) == planted(items)
    expected = {item.uid: item.uid for item in items} | {b: a for a, b, _ in planted(items)}
    assert groups == expected
    assert {record.notes[ABOUT]["cells"] for record in records} == {1}
    assert sum(record.statuses["copy"] for record in records) == 60


def test_every_layout_gives_the_same_edges_and_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = items_of(2, 200)
    first, edges, _, _ = run(Store(str(tmp_path / "one")), {"000-0": items}, rows_per_cell=1000)
    monkeypatch.setattr(search, "HASHES_AT_ONCE", 150)
    monkeypatch.setattr(search, "ROWS_AT_ONCE", 90)
    monkeypatch.setattr("stages.dedup.parts.GROUPS", 2)
    second, others, _, records = run(Store(str(tmp_path / "many")), spread(items[::-1], 5), rows_per_cell=45)
    assert records[0].notes[ABOUT]["cells"] > 3
    assert first == second
    columns = ["uid_a", "uid_b", "evidence", "hamming", "cosine"]
    assert edges.select(columns).sort_by("uid_a").equals(others.select(columns).sort_by("uid_a"))
    assert edges.num_rows == 60


def test_a_rerun_writes_nothing(store: Store) -> None:
    parts = spread(items_of(3, 60), 2)
    _, _, work, records = run(store, parts)
    assert {phase for phase, _ in work.done} >= {"cut-bytes", "near-hashes", "near-vectors", "merge", "group", "final"}
    before = sorted(Path(store.path).rglob("*"))
    again = Inline(store, "copies", NearDuplicates(verify="none"), list(work.inputs.values()))
    assert NearDuplicates(verify="none").assemble(again) == records
    assert again.done == []
    assert sorted(Path(store.path).rglob("*")) == before


def test_rows_that_a_retry_replaced_are_no_copies_of_their_new_selves(store: Store) -> None:
    items = items_of(4, 40)
    parts = spread(items, 2)
    again = [items[3], Item(items[0].uid, items[5].data, 1, items[5].vector)]
    old = next(part for part, found in parts.items() if items[3] in found)
    parts = {name: found for part, items in parts.items() for name, found in [(part, items)]}
    parts[f"{old}.r1"] = again
    groups, edges, _, records = run(store, dict(sorted(parts.items())), {f"{old}.r1": tuple(parts)[:2]})
    assert not any(a == b for a, b, _ in pairs(edges))
    one, other = sorted([items[0].uid, items[5].uid])
    assert (one, other, "sha256") in pairs(edges)
    assert groups[other] == one
    assert {record.part: record.supersedes for record in records}[f"{old}.r1"] != ()


def test_a_thousand_placeholders_give_a_star(store: Store) -> None:
    items = [Item(uid_of(number), b"image not found", 7, np.ones(WIDTH, np.float32)) for number in range(1000)]
    groups, edges, _, _ = run(store, spread(items, 4))
    assert edges.num_rows == 999
    assert set(groups.values()) == {min(item.uid for item in items)}


def test_tighter_groups_search_nothing(store: Store) -> None:
    items = items_of(5, 100)
    _, edges, work, records = run(store, spread(items, 3), cosine=0.9, perceptual_bits=8)
    copies = seal_node(store, "copies", records, ["pool"])
    stage = Groups(perceptual_bits=2)
    tighter = Inline(store, "tighter", stage, [work.inputs["pool"], copies])
    found = pa.concat_tables([store.read_table(record, "image") for record in stage.assemble(tighter)]).to_pylist()
    assert {phase for phase, _ in tighter.done} == {"pick", "group", "final"}
    joined = {(row["duplicate_group"], row["uid"]) for row in found if row["uid"] != row["duplicate_group"]}
    assert joined == {(a, b) for a, b, evidence in pairs(edges) if evidence == "sha256"}
    loose = Groups(perceptual_bits=3, cosine=0.9)
    found = pa.concat_tables(
        [
            store.read_table(r, "image")
            for r in loose.assemble(Inline(store, "loose", loose, list(tighter.inputs.values())))
        ]
    ).to_pylist()
    assert {(row["duplicate_group"], row["uid"]) for row in found if row["uid"] != row["duplicate_group"]} == {
        (a, b) for a, b, _ in pairs(edges)
    }


def test_the_golden_edges_and_groups_hold_or_the_revision_is_raised(store: Store) -> None:
    assert (NearDuplicates.revision, Groups.revision) == (2, 1)
    _, edges, work, records = run(store, {"000-0": items_of(5, 10)})
    copies = seal_node(store, "copies", records, ["pool"])
    stage = Groups(perceptual_bits=3)
    (record,) = stage.assemble(Inline(store, "strict", stage, [work.inputs["pool"], copies]))
    strict = store.read_table(record, "image").to_pylist()
    (record,) = records
    loose = store.read_table(record, "image").to_pylist()
    shown = {uid_of(number): number for number in range(10)}
    assert [(shown[row["uid_a"]], shown[row["uid_b"]], *list(row.values())[2:]) for row in edges.to_pylist()] == GOLDEN
    copy = {shown[row["uid"]]: (shown[row["duplicate_group"]], row["similarity"]) for row in loose if row["similarity"]}
    assert copy == GOLDEN_GROUPS
    assert {shown[row["uid"]] for row in strict if row["similarity"]} == {4, 6, 8, 9}


NEAR = pytest.approx(0.99977, abs=1e-4)
GOLDEN: list[tuple[object, ...]] = [
    (2, 7, "cosine", None, NEAR, None, None, "000-0"),
    (8, 4, "phash", 3, None, None, None, "000-0"),
    (9, 6, "sha256", None, None, None, None, "000-0"),
]
GOLDEN_GROUPS: dict[int, tuple[int, object]] = {
    2: (2, 1),
    7: (2, NEAR),
    8: (8, 1),
    4: (8, 0.953125),
    9: (9, 1),
    6: (9, 1),
}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"embedding": "phash"}, "embedding: 'phash' is uint64 of images; expected lists of floats"),
        ({"hash_column": "sha256"}, "hash_column: 'sha256' is string of images, not uint64"),
        ({"hash_column": "pash"}, "reads 'pash', which no node in `from` has; did you mean 'phash'"),
    ],
)
def test_columns_of_another_kind_are_refused_before_work_starts(what: dict[str, str], said: str) -> None:
    columns = [
        Column("sha256", "pool", "image", pa.string()),
        Column("phash", "pool", "image", pa.uint64()),
        Column("image_embedding", "scores", "image", pa.list_(pa.float16(), 4)),
    ]
    NearDuplicates().check(columns)
    with pytest.raises(SluiceError, match=said.replace("`", ".")):
        NearDuplicates(**what).check(columns)


def test_without_a_pool_there_is_nothing_to_compare(store: Store) -> None:
    _, scores = write_pool(store, {"000-0": items_of(6, 10)})
    stage = NearDuplicates(verify="none")
    with pytest.raises(SluiceError, match="none of scores is a pool"):
        stage.assemble(Inline(store, "copies", stage, [scores]))


def test_candidates_are_looked_at_and_look_alikes_stay_apart(store: Store) -> None:
    found = {kind: (a, b) for kind, _, a, b in scene_pairs(9, 1, "small")}
    kinds = ("reencoded", "cropped", "other colour", "other count")
    items = []
    for number, kind in enumerate(kinds):
        items += [Item(uid_of(2 * number + end), found[kind][end], 0xFFFF << (16 * number)) for end in (0, 1)]
    items += [replace(items[0], uid=uid_of(99)), Item(uid_of(98), None)]
    parts = spread(items, 3)
    groups, edges, work, _ = run(store, parts, verify="pixels", cosine=None)
    verified = {(row["uid_a"], row["uid_b"]): row["verified"] for row in edges.to_pylist()}
    names = {item.uid: kind for kind, pair in zip(kinds, batched(items[:8]), strict=True) for item in pair}
    judged = {names.get(b, names.get(a)): is_copy for (a, b), is_copy in verified.items()}
    assert judged == {"reencoded": True, "cropped": True, "other colour": False, "other count": False}
    assert groups[items[0].uid] == groups[items[1].uid] == groups[uid_of(99)]
    assert groups[items[2].uid] == groups[items[3].uid]
    assert all(groups[item.uid] == item.uid for item in items[4:8])
    same = {(row["uid_a"], row["uid_b"]): row["agreement"] for row in edges.to_pylist() if row["evidence"] == "sha256"}
    assert list(same.values()) == [None], "images with the same bytes are not looked at"
    tar = next(Path(store.path).glob("pool/data/*.tar"))
    tar.write_bytes(bytes(len(tar.read_bytes())))
    again = Inline(store, "others", NearDuplicates(cosine=None, most=32), list(work.inputs.values()))
    with pytest.raises(SluiceError, match=r"is corrupt at byte .*; .sluice verify .* --repair"):
        NearDuplicates(cosine=None, most=32).assemble(again)


def batched(items: Sequence[Item]) -> list[tuple[Item, Item]]:
    return list(zip(items[::2], items[1::2], strict=True))
